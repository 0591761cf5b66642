"""`model-info.txt`: where every variable of a run lies, and how large it is.

First stands T5X's list of variables, then a table of all arrays with their
bytes on a device, then the mesh and the sums by part of the model, so that the
end of the file answers most questions.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from absl import logging
from etils import epath
import jax
import numpy as np

from t5x import mesh_description
from t5x import placement


def log_model_info(
    log_file: str | None, full_train_state: Any, partitioner: Any
) -> None:
  """Writes the parameters and the optimizer state to a file; logs the sums.

  Args:
    log_file: where to write on process 0, or None to log everything instead.
    full_train_state: a train state of shapes (or arrays).
    partitioner: gives logical axes and mesh axes of the state.
  """
  if jax.process_index() != 0:
    return
  rows = placement.placements(full_train_state, partitioner)
  listing = [
      *model_info_lines(full_train_state, partitioner),
      '',
      *placement.table_lines(rows),
      '',
  ]
  sums = placement.part_lines(rows)
  for line in sums if log_file else [*listing, *sums]:
    logging.info('%s', line)
  if log_file:
    path = epath.Path(log_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    mesh = mesh_description.mesh_lines(
        partitioner.mesh, partitioner.logical_axis_rules
    )
    path.write_text('\n'.join([*listing, *mesh, '', *sums]) + '\n')
    logging.info('Every array with its axes: %s', log_file)


def model_info_lines(train_state: Any, partitioner: Any) -> Iterator[str]:
  """Yields the lines: parameters, their number, an empty line, the state."""
  state = train_state.state_dict()
  axes = partitioner.get_logical_axes(train_state).state_dict()
  specs = partitioner.get_mesh_axes(train_state).state_dict()
  yield from _variable_lines(state, axes, specs, 'target')
  count = sum(int(np.prod(x.shape)) for x in _leaves(state['target']).values())
  yield f'Total number of parameters: {count}'
  yield ''
  yield from _variable_lines(state, axes, specs, 'state')


def _variable_lines(
    state: Mapping, axes: Mapping, specs: Mapping, part: str
) -> Iterator[str]:
  names = placement.flat(state.get(part, {}))
  axes, specs = placement.flat(axes.get(part, {})), placement.flat(
      specs.get(part, {})
  )
  for name, leaf in names.items():
    if leaf is None:
      yield f'Variable {name} None'
      continue
    shape = tuple(np.shape(leaf))
    leaf_axes = axes.get(name)
    if leaf_axes is None:
      shown = str(shape)
    else:
      shown = ', '.join(f'{axis}={dim}' for axis, dim in zip(leaf_axes, shape))
      shown = f'({shown})'
    spec = specs.get(name)
    yield (
        f'Variable {name} size {int(np.prod(shape))} shape {shown} '
        f'partition spec {None if spec is None else tuple(spec)}'
    )


def parameter_counts(
    train_state: Any, trainable: Any
) -> dict[str, tuple[int, int, int]]:
  """Counts parameters by top-level module (tower).

  Args:
    train_state: a train state of shapes.
    trainable: a tree of bool like the parameters, True where they train.

  Returns:
    module name -> (trainable, frozen, bytes), in the order of the tree.
  """
  counts = {}
  trains = placement.flat(trainable)
  for name, leaf in _leaves(train_state.state_dict()['target']).items():
    tower = name.split('/', 1)[0]
    on, off, size = counts.get(tower, (0, 0, 0))
    number = int(np.prod(leaf.shape))
    if trains[name]:
      on += number
    else:
      off += number
    counts[tower] = (on, off, size + number * np.dtype(leaf.dtype).itemsize)
  return counts


def _leaves(tree: Any) -> dict[str, Any]:
  return {k: v for k, v in placement.flat(tree).items() if v is not None}
