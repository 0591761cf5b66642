"""Rules from logical axis names (`embed`, `mlp`, …) to mesh axes.

A rule is a pair (logical name, mesh axis or None). Rules stand in priority
order: an axis takes its first rule whose mesh axis is still free in that array,
so a second rule for the same name is its fallback.

Example: rules (`mlp` → `model`, `embed` → `model`, `embed` → `data`) turn an
array (`embed`, `mlp`) into (`data`, `model`), an array (`embed`,) into
(`model`,).
"""

from collections.abc import Mapping, Sequence
import difflib
import math

from flax.linen import spmd
from jax.sharding import PartitionSpec

MeshAxis = str | tuple[str, ...] | None
LogicalAxisRules = Sequence[tuple[str, MeshAxis]]

_REPLICATED = (
    'relpos_buckets',
    'abspos_buckets',
    'length',
    'layers',
    'stack',
    'mlp_activations',
)
# (activation dims, parameter dims): rules for `embed` and whether they rank
# after `joined_kv`, so that the other axis of a matrix chooses first.
_EMBED_RULES = {
    (1, 1): ((None,), False),
    (2, 1): (('model',), True),
    (1, 2): (('data',), True),
    (2, 2): (('model', 'data'), True),
}


def standard_logical_axis_rules(
    activation_partitioning_dims: int = 1,
    parameter_partitioning_dims: int = 1,
    additional_rules: LogicalAxisRules | None = None,
) -> list[tuple[str, MeshAxis]]:
  """Returns the rules for T5-like models.

  Args:
    activation_partitioning_dims: 1 shards activations by batch, 2 shards their
      embedding over `model` as well.
    parameter_partitioning_dims: 1 shards parameters over `model`, 2 over `data`
      as well (a copy is gathered when used: less memory, more traffic).
    additional_rules: rules for further names, ranked last.

  Returns:
    The rules in priority order.

  Raises:
    ValueError: if a number of dimensions is neither 1 nor 2.
  """
  key = (activation_partitioning_dims, parameter_partitioning_dims)
  if key not in _EMBED_RULES:
    raise ValueError(
        'activation_partitioning_dims and parameter_partitioning_dims must be'
        f' 1 or 2, got {key}.'
    )
  embed_axes, embed_last = _EMBED_RULES[key]
  embed = [('embed', axis) for axis in embed_axes]
  rules: list[tuple[str, MeshAxis]] = [('batch', 'data'), ('vocab', 'model')]
  rules += [] if embed_last else embed
  rules += [('mlp', 'model'), ('heads', 'model')]
  rules += [('kv', None), ('joined_kv', 'model')]
  rules += embed if embed_last else []
  rules += [(name, None) for name in _REPLICATED]
  rules += [(name, axis) for name, axis in additional_rules or ()]
  return rules


def update_logical_axis_rules(
    rules: LogicalAxisRules, updates: LogicalAxisRules
) -> tuple[tuple[str, MeshAxis], ...]:
  """Replaces all rules of a name where its first one stands; others go last."""
  by_name: dict[str, list[tuple[str, MeshAxis]]] = {}
  for name, axis in updates:
    by_name.setdefault(name, []).append((name, axis))
  known, result = set(), []
  for name, axis in rules:
    if name not in by_name:
      result.append((name, axis))
    elif name not in known:
      result += by_name[name]
    known.add(name)
  result += [rule for rule in updates if rule[0] not in known]
  return tuple(result)


def mesh_axis_names(axis: MeshAxis) -> tuple[str, ...]:
  """Returns the mesh axes of one entry of a rule or a spec, in order."""
  if axis is None:
    return ()
  return (axis,) if isinstance(axis, str) else tuple(axis)


def check_rules(rules: LogicalAxisRules, mesh_shape: Mapping[str, int]) -> None:
  """Raises ValueError if a rule names an axis that the mesh does not have."""
  for name, axis in rules:
    unknown = set(mesh_axis_names(axis)) - set(mesh_shape)
    if unknown:
      raise ValueError(
          f'The rule ({name!r}, {axis!r}) names no axis of this mesh; the mesh'
          f' has {dict(mesh_shape)}.'
      )


def to_mesh_axes(
    name: str,
    logical_axes: PartitionSpec | None,
    shape: Sequence[int] | None,
    rules: LogicalAxisRules,
    mesh_shape: Mapping[str, int],
) -> PartitionSpec | None:
  """Turns the logical axes of one array into mesh axes.

  Args:
    name: the array's name in the train state, for errors.
    logical_axes: a logical name or None per dimension, None = replicated.
    shape: the array's shape, if known, to check that it divides evenly.
    rules: see the module's documentation.
    mesh_shape: size by mesh axis.

  Returns:
    A mesh axis (or a tuple of them, or None) per dimension; None if
    `logical_axes` is None.

  Raises:
    ValueError: if a name has no rule, the rank differs, a name appears twice,
      or a dimension does not divide by its mesh axis.
  """
  if logical_axes is None:
    return None
  axes = tuple(logical_axes)
  if shape is not None and len(axes) != len(shape):
    raise ValueError(
        f'{name}: {len(axes)} axis names {axes} for an array of shape'
        f' {tuple(shape)}. Give one name (or None) per dimension.'
    )
  known = dict.fromkeys(rule_name for rule_name, _ in rules)
  for axis in axes:
    if axis is not None and axis not in known:
      close = difflib.get_close_matches(str(axis), known, n=3)
      raise ValueError(
          f'{name}: no rule for the logical axis {axis!r} in {axes}; nearest'
          f' known names: {close or sorted(known)}. Add a rule such as'
          f' ({axis!r}, None) to additional_rules.'
      )
  try:
    spec = spmd.logical_to_mesh_axes(axes, tuple(rules))
  except ValueError as error:
    raise ValueError(f'{name}: cannot place axes {axes}: {error}') from error
  for axis, size, mesh_axis in zip(axes, shape or (), spec):
    parts = math.prod(mesh_shape[part] for part in mesh_axis_names(mesh_axis))
    if size % parts:
      raise ValueError(
          f'{name}: axis {axis!r} of size {size} does not divide over the'
          f' {parts} parts of mesh axis {mesh_axis!r}. Pad it to'
          f' {-(-size // parts) * parts}, add the rule ({axis!r}, None), for'
          ' this part of the model alone in PjitPartitioner.tower_rules, or use'
          ' fewer partitions.'
      )
  return spec
