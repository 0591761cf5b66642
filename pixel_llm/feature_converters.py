"""SeqIO feature converters: the last place that meets "maybe missing".

A task yields n ≤ N prompts an image. The converter pads every feature with
zeros to its full shape and adds `prompt_mask`, True for the n real prompts.
"""

from collections.abc import Mapping

import seqio
import tensorflow as tf

from pixel_llm import features

_WRONG_LENGTHS = 'Features do not have their task_feature_lengths:'


def _feature_specs(
    batch_features: Mapping[str, features.BatchFeature],
) -> dict[str, seqio.FeatureConverter.FeatureSpec]:
  return {
      name: seqio.FeatureConverter.FeatureSpec(
          dtype=tf.as_dtype(feature.dtype), rank=len(feature.axes)
      )
      for name, feature in batch_features.items()
  }


class PixelLLMFeatureConverter(seqio.FeatureConverter):
  """Pads the prompts of an image and marks the real ones.

  SeqIO's own length check compares one axis with one number and cannot take
  the tuples of `features.feature_lengths`; the checks here replace it.
  """

  WITH_MASKS = False
  TASK_FEATURES = _feature_specs(features.task_features())
  MODEL_FEATURES = _feature_specs(features.model_features())
  PACKING_FEATURE_DTYPES: Mapping[str, tf.dtypes.DType] = {}

  def __init__(
      self,
      pack: bool = False,
      use_custom_packing_ops: bool = False,
      passthrough_features: (
          Mapping[str, seqio.FeatureConverter.FeatureSpec] | None
      ) = None,
  ):
    """Makes a converter; T5X passes the first two arguments.

    Args:
      pack: must be False: an example is an image, and images do not pack.
      use_custom_packing_ops: without meaning here, kept for T5X.
      passthrough_features: must be empty, as in the base class when packing.

    Raises:
      ValueError: if `pack` is set or features are to be passed through.
    """
    if pack:
      raise ValueError(
          f'{type(self).__name__}: pack=True, but images cannot be packed; set'
          ' DatasetConfig.pack = False.'
      )
    if passthrough_features:
      raise ValueError(
          f'{type(self).__name__}: passthrough_features'
          f' {sorted(passthrough_features)} given; the batch holds'
          f' {sorted(self.MODEL_FEATURES)} only.'
      )
    super().__init__(
        pack=False,
        use_custom_packing_ops=use_custom_packing_ops,
        apply_length_check=False,
    )

  def _convert_features(
      self,
      ds: tf.data.Dataset,
      task_feature_lengths: Mapping[str, tuple[int, ...]],
  ) -> tf.data.Dataset:
    """Pads to the full shapes and adds `prompt_mask`."""
    num_prompts = features.sizes_of(task_feature_lengths)['N']
    lengths = {
        name: tuple(task_feature_lengths[name]) for name in self.TASK_FEATURES
    }

    def convert(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
      batch = {name: example[name] for name in lengths}
      # Nothing is padded before it is known to fit.
      with tf.control_dependencies([self._check(batch, lengths)]):
        rows = tf.shape(batch['text_tokens'])[0]
        missing = num_prompts - rows
        # The same few operations for all features of a rank.
        paddings = {
            rank: tf.pad([[0, missing]], [[0, rank - 1], [0, 0]])
            for rank in {len(length) for length in lengths.values()}
        }
        padded = {
            name: _padded(tensor, lengths[name], paddings[tensor.shape.rank])
            for name, tensor in batch.items()
        }
        padded['prompt_mask'] = tf.sequence_mask(rows, num_prompts)
      return padded

    return ds.map(convert)

  def _check(
      self,
      batch: Mapping[str, tf.Tensor],
      lengths: Mapping[str, tuple[int, ...]],
  ) -> tf.Operation:
    """Asserts that all features fit, and have the same prompts.

    One assertion for all axes: by the feature they took as long as the padding.
    Without any prompt, as where a crop shows no object, a picture joins no loss.

    Raises:
      ValueError: for a side that is known to be too long when the graph is made.
    """
    described = features.task_features(self.WITH_MASKS)
    axes, largest, counts_rows = [], [], []
    for name, length in lengths.items():
      for axis, most in enumerate(length):
        is_rows = axis == 0 and described[name].axes[0] == 'N'
        rule = 'as many as text_tokens, ' if is_rows else ''
        axes.append(f'{name} axis {axis} ({rule}at most {most})')
        side = batch[name].shape[axis]
        if side is not None and side > most:
          raise ValueError(f'{_WRONG_LENGTHS} {axes[-1]} is {side}.')
        largest.append(most)
        counts_rows.append(is_rows)
    rows = tf.shape(batch['text_tokens'])[0]
    sides = tf.concat([tf.shape(batch[name]) for name in lengths], axis=0)
    is_wrong = tf.logical_or(
        sides > largest, tf.logical_and(counts_rows, sides != rows)
    )
    return tf.debugging.Assert(
        tf.logical_not(tf.reduce_any(is_wrong)),
        [
            _WRONG_LENGTHS,
            tf.boolean_mask(axes, is_wrong),
            'are',
            tf.boolean_mask(sides, is_wrong),
        ],
        summarize=len(axes),
    )

  def get_model_feature_lengths(
      self, task_feature_lengths: Mapping[str, tuple[int, ...]]
  ) -> dict[str, tuple[int, ...]]:
    """Adds the length of `prompt_mask`; the others stay."""
    sizes = features.sizes_of(task_feature_lengths)
    lengths = {
        name: tuple(task_feature_lengths[name]) for name in self.TASK_FEATURES
    }
    lengths['prompt_mask'] = features.feature_shape(features.PROMPT_MASK, sizes)
    return lengths


class PixelLLMMaskFeatureConverter(PixelLLMFeatureConverter):
  """The converter of runs with target masks."""

  WITH_MASKS = True
  TASK_FEATURES = _feature_specs(features.task_features(with_masks=True))
  MODEL_FEATURES = _feature_specs(features.model_features(with_masks=True))


def _padded(
    tensor: tf.Tensor, length: tuple[int, ...], paddings: tf.Tensor
) -> tf.Tensor:
  """Pads by the prompts that are missing, or where other sides may be short."""
  if tensor.shape == length:
    return tensor
  if tensor.shape[1:] != length[1:]:
    return pad_feature(tensor, length)
  padded = tf.pad(tensor, paddings)
  padded.set_shape(length)
  return padded


def pad_feature(tensor: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
  """Pads with zeros at the end of each axis; none may be longer."""
  missing = tf.constant(shape) - tf.shape(tensor)
  padded = tf.pad(tensor, tf.stack([tf.zeros_like(missing), missing], axis=1))
  padded.set_shape(shape)
  return padded
