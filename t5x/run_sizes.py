"""Meshes and batch sizes that cannot be, told from the configuration alone.

A mesh of `ici_mesh_shape` and `dcn_mesh_shape` says how many parts a batch is
cut into, whatever hardware there is. The other layouts depend on the devices:
`PjitPartitioner.get_data_layout` looks at those once they are known, and the
trainer at its microbatches.
"""

from collections.abc import Iterator, Mapping, Sequence
import math
from typing import Any

_SHAPES = ('ici_mesh_shape', 'dcn_mesh_shape')
_AXES = '(replica, data, model)'
_PARTS = 'parts of ici and dcn mesh shape'


def faults(
    partitioner: Mapping[str, Any],
    batch_sizes: Mapping[str, Any],
    num_microbatches: Any,
) -> Iterator[str]:
  """Yields what cannot be, one sentence each.

  Args:
    partitioner: the arguments of a `PjitPartitioner`, as far as they are known.
    batch_sizes: name of a data set of the run -> examples of a global batch.
    num_microbatches: parts of a training batch, or None.
  """
  told = list(_of_mesh(partitioner))
  yield from told
  parts = 1 if told else _parts_of_batch(partitioner)
  for name, size in batch_sizes.items():
    if not isinstance(size, int) or isinstance(size, bool):
      continue
    divisors = {_PARTS: parts}
    if name == 'train_dataset_cfg' and isinstance(num_microbatches, int):
      divisors['microbatches'] = max(1, num_microbatches)
    if size <= 0:
      yield f'{name}: batch_size = {size} must be positive.'
      continue
    uneven = [f'{n} {told}' for told, n in divisors.items() if size % n]
    if uneven:
      # Each microbatch is cut in turn.
      nearest = _nearest_multiples(size, math.prod(divisors.values()))
      yield (
          f'{name}: batch_size = {size} does not divide into'
          f' {" nor into ".join(uneven)}; nearest: {nearest}.'
      )
    elif len(divisors) == 2:
      fault = microbatch_fault(size, divisors['microbatches'], parts, _PARTS)
      if fault:
        yield f'{name}: {fault}'


def microbatch_fault(
    batch_size: int, num_microbatches: int, parts: int, told: str
) -> str | None:
  """Tells that some devices would have no example of a microbatch.

  Args:
    batch_size: examples of a global batch; both others divide it.
    num_microbatches: parts of it that are computed one after the other.
    parts: devices, or groups of them, that each take a part of a microbatch.
    told: what these are parts of, for the message.

  Returns:
    A sentence with the numbers that would do, or None if all have the same.
  """
  if batch_size % (num_microbatches * parts) == 0:
    return None
  possible = batch_size // parts
  numbers = [n for n in range(1, possible + 1) if possible % n == 0]
  below = [n for n in numbers if n < num_microbatches][-1:]
  above = [n for n in numbers if n > num_microbatches][:1]
  return (
      f'batch_size = {batch_size} in num_microbatches = {num_microbatches} is'
      f' {batch_size // num_microbatches} examples at a time, which do not'
      f' divide into {parts} {told}. Set num_microbatches to'
      f' {" or ".join(map(str, below + above))}, or batch_size to'
      f' {_nearest_multiples(batch_size, num_microbatches * parts)}.'
  )


def _nearest_multiples(size: int, step: int) -> str:
  nearest = size // step * step, -(-size // step) * step
  return ' or '.join(str(n) for n in nearest if n)


def _of_mesh(partitioner: Mapping[str, Any]) -> Iterator[str]:
  given = {name: partitioner.get(name) for name in _SHAPES}
  for name, shape in given.items():
    if _is_sizes(shape, 3):
      continue
    if shape is not None and isinstance(shape, (tuple, list)):
      yield f'{name} = {shape} must be three positive sizes, {_AXES}.'
  if (given[_SHAPES[0]] is None) != (given[_SHAPES[1]] is None):
    yield (
        f'Set both or none of {" and ".join(_SHAPES)}; (1, 1, 1) is a single'
        ' slice.'
    )
  submesh = partitioner.get('model_parallel_submesh')
  if isinstance(submesh, (tuple, list)) and not _is_sizes(submesh, None):
    yield f'model_parallel_submesh = {submesh} must be positive sizes.'
  count = partitioner.get('num_partitions')
  if isinstance(count, int) and count < 0:
    yield f'num_partitions = {count} must be positive.'


def _is_sizes(shape: Any, length: int | None) -> bool:
  return (
      isinstance(shape, (tuple, list))
      and (length is None or len(shape) == length)
      and all(type(size) is int and size > 0 for size in shape)
  )


def _parts_of_batch(partitioner: Mapping[str, Any]) -> int:
  """Returns the size of the axes that divide a batch, 1 if devices decide."""
  shapes: Sequence[Any] = [partitioner.get(name) for name in _SHAPES]
  if not all(_is_sizes(shape, 3) for shape in shapes):
    return 1
  return math.prod(size for shape in shapes for size in shape[:2])
