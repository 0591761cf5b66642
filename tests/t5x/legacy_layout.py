"""Writes checkpoints as T5X did before Orbax, to be read by the tests.

Every array of more than `INLINE` elements becomes a zarr directory beside the
file, as public T5 checkpoints have them.
"""

import pathlib

from flax import serialization
from flax import traverse_util
import numpy as np
import tensorstore as ts

INLINE = 3


def write(directory, state, driver='gfile', path_at='kvstore', version=3):
  """Writes a state dict; returns the directory."""
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  flat = traverse_util.flatten_dict(state, keep_empty_nodes=True)
  for path, leaf in flat.items():
    if leaf is traverse_util.empty_node or leaf is None:
      continue
    array = np.asarray(leaf)
    if array.size > INLINE:
      array = write_array(directory, '.'.join(path), array, driver, path_at)
    flat[path] = array
  content = {
      'version': version,
      'optimizer': traverse_util.unflatten_dict(flat),
  }
  (directory / 'checkpoint').write_bytes(
      serialization.msgpack_serialize(content)
  )
  return directory


def write_array(directory, name, array, driver='gfile', path_at='kvstore'):
  """Writes a zarr directory; returns the spec that a checkpoint holds."""
  chunks = [max(1, size // 2) for size in array.shape]
  metadata = {
      'shape': list(array.shape),
      'chunks': chunks,
      'compressor': {'id': 'gzip', 'level': 1},
  }
  spec = {'driver': 'zarr', 'dtype': array.dtype.name, 'metadata': metadata}
  kvstore = {'driver': 'file', 'path': str(directory / name)}
  store = ts.open(
      {**spec, 'kvstore': kvstore}, create=True, delete_existing=True
  ).result()
  store.write(array).result()
  # The writer's machine had other paths, and other ideas of the chunks.
  stored = {'driver': driver}
  if driver == 'gcs':
    stored['bucket'] = 't5x-dummy-bucket'
  spec = {**spec, 'metadata': {**metadata, 'chunks': [1] * array.ndim}}
  if path_at == 'kvstore':
    return {**spec, 'kvstore': {**stored, 'path': name}}
  return {**spec, 'kvstore': stored, 'path': name}
