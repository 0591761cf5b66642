"""Mesh axes of a whole train state, from its logical axes."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec
import numpy as np

from t5x.axis_rules import LogicalAxisRules
from t5x.axis_rules import check_rules
from t5x.axis_rules import to_mesh_axes


class AxisNames(tuple):
  """Logical axis names of one array: a tuple that JAX treats as one leaf."""

  def __new__(cls, *names: str | None):
    """Takes the names one by one."""
    return super().__new__(cls, names)

  def __repr__(self) -> str:
    return f'AxisNames{tuple(self)!r}'


def is_spec(node: Any) -> bool:
  """Tells whether a node of a tree of axes is a leaf."""
  return node is None or isinstance(node, (PartitionSpec, AxisNames))


def mesh_axes_of_state(
    train_state: Any,
    logical_axes: Any,
    rules: LogicalAxisRules,
    mesh_shape: Mapping[str, int],
) -> Any:
  """Turns the logical axes of a train state into mesh axes.

  Args:
    train_state: arrays or their shapes.
    logical_axes: the state with logical axis names (or None) for arrays.
    rules: from logical names to mesh axes, in priority order.
    mesh_shape: size by mesh axis.

  Returns:
    The state with a PartitionSpec (or None, replicated) for each array.

  Raises:
    ValueError: if a parameter's axes have no rule or do not divide evenly; the
      message names the parameter.
  """
  check_rules(rules, mesh_shape)
  shapes = {
      path: np.shape(leaf)
      for path, leaf in jax.tree_util.tree_leaves_with_path(train_state)
  }

  def mesh_axes(path, spec):
    name, shape = _leaf_name(path), shapes.get(path)
    return to_mesh_axes(name, spec, shape, rules, mesh_shape)

  # Parameters first, so that an error names the parameter and not a moment.
  prefix = _params_path(train_state)
  jax.tree_util.tree_map_with_path(
      lambda path, spec: mesh_axes((*prefix, *path), spec),
      logical_axes.params,
      is_leaf=is_spec,
  )
  axes = jax.tree_util.tree_map_with_path(
      mesh_axes, logical_axes, is_leaf=is_spec
  )
  return _complete_mutables(axes, train_state)


def _params_path(train_state: Any) -> tuple[Any, ...]:
  """Returns the key path of `train_state.params` inside the state."""
  params = train_state.params
  key = jax.tree_util.GetAttrKey
  optimizer = getattr(train_state, '_optimizer', None)
  if optimizer is not None and optimizer.target is params:
    return key('_optimizer'), key('target')
  return (key('params'),)


def _leaf_name(path: Sequence[Any]) -> str:
  """Names a leaf of a train state: a parameter by its own path."""
  name = jax.tree_util.keystr(tuple(path), simple=True, separator='/')
  for prefix in ('_optimizer/target/', 'params/', '_optimizer/'):
    if name.startswith(prefix):
      return name.removeprefix(prefix)
  return name


def _complete_mutables(axes: Any, train_state: Any) -> Any:
  """Gives mutable collections without axis names None for each leaf."""
  mutables = getattr(train_state, 'flax_mutables', None)
  if not mutables:
    return axes
  known = axes.flax_mutables
  missing = {
      name: jax.tree.map(lambda _: None, collection)
      for name, collection in mutables.items()
      if name not in known
  }
  return axes.replace_flax_mutables({**known, **missing})
