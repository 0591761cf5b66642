"""The examples of a task in chunks, from any chunk on."""

import itertools
import os
from typing import Any

from absl import logging
from etils import epath
import tensorflow as tf

# What TensorFlow raises for inputs whose position it cannot write.
_UNSAVEABLE = (
    tf.errors.FailedPreconditionError,
    tf.errors.InvalidArgumentError,
    tf.errors.UnimplementedError,
)


class ChunkedInput:
  """Gives a data set chunk by chunk, and notes on disk where it stands."""

  def __init__(
      self, dataset: tf.data.Dataset, chunk_size: int, position_dir: str | None
  ):
    """Opens the data set.

    Args:
      dataset: single examples, in an order that never changes.
      chunk_size: examples of a chunk; the last one may be smaller.
      position_dir: where positions are kept; None keeps none, and a restart
        reads again what comes before.
    """
    options = tf.data.Options()
    # Python functions in the input hold no state: see `prepare_train_iter`.
    options.experimental_external_state_policy = (
        tf.data.experimental.ExternalStatePolicy.IGNORE
    )
    self._iterator = iter(dataset.with_options(options))
    self._spec: Any = dataset.element_spec
    self._chunk_size = chunk_size
    self._position_dir = position_dir

  def start_at(self, chunk: int) -> None:
    """Moves to the start of a chunk."""
    position = self._position(chunk)
    if position is not None and epath.Path(f'{position}.index').exists():
      checkpoint = tf.train.Checkpoint(ds=self._iterator)
      checkpoint.read(position).assert_consumed()
      return
    for _ in itertools.islice(self._iterator, chunk * self._chunk_size):
      pass

  def next_chunk(self) -> list[Any]:
    """Returns the next examples as tensors, none at the end."""
    return list(itertools.islice(self._iterator, self._chunk_size))

  def save_position(self, chunk: int) -> None:
    """Writes where a chunk starts, which is where the input stands now."""
    position = self._position(chunk)
    if position is None:
      return
    epath.Path(position).parent.mkdir(parents=True, exist_ok=True)
    try:
      tf.train.Checkpoint(ds=self._iterator).write(position)
    except _UNSAVEABLE as error:
      logging.warning(
          'The position in this input cannot be saved (%s): a restart reads '
          'it from the start. infer.checkpoint_ds_iter = False says so too.',
          str(error).splitlines()[0],
      )
      self._position_dir = None

  def forget_positions(self, chunk: int) -> None:
    """Removes the positions of all chunks up to this one."""
    if self._position_dir is None:
      return
    for path in epath.Path(self._position_dir).glob('input-*.ckpt*'):
      if int(path.name.removeprefix('input-').split('.')[0]) <= chunk:
        path.unlink()

  def as_dataset(self, examples: list[Any], part: int) -> tf.data.Dataset:
    """Returns one part of a chunk's examples as a data set.

    Args:
      examples: a chunk, of tuples.
      part: which item of the tuples.
    """
    dataset = tf.data.Dataset.from_generator(
        lambda: (example[part] for example in examples),
        output_signature=self._spec[part],
    )
    return dataset.apply(tf.data.experimental.assert_cardinality(len(examples)))

  def _position(self, chunk: int) -> str | None:
    if self._position_dir is None:
      return None
    return os.path.join(self._position_dir, f'input-{chunk:05d}.ckpt')
