"""The steps that every task takes from a record to an example.

`parse` reads a record into one row a prompt, `choose` draws what an example
shows, `split_rows` makes several examples where evaluation has more rows than
prompts, `decode` decodes what was drawn and nothing else, and `finish` makes the
features.

In training one record is one example, also where a view shows none of its
boxes, or the record cannot be used (`skipping`): such a picture has no prompt
and joins no loss. Streams by places (`t5x.data_stream`) rely on it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tasks import image_ops
from tasks import outputs
from tasks import skipping
from tasks import sources

Example = Mapping[str, tf.Tensor]
Step = Callable[[Example], dict[str, tf.Tensor]]


def run(
    dataset: tf.data.Dataset,
    parse: Step,
    choose: Step,
    finish: Step,
    row_fields: tuple[str, ...],
    sizes: Mapping[str, int],
    decode: Step | None = None,
) -> tf.data.Dataset:
  """Turns records into examples of up to N prompts.

  A record that cannot be used must fail before `finish`.

  Args:
    dataset: of a `sources.ArrayRecordSource`.
    parse: a record to its fields.
    choose: keeps the rows that are shown, at most N in training.
    finish: makes the features.
    row_fields: names of the fields that have one row a prompt.
    sizes: S and N.
    decode: what is decoded of them; the picture by default.

  Returns:
    The examples.
  """
  decode = decode or decode_picture

  def map_in_parallel(data: tf.data.Dataset, step: Step) -> tf.data.Dataset:
    return data.map(step, num_parallel_calls=tf.data.AUTOTUNE)

  spec: Any = dataset.element_spec
  if sources.TRAINING in spec:
    # One map: each hands its examples to other threads, which takes time.
    def shown(record: Example) -> dict[str, tf.Tensor]:
      return decode(choose(parse(record)))

    # What has most operations, and cannot fail, is left outside.
    skips = skipping.RECORDS in spec
    read = skipping.or_blank(shown, sizes['S']) if skips else shown
    return map_in_parallel(dataset, lambda record: finish(read(record)))
  dataset = map_in_parallel(dataset, lambda record: choose(parse(record)))
  dataset = outputs.split_rows(dataset, row_fields, sizes['N'])
  return map_in_parallel(dataset, lambda example: finish(decode(example)))


def picture_spec(
    image: str, image_id: str, id_dtype: tf.DType = tf.int64
) -> dict[str, Any]:
  """Describes the fields of a record that tell of its picture.

  Args:
    image: name of the encoded picture.
    image_id: name of its id.
    id_dtype: type of the id.

  Returns:
    What `tf.io.parse_single_example` takes.
  """
  return {
      image: tf.io.FixedLenFeature([], tf.string),
      image_id: tf.io.FixedLenFeature([], id_dtype),
      'image/file_name': tf.io.FixedLenFeature([], tf.string),
      'image/height': tf.io.FixedLenFeature([], tf.int64),
      'image/width': tf.io.FixedLenFeature([], tf.int64),
  }


def picture_fields(
    record: Example, place: Example, image: str, image_id: str
) -> dict[str, tf.Tensor]:
  """Names the picture's fields alike for all records.

  Args:
    record: parsed, with the fields of `picture_spec`.
    place: `seed` and `training` of the source.
    image: name of the encoded picture.
    image_id: name of its id.

  Returns:
    `encoded`, `image_id` (text), `file_name`, `orig_hw`, `seed`, `training`.
  """
  name = record[image_id]
  return {
      'encoded': record[image],
      'image_id': name
      if name.dtype == tf.string
      else tf.strings.as_string(name),
      'file_name': record['image/file_name'],
      'orig_hw': tf.cast(
          tf.stack([record['image/height'], record['image/width']]), tf.int32
      ),
      'seed': place['seed'],
      'training': tf.constant(sources.TRAINING in place),
  }


def decode_picture(example: Example) -> dict[str, tf.Tensor]:
  """Puts the picture, as `image` [h, w, 3] uint8, in place of its bytes.

  Raises:
    InvalidArgumentError: if it is none, or has another size than is recorded.
  """
  decoded = dict(example)
  image = image_ops.decode_image(decoded.pop('encoded'))
  is_as_told = tf.debugging.assert_equal(
      image_ops.image_hw(image),
      example['orig_hw'],
      'the picture has another size than image/height and image/width tell',
  )
  with tf.control_dependencies([is_as_told]):
    return {**decoded, 'image': tf.identity(image)}


def ragged(name: str, dtype: tf.DType) -> tf.io.RaggedFeature:
  """A list a row, stored as flat values and row lengths."""
  return tf.io.RaggedFeature(
      dtype,
      value_key=f'{name}/ragged_flat_values',
      partitions=[
          tf.io.RaggedFeature.RowLengths(f'{name}/ragged_row_lengths_0')
      ],
      row_splits_dtype=tf.int64,
  )


def in_training(
    training: tf.Tensor, then: Callable[[], Any], otherwise: Callable[[], Any]
) -> Any:
  """`tf.cond` of whether a split is trained on, which the graph often knows."""
  known = tf.get_static_value(training)
  if known is None:
    return tf.cond(training, then, otherwise)
  return then() if known else otherwise()


def draw_rows(
    rows: tf.Tensor,
    num_prompts: int,
    training: tf.Tensor,
    seed: tf.Tensor,
    num_shown: int | None = None,
) -> tf.Tensor:
  """Up to N of the rows in random order in training, else the first in order.

  Args:
    rows: row numbers [n].
    num_prompts: N.
    training: bool scalar.
    seed: [2] int.
    num_shown: how many of them evaluation takes, None for all.

  Returns:
    Row numbers.
  """

  def drawn() -> tf.Tensor:
    return tf.random.experimental.stateless_shuffle(rows, seed)[:num_prompts]

  return in_training(training, drawn, lambda: rows[:num_shown])


def draw_number(count: int, training: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
  """Any number below `count` in training, else 0; int32 scalar."""
  return in_training(
      training,
      lambda: tf.random.stateless_uniform([], seed, 0, count, tf.int32),
      lambda: tf.constant(0),
  )


def with_truth(
    example: Example, names: tuple[str, ...]
) -> dict[str, tf.Tensor]:
  """Keeps a second copy of some fields, as `truth/<name>`.

  Metrics of a whole picture compare with all its rows, whichever are shown.
  """
  return {**example, **{f'truth/{name}': example[name] for name in names}}


def truth_fields(example: Example) -> dict[str, tf.Tensor]:
  """The fields that `with_truth` has added."""
  return {k: v for k, v in example.items() if k.startswith('truth/')}


def decoded(texts: Any) -> list[str]:
  """Texts [n] of an example as arrays, as Python's strings."""
  return [text.decode('utf-8') for text in texts]


def picture_target(example: Mapping[str, Any]) -> dict[str, Any]:
  """What a metric's target tells of the picture.

  Args:
    example: an example as arrays.

  Returns:
    `image_id`, `file_name`, `orig_hw`, `image_hw`, and `padded_hw`, the sides
    of the network input.
  """
  return {
      'image_id': example['image_id'].decode('utf-8'),
      'file_name': example['file_name'].decode('utf-8'),
      'orig_hw': np.asarray(example['orig_hw']),
      'image_hw': np.asarray(example['image_hw']),
      'padded_hw': np.asarray(example['image'].shape[:2]),
  }
