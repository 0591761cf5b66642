"""Where a train state lies: each array's axes, and bytes on every device.

An array whose mesh axes leave out some of the mesh is held several times: on a
mesh of 4 x 2, one cut over `model` alone has 4 copies.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import math
from typing import Any

from flax import traverse_util
import numpy as np

from t5x import axis_rules
from t5x import text_table

_MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Placement:
  """One array of a train state.

  Attributes:
    name: its path, `target/…` for parameters.
    shape: global.
    dtype: its name.
    logical_axes: a logical name or None a dimension; None if not known.
    mesh_axes: a mesh axis, several, or None a dimension; None if replicated.
    num_bytes: of the whole array.
    device_bytes: of the part that a device holds.
    copies: how often the mesh holds each value.
  """

  name: str
  shape: tuple[int, ...]
  dtype: str
  logical_axes: tuple[Any, ...] | None
  mesh_axes: tuple[Any, ...] | None
  num_bytes: int
  device_bytes: int
  copies: int

  @property
  def part(self) -> str:
    """The part of the model it belongs to, or of the state."""
    kind, *rest = self.name.split('/')
    if kind == 'target':
      return rest[0]
    if kind == 'state':
      return 'optimizer state'
    return kind


def placements(train_state: Any, partitioner: Any) -> list[Placement]:
  """Lists the arrays of a train state, parameters first.

  Args:
    train_state: a train state of shapes (or arrays).
    partitioner: gives logical axes and mesh axes of the state.
  """
  return placements_on(
      train_state,
      partitioner.get_logical_axes(train_state),
      partitioner.get_mesh_axes(train_state),
      dict(partitioner.mesh.shape),
  )


def placements_on(
    train_state: Any,
    logical_axes: Any,
    mesh_axes: Any,
    mesh_shape: Mapping[str, int],
) -> list[Placement]:
  """Lists the arrays of a train state on a mesh that need not be there.

  Args:
    train_state: a train state of shapes (or arrays).
    logical_axes: the state with logical axis names (or None) for arrays.
    mesh_axes: the state with mesh axes (or None) for arrays.
    mesh_shape: size by mesh axis.
  """
  axes = flat(logical_axes.state_dict())
  specs = flat(mesh_axes.state_dict())
  rows = []
  for name, leaf in flat(train_state.state_dict()).items():
    if leaf is None:
      continue
    shape, dtype = tuple(np.shape(leaf)), np.dtype(leaf.dtype)
    spec = specs.get(name)
    parts = math.prod(
        mesh_shape[axis]
        for entry in spec or ()
        for axis in axis_rules.mesh_axis_names(entry)
    )
    size = math.prod(shape) * dtype.itemsize
    logical = axes.get(name)
    rows.append(
        Placement(
            name=name,
            shape=shape,
            dtype=dtype.name,
            logical_axes=None if logical is None else tuple(logical),
            mesh_axes=None if spec is None else tuple(spec),
            num_bytes=size,
            device_bytes=size // parts,
            copies=math.prod(mesh_shape.values()) // parts,
        )
    )
  return sorted(rows, key=lambda row: not row.name.startswith('target/'))


def part_lines(rows: Sequence[Placement]) -> list[str]:
  """Sums the arrays of each part of the model, and of the state.

  Args:
    rows: as from `placements`.

  Returns:
    Lines of a table; `whole` is what every device holds all of.
  """
  parts: dict[str, list[Placement]] = {}
  for row in rows:
    parts.setdefault(row.part, []).append(row)
  table = [('part', 'values', 'MiB', 'MiB a device', 'of it whole')]
  table += [_sums(name, part) for name, part in parts.items()]
  table.append(_sums('total', rows))
  return text_table.lines(table, right=range(1, 5))


def _sums(name: str, rows: Sequence[Placement]) -> tuple[str, ...]:
  sizes = (
      sum(row.num_bytes for row in rows),
      sum(row.device_bytes for row in rows),
      sum(r.device_bytes for r in rows if r.device_bytes == r.num_bytes),
  )
  values = sum(math.prod(row.shape) for row in rows)
  return name, f'{values:,}', *(f'{size / _MIB:,.2f}' for size in sizes)


def table_lines(rows: Sequence[Placement]) -> Iterator[str]:
  """Yields a table of all arrays, a line each."""
  table = [
      (
          'array',
          'type',
          'shape',
          'logical axes',
          'mesh axes',
          'bytes a device',
          'copies',
      )
  ]
  for row in rows:
    table.append(
        (
            row.name,
            row.dtype,
            'x'.join(map(str, row.shape)) or 'scalar',
            _axes(row.logical_axes),
            _axes(row.mesh_axes),
            f'{row.device_bytes:,}',
            f'{row.copies:,}',
        )
    )
  yield from text_table.lines(table, right=(5, 6))


def _axes(axes: Sequence[Any] | None) -> str:
  if axes is None:
    return '-'
  return ', '.join(
      '+'.join(axis_rules.mesh_axis_names(axis)) or '-' for axis in axes
  )


def flat(tree: Any) -> dict[str, Any]:
  """Flattens nested mappings of any kind; keys are joined with slashes."""
  if not isinstance(tree, Mapping):
    return {}
  return traverse_util.flatten_dict(_plain(tree), sep='/')


def _plain(tree: Any) -> Any:
  """Returns the tree with plain dicts for any kind of mapping."""
  if isinstance(tree, Mapping):
    return {key: _plain(value) for key, value in tree.items()}
  return tree
