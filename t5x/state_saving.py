"""What of a train state is written: transformed, cast, with its mesh axes."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax.numpy as jnp

from t5x import state_matching
from t5x import stored_state


@dataclasses.dataclass(frozen=True)
class ParameterInfo:
  """What save transformation functions learn about a leaf.

  Attributes:
    name: its path, joined by '/'.
    shape: its global shape.
    dtype: its dtype in the train state.
    mesh_axes: its partition spec, None if replicated.
  """

  name: str
  shape: tuple[int, ...]
  dtype: Any
  mesh_axes: Any


def get_leaves(
    state: Mapping[str, Any],
    mesh_axes: Mapping[str, Any],
    state_transformation_fns: Sequence[Any] = (),
    save_dtype: Any = None,
) -> tuple[dict[stored_state.Path, Any], dict[stored_state.Path, Any]]:
  """Returns the arrays to write and what is known about them.

  Args:
    state: the state dict of a train state.
    mesh_axes: its partition specs.
    state_transformation_fns: `(state, infos) -> (state, infos)`, applied in
      order.
    save_dtype: dtype to which floating parameters are cast, None for theirs.

  Returns:
    The arrays and the `ParameterInfo`s, each by path.
  """
  specs = stored_state.flatten(mesh_axes)
  infos = state_matching.nest(
      {
          path: ParameterInfo(
              '/'.join(path), tuple(leaf.shape), leaf.dtype, specs.get(path)
          )
          for path, leaf in stored_state.flatten(state).items()
      }
  )
  for fn in state_transformation_fns:
    state, infos = fn(state, infos)
  leaves = {
      path: _cast(path, leaf, save_dtype)
      for path, leaf in stored_state.flatten(state).items()
  }
  return leaves, stored_state.flatten(infos)


def _cast(path: stored_state.Path, leaf: Any, save_dtype: Any) -> Any:
  is_parameter = path[0] == 'target' and save_dtype is not None
  if is_parameter and jnp.issubdtype(leaf.dtype, jnp.floating):
    return leaf.astype(save_dtype)
  return leaf
