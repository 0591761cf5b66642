"""SeqIO feature converters: the last place that meets "maybe missing".

A task yields n ≤ N prompts an image. The converter pads every feature with
zeros to its full shape and adds `prompt_mask`, True for the n real prompts.
"""

from collections.abc import Mapping
from typing import Any

import seqio
import tensorflow as tf

from pixel_llm import features


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

    def convert(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
      batch = {name: example[name] for name in self.TASK_FEATURES}
      with tf.control_dependencies(self._row_checks(batch)):
        rows = tf.shape(batch['text_tokens'])[0]
      padded = {
          name: pad_feature(name, tensor, tuple(task_feature_lengths[name]))
          for name, tensor in batch.items()
      }
      padded['prompt_mask'] = tf.sequence_mask(rows, num_prompts)
      return padded

    return ds.map(convert, num_parallel_calls=tf.data.AUTOTUNE)

  def _row_checks(self, batch: Mapping[str, tf.Tensor]) -> list[Any]:
    """Asserts that all prompt features have the same rows.

    Without any, as where a crop shows no object, a picture joins no loss.
    """
    rows = tf.shape(batch['text_tokens'])[0]
    checks = []
    axes = features.task_features(self.WITH_MASKS)
    for name, tensor in batch.items():
      if axes[name].axes[0] == 'N':
        checks.append(
            tf.debugging.assert_equal(
                tf.shape(tensor)[0],
                rows,
                f'{name} and text_tokens have different numbers of prompts.',
            )
        )
    return checks

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


def pad_feature(
    name: str, tensor: tf.Tensor, shape: tuple[int, ...]
) -> tf.Tensor:
  """Pads with zeros at the end of each axis; longer than `shape` is an error."""
  check = tf.debugging.assert_less_equal(
      tf.shape(tensor),
      shape,
      f'Feature {name!r} is larger than its task_feature_length {shape}.',
  )
  with tf.control_dependencies([check]):
    missing = tf.constant(shape) - tf.shape(tensor)
  tensor = tf.pad(tensor, tf.stack([tf.zeros_like(missing), missing], axis=1))
  return tf.ensure_shape(tensor, shape)
