"""Arrays that a checkpoint names by a tensorstore spec, read in parts.

A spec in a checkpoint was written on another machine: its path is relative to
the checkpoint, its driver is that of the writer's file system, and its chunks
and compression are those of the day. Here it becomes a spec that opens.

RefA: google-research/t5x, `checkpoints.py` and `checkpoint_importer.py`: the
layout of public T5 and Flan-T5 checkpoints.
"""

from collections.abc import Mapping
import functools
import os
from typing import Any

import jax.numpy as jnp
import numpy as np
import tensorstore as ts

from t5x import checkpoint_importer

# TensorStore's drivers of remote storage by the scheme of a path.
_REMOTE_DRIVERS = {'gs': 'gcs', 's3': 's3'}

# Stands in a spec for the bucket of the day (RefA).
DUMMY_BUCKET = 't5x-dummy-bucket'


class TensorStoreArray(checkpoint_importer.LazyArray):
  """An array of a checkpoint, opened when it is read.

  Attributes:
    name: the parameter's name, for messages.
    spec: what tensorstore opens.
  """

  def __init__(
      self,
      name: str,
      spec: Mapping[str, Any],
      shape: tuple[int, ...],
      dtype: Any,
  ):
    """Describes the array; nothing is opened.

    Args:
      name: the parameter's name.
      spec: a spec whose path is that of this machine.
      shape: its shape.
      dtype: the dtype it is read as, whatever the stored one.
    """
    super().__init__(shape, dtype, functools.partial(self.read, ...), [name])
    self.name = name
    self.spec = spec

  def read(self, index: Any) -> np.ndarray:
    """Reads a part, cast to `dtype`.

    Args:
      index: what to read, as numpy would index the array.

    Raises:
      ValueError: if the array cannot be opened, or has another shape than the
        checkpoint says; it names the parameter.
    """
    spec = {
        'driver': 'cast',
        'dtype': self.dtype.name,
        'base': dict(self.spec),
    }
    try:
      store = ts.open(spec, read=True, open=True).result()
    except ValueError as error:
      raise ValueError(
          f'Parameter {self.name} cannot be read from'
          f' {self.spec["kvstore"]}. Is the checkpoint complete?\n{error}'
      ) from error
    if tuple(store.shape) != self.shape:
      raise ValueError(
          f'Parameter {self.name} has shape {self.shape} by the checkpoint,'
          f' but {tuple(store.shape)} in {self.spec["kvstore"]}.'
      )
    return np.asarray(store[index].read().result())

  def astype(self, dtype: Any) -> 'TensorStoreArray':
    """Returns the same array, to be cast while it is read."""
    return TensorStoreArray(self.name, self.spec, self.shape, dtype)


def from_spec(
    name: str, spec: Mapping[str, Any], directory: str
) -> TensorStoreArray:
  """Describes the array of a spec as a checkpoint holds it (RefA).

  Args:
    name: the parameter's name.
    spec: the stored spec, with the shape in its metadata.
    directory: the checkpoint's directory; the spec's path is relative to it.

  Raises:
    ValueError: if the spec has no path.
  """
  return TensorStoreArray(
      name,
      local_spec(name, spec, directory),
      tuple(spec['metadata']['shape']),
      jnp.dtype(spec['dtype']),
  )


def from_directory(name: str, directory: str) -> TensorStoreArray:
  """Describes the zarr array in a directory; opens it for shape and dtype.

  Raises:
    ValueError: if there is no array; it names the parameter.
  """
  spec = {'driver': 'zarr', 'kvstore': _kvstore({}, '', directory)}
  try:
    store = ts.open(spec, read=True, open=True).result()
  except ValueError as error:
    raise ValueError(
        f'Parameter {name} cannot be read from {directory}. Is the checkpoint'
        f' complete?\n{error}'
    ) from error
  dtype = store.dtype.numpy_dtype
  return TensorStoreArray(name, spec, tuple(store.shape), dtype)


def local_spec(
    name: str, spec: Mapping[str, Any], directory: str
) -> dict[str, Any]:
  """Turns the spec of a checkpoint into one that opens here.

  Example: in the directory `/m`, `{'driver': 'zarr', 'kvstore': {'driver':
  'gfile', 'path': 'target.w'}, …}` reads `/m/target.w` by the driver `file`;
  below `gs://b/m` it reads `m/target.w` of the bucket `b`.

  Raises:
    ValueError: if the spec has no path.
  """
  # The file's own chunks and compressor count. A spec that names others fails
  # to open, and both are of no interest to a reader.
  spec = {k: v for k, v in spec.items() if k not in ('dtype', 'metadata')}
  kvstore = dict(spec['kvstore'])
  if 'path' in kvstore:
    path = kvstore.pop('path')
  elif 'path' in spec:
    path = spec.pop('path')
  else:
    raise ValueError(
        f'The tensorstore spec of parameter {name} has no path: {spec}.'
    )
  return {**spec, 'kvstore': _kvstore(kvstore, path, directory)}


def is_in_bucket(directory: str) -> bool:
  """Tells whether a directory lies in a bucket of remote storage."""
  return '://' in directory


def _kvstore(
    kvstore: Mapping[str, Any], path: str, directory: str
) -> dict[str, Any]:
  """Returns the key-value store of `path` below a local or cloud directory.

  Raises:
    ValueError: for a scheme that TensorStore has no driver for.
  """
  rest = {k: v for k, v in kvstore.items() if k not in ('driver', 'bucket')}
  if is_in_bucket(directory):
    scheme, _, place = directory.partition('://')
    if scheme not in _REMOTE_DRIVERS:
      raise ValueError(
          f'TensorStore reads no {scheme}:// ({directory}); it knows '
          f'{", ".join(f"{known}://" for known in _REMOTE_DRIVERS)} and local '
          'paths.'
      )
    bucket, _, parent = place.partition('/')
    place = {'driver': _REMOTE_DRIVERS[scheme], 'bucket': bucket}
  else:
    parent, place = directory, {'driver': 'file'}
  return {**rest, **place, 'path': os.path.join(parent, path)}
