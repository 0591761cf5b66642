"""Writes a state dict as T5X did before Orbax, for whoever reads only that.

A sharded leaf becomes a zarr array in a directory beside the file, named like
the parameter with dots; the file `checkpoint` holds its tensorstore spec, and
all other leaves themselves (`legacy_state` reads it). Every process writes the
parts it holds first copies of; a zarr chunk never spans two parts, so no two
processes write one chunk.

RefA: google-research/t5x, `checkpoints.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
import math
import os
from typing import Any

from etils import epath
from flax import serialization
import jax
import numpy as np
import tensorstore as ts

from t5x import legacy_state
from t5x import multihost
from t5x import state_matching
from t5x import stored_state
from t5x import tensorstore_array

# Later layouts than this one are Orbax's.
VERSION = 3
_CHUNK_BYTES = 64 * 2**20
_COMPRESSOR = {'id': 'gzip', 'level': 1}


def write_arrays(
    directory: str,
    leaves: Mapping[stored_state.Path, Any],
    mesh_axes: Mapping[stored_state.Path, Any],
    max_bytes_in_flight: int,
) -> dict[str, Any]:
  """Writes this process's parts of the sharded leaves.

  Args:
    directory: of the checkpoint; it must exist.
    leaves: arrays by path in the state dict.
    mesh_axes: the partition spec of each, None where it has none.
    max_bytes_in_flight: how much to hold on the host at once.

  Returns:
    The content of the file: nested dicts of specs and small arrays.
  """
  content, writes, in_flight = {}, [], 0
  for path, leaf in leaves.items():
    if not _is_sharded(leaf, mesh_axes.get(path)):
      content[path] = np.asarray(multihost.get_local_data(leaf))
      continue
    name = '.'.join(path)
    spec = _stored_spec(name, leaf, directory)
    content[path] = spec
    store = _create(name, spec, directory)
    for index, part in _parts(leaf):
      if writes and in_flight + part.nbytes > max_bytes_in_flight:
        _finish(writes)
        in_flight = 0
      writes.append(store[index].write(part))
      in_flight += part.nbytes
  _finish(writes)
  return {
      'version': VERSION,
      'optimizer': state_matching.nest(content),
  }


def write_file(directory: str, content: Mapping[str, Any]) -> None:
  """Writes the file `checkpoint`, last: with it, the checkpoint is whole."""
  file = epath.Path(os.path.join(directory, legacy_state.FILENAME))
  file.write_bytes(serialization.msgpack_serialize(dict(content)))


def get_chunk_shape(
    part_shape: Sequence[int], itemsize: int, max_bytes: int = _CHUNK_BYTES
) -> list[int]:
  """Divides the part of one device evenly until a chunk is small enough.

  Example: of a part (6, 4) of 4-byte numbers, 48 bytes a chunk give (3, 4).

  Args:
    part_shape: shape of the part.
    itemsize: bytes of an element.
    max_bytes: wanted size of a chunk.
  """
  chunk = list(part_shape)
  while math.prod(chunk) * itemsize > max_bytes and max(chunk) > 1:
    axis = int(np.argmax(chunk))
    size = chunk[axis]
    chunk[axis] = size // next(d for d in range(2, size + 1) if size % d == 0)
  return chunk


def _is_sharded(leaf: Any, mesh_axes: Any) -> bool:
  """Tells whether a leaf gets a directory of its own."""
  if not leaf.ndim or not leaf.size:
    return False
  if mesh_axes is not None:
    return True
  # Without axes it is whole on every process, but for a state made elsewhere.
  return isinstance(leaf, jax.Array) and not leaf.is_fully_replicated


def _stored_spec(name: str, leaf: Any, directory: str) -> dict[str, Any]:
  """Returns the spec as the file holds it, its path relative to the file."""
  part = leaf.shape
  if isinstance(leaf, jax.Array):
    part = leaf.sharding.shard_shape(leaf.shape)
  kvstore = {'driver': 'file', 'path': name}
  if tensorstore_array.is_in_bucket(directory):
    # Readers put in the bucket they find it in (RefA).
    bucket = tensorstore_array.DUMMY_BUCKET
    kvstore = {'driver': 'gcs', 'bucket': bucket, 'path': name}
  return {
      'driver': 'zarr',
      'dtype': leaf.dtype.name,
      'kvstore': kvstore,
      'metadata': {
          'shape': list(leaf.shape),
          'chunks': get_chunk_shape(part, leaf.dtype.itemsize),
          'compressor': dict(_COMPRESSOR),
      },
  }


def _create(name: str, spec: Mapping[str, Any], directory: str) -> Any:
  opened = tensorstore_array.local_spec(name, spec, directory)
  return ts.open(
      {**opened, 'dtype': spec['dtype'], 'metadata': spec['metadata']},
      create=True,
      open=True,  # another process may have been first
  ).result()


def _parts(leaf: Any) -> Iterator[tuple[Any, np.ndarray]]:
  """Yields index and value of what this process has to write."""
  if isinstance(leaf, jax.Array):
    for shard in leaf.addressable_shards:
      if shard.replica_id == 0:
        yield shard.index, np.asarray(shard.data)
  elif jax.process_index() == 0:
    yield ..., np.asarray(leaf)


def _finish(writes: list[Any]) -> None:
  """Waits until what has been started is written; raises what went wrong."""
  for write in writes:
    write.result()
  writes.clear()
