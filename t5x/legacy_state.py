"""The file `checkpoint` of layouts before Orbax's own: a msgpack of the tree.

T5X's legacy layout (public T5, Flan-T5, mT5 … checkpoints) is `{'version': 3,
'optimizer': state dict}` (RefA). A leaf is an array, or the tensorstore spec of
an array in a directory beside the file, named like the parameter with dots:
`target.encoder.layers_0.attention.query.kernel`. Orbax's first layout (RefB)
has no version, and strings `PLACEHOLDER://<directory>` in place of specs.

RefA: google-research/t5x, `checkpoints.py`; RefB: google/orbax 0.1,
`pytree_checkpoint_handler.py`.
"""

from collections.abc import Mapping
import os
from typing import Any

from etils import epath
from flax import serialization
import numpy as np

from t5x import checkpoint_importer
from t5x import state_utils
from t5x import tensorstore_array

FILENAME = 'checkpoint'

# Older ones have no specs, and another optimizer state.
_OLDEST_VERSION = 2
_PLACEHOLDER = 'PLACEHOLDER://'


def read_tree(path: str) -> dict[str, Any]:
  """Returns the state dict of a T5X file with a `LazyArray` for each leaf.

  Args:
    path: the file, or the directory that holds it as `checkpoint`.

  Raises:
    ValueError: if its version is too old, or a leaf is no array.
  """
  file = epath.Path(path)
  if file.is_dir():
    file = file / FILENAME
  content = serialization.msgpack_restore(file.read_bytes())
  version = content.get('version', 0)
  if version < _OLDEST_VERSION:
    raise ValueError(
        f'{file} has version {version} of the T5X layout; versions from'
        f' {_OLDEST_VERSION} on can be read. Save it anew with the T5X that'
        ' wrote it.'
    )
  return _arrays(content['optimizer'], '', os.fspath(file.parent))


def read_placeholder_tree(directory: str) -> dict[str, Any]:
  """Returns the tree of an Orbax item of the first layout, likewise.

  Args:
    directory: the item's, which holds the file `checkpoint`.

  Raises:
    ValueError: if a leaf is no array, or its directory is missing.
  """
  file = epath.Path(directory) / FILENAME
  content = serialization.msgpack_restore(file.read_bytes())
  return _arrays(content, '', directory)


def _arrays(node: Any, name: str, directory: str) -> Any:
  """Replaces the leaves of a tree by arrays that are read on demand."""
  if state_utils.tensorstore_leaf(None, node):
    return tensorstore_array.from_spec(name, node, directory)
  if isinstance(node, Mapping):
    return {
        key: _arrays(value, f'{name}/{key}' if name else key, directory)
        for key, value in node.items()
        # Parameters without optimizer state.
        if value is not None
    }
  if isinstance(node, str) and node.startswith(_PLACEHOLDER):
    return tensorstore_array.from_directory(
        name, os.path.join(directory, node.removeprefix(_PLACEHOLDER))
    )
  if isinstance(node, (np.ndarray, np.generic, int, float)):
    array = np.asarray(node)
    return checkpoint_importer.LazyArray(
        array.shape, array.dtype, lambda: array, [name]
    )
  raise ValueError(
      f'Parameter {name} in {directory} is {node!r}, not an array.'
  )
