"""Checkpoints: where they lie, the manager of a run, and reading one alone."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from t5x import checkpoint_reader
from t5x import stored_state
from t5x.checkpoint_dirs import all_steps
from t5x.checkpoint_dirs import find_checkpoint
from t5x.checkpoint_dirs import get_checkpoint_dir
from t5x.checkpoint_dirs import get_checkpoint_prefix
from t5x.checkpoint_dirs import get_step_from_checkpoint_dir
from t5x.checkpoint_dirs import latest_step
from t5x.dataset_item import DatasetCheckpointHandler
from t5x.legacy_checkpointer import Checkpointer
from t5x.legacy_checkpointer import SaveBestCheckpointer
from t5x.orbax_manager import OrbaxCheckpointManagerInterface

__all__ = (
    'Checkpointer',
    'DatasetCheckpointHandler',
    'OrbaxCheckpointManagerInterface',
    'SaveBestCheckpointer',
    'all_steps',
    'find_checkpoint',
    'get_checkpoint_dir',
    'get_checkpoint_prefix',
    'get_step_from_checkpoint_dir',
    'latest_step',
    'load_t5x_checkpoint',
)


def load_t5x_checkpoint(
    path: str,
    step: int | None = None,
    state_transformation_fns: Sequence[Any] = (),
    remap: bool = True,
    restore_dtype: Any = None,
    lazy_parameters: bool = False,
) -> dict[str, Any]:
  """Reads a checkpoint without a model.

  Args:
    path: a run's directory, a `checkpoint_<step>` directory, or the file of
      T5X's legacy layout.
    step: the step to read of a run's directory, None for its last.
    state_transformation_fns: `(stored, None) -> stored`, applied in order to
      the tree before anything is read.
    remap: whether they are applied.
    restore_dtype: dtype to which floating parameters are cast, None for the
      stored one.
    lazy_parameters: whether leaves stay `LazyArray`s, read on `get()`.

  Returns:
    The state dict: `target`, `state` and what else was saved, nested dicts of
    numpy arrays.

  Raises:
    FileNotFoundError: if there is no checkpoint.
    ValueError: if it has neither Orbax's layout nor T5X's.
  """
  state = checkpoint_reader.read_tree(find_checkpoint(path, step))
  if remap:
    for fn in state_transformation_fns:
      state = fn(state, None)
  if restore_dtype is not None and 'target' in state:
    state['target'] = jax.tree.map(
        lambda leaf: leaf.astype(restore_dtype)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
        else leaf,
        state['target'],
    )
  return state if lazy_parameters else stored_state.get_all(state)
