"""Running a model over a finite data set, in order, on every device."""

from collections.abc import Callable, Iterator, Mapping
import inspect
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np
import tensorflow as tf

from t5x import batches
from t5x import preemption

InferFn = Callable[..., Any]


def get_infer_fn(
    infer_step: Callable[..., Any],
    batch_size: int,
    train_state_axes: Any,
    partitioner: Any,
    keep_aux_as_numpy: bool = False,
) -> InferFn:
  """Returns a function that runs `infer_step` over an enumerated data set.

  Args:
    infer_step: `(params, batch[, rng][, flax_mutables]) -> output` or
      `(output, aux)`; the two optional ones are given by name if it has them.
    batch_size: examples of a global batch; the last one is padded.
    train_state_axes: partition specs of the train state.
    partitioner: partitions the step and lays out the data.
    keep_aux_as_numpy: whether aux values stay arrays instead of lists.

  Returns:
    `fn(dataset, train_state, rng=None)` for a data set of (index, example).
    It gives `[(index, output), …]` by index; if the step has aux, that and
    the aux tree with a list over examples at each leaf. Outputs are nested
    lists and numbers.
  """
  layout = partitioner.get_data_layout(batch_size)
  partitioned_step = partition_infer_step(
      infer_step, train_state_axes, partitioner
  )

  def infer(
      dataset: tf.data.Dataset, train_state: Any, rng: jax.Array | None = None
  ) -> Any:
    indices, outputs = [], []
    for number, (index, batch) in enumerate(_batches(dataset, layout)):
      step_rng = None if rng is None else jax.random.fold_in(rng, number)
      index, batch = _gathered(index, batch, partitioner, batch_size)
      output = partitioned_step(
          train_state.params, batch, step_rng, train_state.flax_mutables
      )
      indices.append(index)
      outputs.append(jax.tree.map(_to_host, output))
      preemption.raise_if_reached()
    if not indices:
      return []
    return _in_order(indices, outputs, keep_aux_as_numpy)

  return infer


def partition_infer_step(
    infer_step: Callable[..., Any], train_state_axes: Any, partitioner: Any
) -> Any:
  """Returns `infer_step` as a function of (params, batch, rng, mutables).

  Args:
    infer_step: see `get_infer_fn`.
    train_state_axes: partition specs of the train state.
    partitioner: partitions the step.
  """
  takes = inspect.signature(infer_step).parameters

  def step(params, batch, rng, mutables):
    optional = {}
    if 'rng' in takes:
      optional['rng'] = rng
    if 'flax_mutables' in takes:
      optional['flax_mutables'] = mutables
    return infer_step(params, batch, **optional)

  return partitioner.partition(
      step,
      in_axis_resources=(
          train_state_axes.params,
          partitioner.data_partition_spec,
          None,
          train_state_axes.flax_mutables,
      ),
      # Replicated, so that every process can read the whole.
      out_axis_resources=None,
  )


def _batches(dataset: tf.data.Dataset, layout: Any) -> Iterator[Any]:
  """Yields this shard's batches; padding repeats an example as index −1."""
  size = layout.batch_size // layout.num_shards

  def as_filler(_, example):
    return tf.constant(-1, tf.int64), example

  filler = dataset.take(1).map(as_filler)
  # Every shard needs the same number of full batches.
  count = int(dataset.cardinality())
  if count < 0:
    count = int(dataset.reduce(np.int64(0), lambda n, _: n + 1))
  missing = -count % layout.batch_size
  padded = dataset.concatenate(filler.repeat(missing))
  sharded = padded.shard(layout.num_shards, layout.shard_id)
  yield from sharded.batch(size, drop_remainder=True).as_numpy_iterator()


def _gathered(
    index: np.ndarray,
    batch: Mapping[str, np.ndarray],
    partitioner: Any,
    batch_size: int,
) -> tuple[np.ndarray, Mapping[str, jax.Array]]:
  """Returns the global batch, and the index of each of its examples."""
  arrays = batches.to_global({'': index}, partitioner, batch_size)
  if jax.process_count() > 1:
    whole = multihost_utils.process_allgather(arrays[''], tiled=True)
  else:
    whole = arrays['']
  return np.asarray(whole), batches.to_global(batch, partitioner, batch_size)


def _to_host(x: Any) -> np.ndarray:
  return np.asarray(x.addressable_data(0) if isinstance(x, jax.Array) else x)


def _in_order(
    indices: list[np.ndarray], outputs: list[Any], keep_aux_as_numpy: bool
) -> Any:
  """Drops the padding and sorts by index."""
  index = np.concatenate(indices)
  order = np.argsort(index, kind='stable')
  order = order[index[order] >= 0]
  whole = jax.tree.map(lambda *xs: np.concatenate(xs)[order], *outputs)
  rows = index[order].tolist()

  def listed(tree: Any) -> list[Any]:
    leaves, structure = jax.tree.flatten(tree)
    lists = [x.tolist() for x in leaves]
    return [structure.unflatten(row) for row in zip(*lists)]

  if not isinstance(whole, tuple):
    return list(zip(rows, listed(whole)))
  output, aux = whole
  as_list = list if keep_aux_as_numpy else np.ndarray.tolist
  return list(zip(rows, listed(output))), jax.tree.map(as_list, aux)
