"""What every task yields, as SeqIO sees it, and the rows that fill it."""

from collections.abc import Mapping
from typing import Any

import seqio
import tensorflow as tf

from pixel_llm import features


def output_features(
    vocabulary: seqio.Vocabulary, with_masks: bool = False
) -> dict[str, seqio.Feature]:
  """Describes the features of `pixel_llm.features` to SeqIO.

  Args:
    vocabulary: of the text and of the context.
    with_masks: whether the task yields target masks.

  Returns:
    Feature name to its description.
  """
  described: dict[str, seqio.Feature] = {}
  for name, feature in features.task_features(with_masks).items():
    kwargs: dict[str, Any] = {
        'dtype': tf.as_dtype(feature.dtype),
        'rank': len(feature.axes),
    }
    if name.endswith('_tokens'):
      described[name] = seqio.Feature(
          vocabulary=vocabulary, add_eos=False, **kwargs
      )
    else:
      described[name] = seqio.ContinuousFeature(**kwargs)
  return described


def sizes_for(
    sequence_length: Mapping[str, Any] | None, with_masks: bool
) -> dict[str, int]:
  """Reads S, N, T, C and P from SeqIO's `sequence_length`.

  Args:
    sequence_length: the tuples of `features.feature_lengths`.
    with_masks: whether the task yields masks.

  Returns:
    The sizes by letter.

  Raises:
    ValueError: if lengths are missing, or the masks are on one side only.
  """
  if sequence_length is None:
    raise ValueError(
        'sequence_length is None: PixelLLM tasks need the full shapes of'
        ' pixel_llm.features.feature_lengths(...).'
    )
  sizes = features.sizes_of(sequence_length)
  if ('masks' in sequence_length) != with_masks:
    raise ValueError(
        'sequence_length and task disagree on masks: the task yields'
        f' {"masks" if with_masks else "no masks"}, the lengths name'
        f' {sorted(sequence_length)}. Use feature_lengths(...,'
        f' with_masks={with_masks}), or a task of the other kind (*_refseg'
        ' with masks, *_refexp without).'
    )
  return sizes


def row_weights(rows: tf.Tensor, weight: float) -> tf.Tensor:
  """Returns the weight once a prompt, [n] float32."""
  return tf.fill([rows], tf.constant(weight, tf.float32))


def loss_fields(
    rows: tf.Tensor,
    caption: float = 0.0,
    point: float = 0.0,
    detection: float = 0.0,
    object_captions: bool = False,
) -> dict[str, tf.Tensor]:
  """Returns which losses the prompts of an example take part in.

  Args:
    rows: prompts of the example.
    caption: 1 if their texts join the caption loss.
    point: 1 if their targets join the point loss.
    detection: 1 if their boxes train the box decoder.
    object_captions: whether their texts caption their boxes rather than answer
      their prompts.

  Returns:
    Task features, the same for all prompts.
  """
  return {
      'caption_weights': row_weights(rows, caption),
      'point_weights': row_weights(rows, point),
      'detection_weights': row_weights(rows, detection),
      'object_captions': tf.fill([rows], object_captions),
  }


def take_rows(
    example: Mapping[str, tf.Tensor],
    row_fields: tuple[str, ...],
    rows: tf.Tensor,
) -> dict[str, tf.Tensor]:
  """Keeps the given rows, in this order, of the fields that have one a prompt.

  Args:
    example: an example before padding.
    row_fields: names of the fields whose first axis counts prompts.
    rows: row numbers [n].

  Returns:
    The example; other fields as they were.
  """
  return {
      name: tf.gather(value, rows) if name in row_fields else value
      for name, value in example.items()
  }


def split_rows(
    dataset: tf.data.Dataset, row_fields: tuple[str, ...], num_prompts: int
) -> tf.data.Dataset:
  """Makes several examples of an image with more than `num_prompts` prompts.

  Evaluation drops nothing: 5 prompts with N = 2 become rows 0-1, 2-3 and 4.

  Args:
    dataset: examples before padding.
    row_fields: names of the fields whose first axis counts prompts.
    num_prompts: N.

  Returns:
    A data set whose examples have 1 to N prompts.
  """

  def parts(example: Mapping[str, tf.Tensor]) -> tf.data.Dataset:
    rows = tf.shape(example[row_fields[0]], tf.int64)[0]
    starts = tf.data.Dataset.range(0, rows, num_prompts)

    def part(start: tf.Tensor) -> dict[str, tf.Tensor]:
      stop = tf.minimum(start + num_prompts, rows)
      return take_rows(example, row_fields, tf.range(start, stop))

    return starts.map(part)

  return dataset.flat_map(parts)
