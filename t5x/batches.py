"""Batches as the trainer takes them: shapes, zeros, and global arrays."""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import os
from typing import Any

from absl import logging
from clu.data import dataset_iterator
from etils import epath
from flax import serialization
import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf

from t5x import data_stream

BatchSpec = Mapping[str, jax.ShapeDtypeStruct]


def get_zeros_batch_like_spec(batch_spec: BatchSpec) -> dict[str, jax.Array]:
  """Returns a batch of zeros with the shapes and dtypes of a spec."""
  return {k: jnp.zeros(s.shape, s.dtype) for k, s in batch_spec.items()}


def get_zeros_batch_like_dataset(
    dataset: tf.data.Dataset, batch_size: int | None = None
) -> dict[str, jax.Array]:
  """Returns a batch of zeros like those of a data set.

  Args:
    dataset: batches of features.
    batch_size: the first dimension, None for the data set's own.
  """
  return get_zeros_batch_like_spec(get_batch_spec(dataset, batch_size))


def get_batch_spec(
    dataset: Any, batch_size: int | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shape and dtype of each feature of a batch.

  Args:
    dataset: a tf.data.Dataset or CLU iterator of batches.
    batch_size: the first dimension, None for the data set's own.
  """
  spec = {}
  for name, tensor in dataset.element_spec.items():
    shape = tuple(tensor.shape)
    dtype = getattr(tensor.dtype, 'as_numpy_dtype', tensor.dtype)
    if batch_size:
      shape = (batch_size, *shape[1:])
    spec[name] = jax.ShapeDtypeStruct(shape, dtype)
  return spec


def get_converter_spec(
    converter: Any, task_feature_lengths: Mapping[str, Any], batch_size: int
) -> dict[str, jax.ShapeDtypeStruct] | None:
  """Returns the batch that a feature converter makes, without any data.

  Args:
    converter: a SeqIO feature converter.
    task_feature_lengths: length or shape of each task feature.
    batch_size: the first dimension.

  Returns:
    The spec; None if the lengths do not tell the shape of every feature.
  """
  lengths = converter.get_model_feature_lengths(task_feature_lengths)
  packing = getattr(converter, 'PACKING_FEATURE_DTYPES', None) or {}
  spec = {}
  for name, known in converter.MODEL_FEATURES.items():
    if known.rank and name not in lengths:
      return None
    length = lengths.get(name, ())
    shape = tuple(length) if isinstance(length, (tuple, list)) else (length,)
    shape = shape if known.rank else ()
    if len(shape) != known.rank or None in shape:
      return None
    spec[name] = jax.ShapeDtypeStruct(
        (batch_size, *shape), known.dtype.as_numpy_dtype
    )
  if converter.pack:
    for name, dtype in packing.items():
      spec[name] = jax.ShapeDtypeStruct(
          (batch_size, lengths[name]), dtype.as_numpy_dtype
      )
  return spec


def get_step_spec(
    model: Any, cfg: Any, data_layout: Any, get_dataset_fn: Callable[..., Any]
) -> Mapping[str, jax.ShapeDtypeStruct]:
  """Returns the global batch of a step, without reading an example.

  Args:
    model: gives the feature converter.
    cfg: the dataset config.
    data_layout: gives the global batch size and this host's data shard.
    get_dataset_fn: opens the data, where the config's lengths do not tell all
      shapes.
  """
  converter = model.FEATURE_CONVERTER_CLS(
      pack=cfg.pack, use_custom_packing_ops=cfg.use_custom_packing_ops
  )
  spec = None
  if cfg.task_feature_lengths is not None:
    spec = get_converter_spec(
        converter, cfg.task_feature_lengths, data_layout.batch_size
    )
  if spec is None:
    # Opening the data builds a graph; no example is read.
    dataset = get_dataset_fn(
        cfg,
        data_layout.shard_id,
        data_layout.num_shards,
        model.FEATURE_CONVERTER_CLS,
    )
    spec = get_batch_spec(dataset, data_layout.batch_size)
  return spec


def to_global(
    batch: Mapping[str, Any], partitioner: Any, batch_size: int | None = None
) -> dict[str, jax.Array]:
  """Returns this process's part of a batch as global, sharded arrays.

  Args:
    batch: host arrays of this process's data shard.
    partitioner: gives mesh and the partition spec of data.
    batch_size: the global first dimension; None takes it from the shards.
  """
  sharding = jax.sharding.NamedSharding(
      partitioner.mesh, partitioner.data_partition_spec
  )
  if jax.process_count() == 1:
    # The same arrays, by one call for all of them.
    return jax.device_put(
        {k: np.asarray(x) for k, x in batch.items()}, sharding
    )
  return {
      name: jax.make_array_from_process_local_data(
          sharding,
          np.asarray(x),
          None if batch_size is None else (batch_size, *np.shape(x)[1:]),
      )
      for name, x in batch.items()
  }


@dataclasses.dataclass
class GlobalBatches:
  """Iterates a data set once, giving global arrays.

  Attributes:
    dataset: batches of this process's data shard.
    partitioner: gives mesh and the partition spec of data.
    batch_size: the global batch size.
  """

  dataset: tf.data.Dataset
  partitioner: Any
  batch_size: int

  def __iter__(self) -> Iterator[dict[str, jax.Array]]:
    for batch in self.dataset.as_numpy_iterator():
      yield to_global(batch, self.partitioner, self.batch_size)


class TrainIterator(dataset_iterator.PeekableDatasetIterator):
  """The training stream: global arrays, a peek, and an exact saved position.

  A batch that was peeked at but not taken is saved beside the position, so
  that no batch is ever lost or seen twice; a stream by places
  (`data_stream`) is saved as the place before it.
  """

  def __init__(
      self,
      it: dataset_iterator.DatasetIterator,
      partitioner: Any,
      batch_size: int,
  ):
    """Wraps an iterator over host arrays of this process's data shard."""
    super().__init__(it)
    self._partitioner = partitioner
    self._batch_size = batch_size
    self._ahead: Mapping[str, np.ndarray] | None = None

  @property
  def element_spec(self) -> Any:
    """Shapes and dtypes of the global batch."""
    return {
        name: dataset_iterator.ArraySpec(
            s.dtype, (self._batch_size, *s.shape[1:])
        )
        for name, s in self._it.element_spec.items()
    }

  def __next__(self) -> dict[str, jax.Array]:
    with self._mutex:
      batch, self._ahead = self._look(), None
    return to_global(batch, self._partitioner, self._batch_size)

  def peek(self) -> dict[str, jax.Array]:
    """Returns the next batch, which `next` will return again."""
    with self._mutex:
      batch = self._look()
    return to_global(batch, self._partitioner, self._batch_size)

  @property
  def is_same_for_all_shards(self) -> bool:
    """Whether what one data shard saved, every shard of any run can restore."""
    return isinstance(self._it, data_stream.StreamIterator)

  @property
  def last_place(self) -> int | None:
    """The place of the last batch taken; None if the stream has no places."""
    if not isinstance(self._it, data_stream.StreamIterator):
      return None
    with self._mutex:
      taken = self._it.place - self._it.stream.batch_size * self._num_ahead
    return taken - self._it.stream.batch_size

  def describe(self, place: int) -> str:
    """Tells what the batch at a place holds (`data_stream.Stream.describe`)."""
    return self._it.stream.describe(place)

  def scalars(self) -> Mapping[str, float]:
    """Tells how far the stream is, if it knows (`data_stream.Stream`)."""
    if not isinstance(self._it, data_stream.StreamIterator):
      return {}
    with self._mutex:
      place = self._it.place - self._it.stream.batch_size * self._num_ahead
    return self._it.stream.scalars(place)

  def waits(self) -> list[tuple[str, float]]:
    """Returns what is being read, and since how many seconds, if it knows."""
    # Without the lock, which whoever waits for a batch holds.
    stream = getattr(self._it, 'stream', None)
    return [] if stream is None else stream.waits()

  @property
  def _num_ahead(self) -> int:
    return int(self._ahead is not None)

  def reset(self) -> None:
    """Starts the stream anew."""
    with self._mutex:
      self._it.reset()
      self._ahead = None

  def save(self, filename: epath.Path) -> None:
    """Writes the position to files whose names start with `filename`.

    Raises:
      OSError: if it cannot be written.
    """
    with self._mutex:
      if isinstance(self._it, data_stream.StreamIterator):
        self._it.save(filename, self._num_ahead)
        return
      try:
        self._it.save(filename)
      except tf.errors.OpError as error:
        raise OSError(f'{filename}: {error.message}') from error
      if self._ahead is not None:
        data = serialization.msgpack_serialize(dict(self._ahead))
        _ahead_file(filename).write_bytes(data)

  def restore(self, filename: epath.Path) -> None:
    """Moves to the position that was saved under `filename`."""
    with self._mutex:
      self._it.restore(filename)
      file = _ahead_file(filename)
      self._ahead = None
      if file.exists():
        self._ahead = serialization.msgpack_restore(file.read_bytes())

  def close(self) -> None:
    """Ends the pipeline; no batch can be taken any more."""
    with self._mutex:
      # Freeing it stops its threads, which takes a while.
      self._it, self._ahead = iter(()), None

  def _look(self) -> Mapping[str, np.ndarray]:
    ahead = next(self._it) if self._ahead is None else self._ahead
    self._ahead = ahead
    return ahead


def _ahead_file(filename: epath.Path) -> epath.Path:
  return epath.Path(f'{os.fspath(filename)}.ahead.msgpack')


def prepare_train_iter(
    train_iter: tf.data.Dataset | dataset_iterator.DatasetIterator,
    *,
    partitioner: Any,
    checkpoint_cfg: Any,
    data_layout: Any,
) -> TrainIterator:
  """Returns the training stream of a data set (or CLU iterator).

  Args:
    train_iter: batches of this process's data shard.
    partitioner: gives mesh and the partition spec of data.
    checkpoint_cfg: tells whether the position is saved or restored.
    data_layout: gives the global batch size.

  Raises:
    TypeError: for anything else to read from.
  """
  if data_stream.stream_of(train_iter) is not None:
    train_iter = data_stream.StreamIterator(train_iter)
  elif isinstance(train_iter, tf.data.Dataset):
    save, restore = checkpoint_cfg.save, checkpoint_cfg.restore
    keeps_position = bool(
        (save and save.save_dataset) or (restore and restore.restore_dataset)
    )
    options = tf.data.Options()
    # Decoding through a Python function makes TensorFlow refuse to save the
    # position of an iterator, although such a function holds none.
    options.experimental_external_state_policy = (
        tf.data.experimental.ExternalStatePolicy.IGNORE
    )
    train_iter = dataset_iterator.TfDatasetIterator(
        train_iter.with_options(options), checkpoint=keeps_position
    )
  elif not isinstance(train_iter, dataset_iterator.DatasetIterator):
    raise TypeError(
        'The training data must be a tf.data.Dataset or a CLU '
        f'DatasetIterator, got {type(train_iter).__name__}.'
    )
  logging.info('Training features: %s', train_iter.element_spec)
  return TrainIterator(train_iter, partitioner, data_layout.batch_size)
