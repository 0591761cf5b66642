"""Reading the state of a checkpoint of any layout as one tree of lazy arrays."""

import os
from typing import Any

from etils import epath

from t5x import checkpoint_utils
from t5x import legacy_state
from t5x import stored_state

STATE_ITEM = 'state'


def read_tree(path: str) -> dict[str, Any]:
  """Returns the stored state dict with a `LazyArray` for each leaf.

  Args:
    path: a `checkpoint_<step>` directory, or the file of T5X's legacy layout.

  Raises:
    FileNotFoundError: if there is no checkpoint.
    ValueError: if it is a TensorFlow checkpoint.
  """
  kind = checkpoint_utils.detect_checkpoint_type(path)
  if kind is checkpoint_utils.CheckpointTypes.T5X:
    return legacy_state.read_tree(path)
  if kind is checkpoint_utils.CheckpointTypes.T5X_TF:
    raise ValueError(
        f'{path} is a TensorFlow checkpoint, which is not read. The public'
        ' models are there in the T5X layout as well.'
    )
  directory = os.path.join(path, STATE_ITEM)
  if not epath.Path(directory).exists():
    directory = path  # a tree that was saved alone
  has = {child.name for child in epath.Path(directory).iterdir()}
  if legacy_state.FILENAME in has and '_METADATA' not in has:
    return legacy_state.read_placeholder_tree(directory)
  return stored_state.read_tree(directory)
