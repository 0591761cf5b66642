"""Logical axes and state dicts of optax states.

An optax state is nested tuples and NamedTuples. Parts with the structure of
the parameters (first and second moments) take the parameters' axes; counters
are replicated. Frozen parameters appear as `optax.MaskedNode`, in the state's
trees and in the gradients alike.
"""

from collections.abc import Mapping
from typing import Any

from flax import serialization
from flax import traverse_util
import jax
from jax.sharding import PartitionSpec
import numpy as np
import optax

_CONTAINERS = (tuple, list, dict)


def is_masked(node: Any) -> bool:
  """Tells whether a node stands for a frozen parameter."""
  return isinstance(node, optax.MaskedNode)


def mask_frozen(tree: Any, trainable_mask: Any) -> Any:
  """Puts `optax.MaskedNode` in place of frozen leaves, whatever they hold."""
  return jax.tree.map(
      lambda trainable, leaf: leaf if trainable else optax.MaskedNode(),
      trainable_mask,
      tree,
  )


def unmask_frozen(masked: Any, frozen: Any, trainable_mask: Any) -> Any:
  """Takes trainable leaves from one tree, frozen ones from the other."""
  return jax.tree.map(
      lambda trainable, new, old: new if trainable else old,
      trainable_mask,
      masked,
      frozen,
  )


def _is_known(state: Any, state_classes: tuple[type, ...]) -> bool:
  cls = type(state)
  return (
      cls in _CONTAINERS
      or isinstance(state, (Mapping, *state_classes))
      or cls.__module__.partition('.')[0] == 'optax'
  )


def _rebuild(state: Any, children: list[Any]) -> Any:
  """Makes a container like `state` of new children."""
  if hasattr(state, '_fields'):
    return type(state)(*children)
  if isinstance(state, Mapping):
    return type(state)(dict(zip(state, children)))
  return type(state)(children)


def derive_logical_axes(
    state: Any,
    params: Any,
    param_axes: Any,
    state_classes: tuple[type, ...] = (),
) -> Any:
  """Gives every array of an optax state its logical axes.

  Args:
    state: the optax state, arrays or shapes.
    params: the parameters, arrays or shapes.
    param_axes: their logical axes, a PartitionSpec (or None) each.
    state_classes: state classes of one's own to walk through.

  Returns:
    The state with axes: a part that has the structure of the parameters takes
    theirs, where shapes agree; other arrays get None (replicated).

  Raises:
    ValueError: for a state class that is neither optax's nor listed.
  """
  params_def = jax.tree.structure(params)
  param_leaves = jax.tree.leaves(params)
  axes_leaves = params_def.flatten_up_to(param_axes)

  def param_shaped(part: Any) -> Any:
    axes = [
        leaf
        if is_masked(leaf)
        else (spec if np.shape(leaf) == np.shape(param) else None)
        for leaf, param, spec in zip(
            params_def.flatten_up_to(part), param_leaves, axes_leaves
        )
    ]
    return jax.tree.unflatten(params_def, axes)

  def derive(part: Any) -> Any:
    if part is None or is_masked(part):
      return part
    if jax.tree.structure(part, is_leaf=is_masked) == params_def:
      return param_shaped(part)
    if isinstance(part, (jax.Array, np.ndarray, jax.ShapeDtypeStruct)):
      return None
    if isinstance(part, (int, float, np.generic)):
      return None
    if not _is_known(part, state_classes):
      raise ValueError(
          f'Cannot derive logical axes for {type(part).__module__}.'
          f'{type(part).__name__}, which is not a state class of optax. List it'
          ' in the `state_classes` of the OptaxWrapper subclass.'
      )
    children = part.values() if isinstance(part, Mapping) else part
    return _rebuild(part, [derive(child) for child in children])

  return derive(state)


def to_state_dict(state: Any) -> dict[str, Any]:
  """Returns a state as nested dicts, without its empty parts.

  Checkpoints cannot hold `EmptyState()` and `MaskedNode()`, which carry no
  number; `from_state_dict` makes them again.
  """
  full = serialization.to_state_dict(state)
  if not isinstance(full, Mapping):
    return full
  flat = traverse_util.flatten_dict(full, keep_empty_nodes=False)
  return traverse_util.unflatten_dict(flat)


def from_state_dict(state: Any, state_dict: Mapping[str, Any]) -> Any:
  """Fills a state from nested dicts, and makes its empty parts again.

  Args:
    state: a state of the wanted structure.
    state_dict: as from `to_state_dict`.

  Returns:
    The state with the values of `state_dict`.

  Raises:
    ValueError: if values are missing, or left over.
  """
  full = serialization.to_state_dict(state)
  if not isinstance(full, Mapping):
    return state_dict
  flat = traverse_util.flatten_dict(full, keep_empty_nodes=True)
  values = traverse_util.flatten_dict(state_dict)
  wanted = {k for k, v in flat.items() if v is not traverse_util.empty_node}
  if wanted != set(values):
    missing = sorted('/'.join(key) for key in wanted - set(values))
    extra = sorted('/'.join(key) for key in set(values) - wanted)
    raise ValueError(
        'The optimizer state to restore does not fit: missing'
        f' {missing[:5]} ({len(missing)}), not wanted {extra[:5]}'
        f' ({len(extra)}). The run must use the optimizer of the checkpoint.'
    )
  return serialization.from_state_dict(
      state, traverse_util.unflatten_dict({**flat, **values})
  )


def is_logical_axes(node: Any) -> bool:
  """Tells whether a node of an axes tree is a leaf."""
  return node is None or isinstance(node, PartitionSpec)
