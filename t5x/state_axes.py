"""Mesh axes of a whole train state, from its logical axes."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec
import numpy as np

from t5x import param_patterns
from t5x.axis_rules import LogicalAxisRules
from t5x.axis_rules import check_rules
from t5x.axis_rules import to_mesh_axes
from t5x.axis_rules import update_logical_axis_rules

# Pairs of a pattern of parameter names and rules that replace others there.
TowerRules = Sequence[tuple[str, LogicalAxisRules]]


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
    tower_rules: TowerRules = (),
) -> Any:
  """Turns the logical axes of a train state into mesh axes.

  Args:
    train_state: arrays or their shapes.
    logical_axes: the state with logical axis names (or None) for arrays.
    rules: from logical names to mesh axes, in priority order.
    mesh_shape: size by mesh axis.
    tower_rules: other rules for the logical names of some parameters, and of
      their moments.

  Returns:
    The state with a PartitionSpec (or None, replicated) for each array.

  Raises:
    ValueError: if a parameter's axes have no rule or do not divide evenly, and
      the message names the parameter; or if a pattern of `tower_rules` matches
      no parameter, or two the same one.
  """
  check_rules(rules, mesh_shape)
  rules_of = _RulesOfParameter(
      rules, tower_rules, param_patterns.param_names(train_state.params)
  )
  for _, updates in tower_rules:
    check_rules(updates, mesh_shape)
  shapes = {
      path: np.shape(leaf)
      for path, leaf in jax.tree_util.tree_leaves_with_path(train_state)
  }

  def mesh_axes(path, spec):
    name, shape = _leaf_name(path), shapes.get(path)
    return to_mesh_axes(name, spec, shape, rules_of(name), mesh_shape)

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


class _RulesOfParameter:
  """Gives the rules of every array of a train state, by its name."""

  def __init__(
      self,
      rules: LogicalAxisRules,
      tower_rules: TowerRules,
      names: Sequence[str],
  ):
    self._rules, self._names = rules, frozenset(names)
    self._patterns = param_patterns.match(
        names, [pattern for pattern, _ in tower_rules], 'tower_rules'
    )
    self._rules_by_pattern = {
        pattern: update_logical_axis_rules(rules, updates)
        for pattern, updates in tower_rules
    }

  def __call__(self, name: str) -> LogicalAxisRules:
    """Returns the rules of a parameter, or of what belongs to one."""
    if not self._patterns:
      return self._rules
    pattern = self._patterns.get(self._parameter(name))
    return self._rules if pattern is None else self._rules_by_pattern[pattern]

  def _parameter(self, name: str) -> str:
    """Returns the parameter that a moment belongs to; '' for none.

    `state/param_states/0/mu/head/kernel` ends with it; Adafactor's
    `state/param_states/head/kernel/m` has a slot behind it.
    """
    for words in (name.split('/'), name.split('/')[:-1]):
      for start in range(len(words)):
        found = '/'.join(words[start:])
        if found in self._names:
          return found
    return ''


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
