"""The smallest pod of each kind that a run's train state fits, by arithmetic.

What a chip holds are its parts of the parameters, of the optimizer's state and
of the gradients of what trains, cut as `gin/mesh` cuts them. What a step makes
beside is taken to be `room`; only `t5x.precompile` knows it. So a pod that is
too small here is too small, and one that is not may still be.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from typing import Any

from pixel_llm import mesh_choice
from pixel_llm.mesh_choice import MeshChoice
from pixel_llm.pretrained import target_model
from t5x import chips
from t5x import text_table

_GIB = 2**30

# What the smallest full-size step takes beside its state: refseg's, of one image
# a chip (docs/pods/t5_refseg.v5e-8x8.train.json).
ROOM_GIB = 3.0

# Parameters that are cut over the batch's chips need its rules for small parts.
_FSDP_FILE = 'gin/mesh/fsdp.gin'

_GIN_STATE = """
from __gin__ import dynamic_registration
from pixel_llm import smallest_pods
from t5x import partitioning

smallest_pods.run_state:
  model = %MODEL
  task_feature_lengths = %TASK_FEATURE_LENGTHS
  batch_size = %BATCH_SIZE
  partitioner = @partitioning.PjitPartitioner()
"""

_TARGET = 'target/'

# Slices that are sold, in chips along each dimension (RefA of `t5x.chips`).
_SIZES_2D = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_SIZES_3D = (
    '2x2x1',
    '2x2x2',
    '2x2x4',
    '2x4x4',
    '4x4x4',
    '4x4x8',
    '4x8x8',
    '8x8x8',
)
SIZES = {'v5e': _SIZES_2D, 'v6e': _SIZES_2D, 'v4': _SIZES_3D, 'v5p': _SIZES_3D}

# Ways to cut a run, those that exchange least first: chips that share a copy of
# the model, and whether parameters are cut over the batch's chips too (2).
_CUTS = ((1, 1), (2, 1), (1, 2), (2, 2))


@dataclasses.dataclass(frozen=True)
class RunState:
  """A run's train state, abstractly.

  Attributes:
    state: of shapes.
    partitioner: with the rules of `gin/mesh/fsdp.gin`.
    batch_size: examples of a step.
  """

  state: Any
  partitioner: Any
  batch_size: int


@dataclasses.dataclass(frozen=True)
class ChipBytes:
  """What a chip holds throughout a step, in bytes.

  Attributes:
    parameters: trained and frozen.
    optimizer: its state, and what else the train state holds.
    gradients: of the trained parameters.
  """

  parameters: int
  optimizer: int
  gradients: int

  @property
  def total(self) -> int:
    """All together."""
    return self.parameters + self.optimizer + self.gradients


@dataclasses.dataclass(frozen=True)
class Smallest:
  """The answer for a kind of chip.

  Attributes:
    kind: 'v5e', …
    topology: the smallest that could hold the run; None for none.
    choice: how it is cut there: of what fits, the one that exchanges least, one
      image at a time.
    chip_bytes: what a chip holds then.
    reason: why the next smaller one cannot; without any, why the largest cannot.
  """

  kind: str
  topology: str | None
  choice: MeshChoice | None
  chip_bytes: ChipBytes | None
  reason: str


def run_state(
    model: Any,
    task_feature_lengths: Mapping[str, Any],
    batch_size: int,
    partitioner: Any,
) -> RunState:
  """Builds a run's train state abstractly: no array is made.

  Args:
    model: a `t5x.models.BaseModel`.
    task_feature_lengths: length or shape of each task feature.
    batch_size: examples of a batch.
    partitioner: a `t5x.partitioning.PjitPartitioner`.

  Raises:
    ValueError: if the lengths do not tell the shape of every feature.
  """
  spec = target_model.batch_spec(model, task_feature_lengths, batch_size)
  state = target_model.state_shapes(model, spec)
  return RunState(state, partitioner, batch_size)


def state_of_gin(
    gin_files: Sequence[str], gin_bindings: Sequence[str] = ()
) -> RunState:
  """Reads a run's gin files, with `gin/mesh/fsdp.gin` behind them.

  The gin config of this process is empty then.

  Args:
    gin_files: paths of gin files.
    gin_bindings: gin statements, applied after the files.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if gin cannot read the files, or they build no model.
  """
  return target_model.call_with_gin(
      run_state, _GIN_STATE, [*gin_files, _FSDP_FILE], gin_bindings
  )


def chip_bytes(
    run: RunState, num_chips: int, num_partitions: int, parameter_dims: int
) -> ChipBytes:
  """Returns what a chip holds of a run's state.

  Args:
    run: the run.
    num_chips: of the pod.
    num_partitions: chips that share a copy of the model.
    parameter_dims: 2 cuts parameters over the chips of the batch too.

  Raises:
    ValueError: if something does not divide.
  """
  from t5x import axis_rules
  from t5x import placement
  from t5x import state_axes

  data, rest = divmod(num_chips, num_partitions)
  if rest or run.batch_size % data:
    raise ValueError(
        f'{run.batch_size} images do not divide over'
        f' {num_chips}/{num_partitions} copies of the model'
    )
  rules = run.partitioner.logical_axis_rules
  if parameter_dims == 1:
    rules = axis_rules.update_logical_axis_rules(rules, (('embed', None),))
  mesh_shape = {'data': data, 'model': num_partitions}
  logical = run.partitioner.get_logical_axes(run.state)
  specs = state_axes.mesh_axes_of_state(
      run.state, logical, rules, mesh_shape, run.partitioner.tower_rules
  )
  rows = placement.placements_on(run.state, logical, specs, mesh_shape)
  held = {row.name: row.device_bytes for row in rows}
  parameters = {n: size for n, size in held.items() if n.startswith(_TARGET)}
  trains = placement.flat(run.state.trainable_mask())
  return ChipBytes(
      parameters=sum(parameters.values()),
      optimizer=sum(held.values()) - sum(parameters.values()),
      gradients=sum(
          parameters[_TARGET + n] for n, yes in trains.items() if yes
      ),
  )


def smallest(run: RunState, kind: str, room: int) -> Smallest:
  """Finds the smallest slice of a kind that could hold a run.

  Args:
    run: the run.
    kind: of `SIZES`.
    room: bytes of a chip that a step takes beside its state and gradients.
  """
  limit = int(chips.TPUS[kind].per_device().hbm_bytes)
  reasons = ['it is the smallest there is']
  for size in SIZES[kind]:
    topology = f'{kind}:{size}'
    num_chips = mesh_choice.num_devices(topology)
    if num_chips > run.batch_size * max(partitions for partitions, _ in _CUTS):
      reasons = [*reasons[1:], f'{topology} leaves chips without an image']
      break
    uneven, too_large = [], []
    for num_partitions, parameter_dims in _CUTS:
      try:
        held = chip_bytes(run, num_chips, num_partitions, parameter_dims)
      except ValueError as error:
        uneven.append(str(error))
        continue
      if held.total + room <= limit:
        choice = MeshChoice(
            num_partitions=num_partitions,
            parameter_dims=parameter_dims,
            num_microbatches=run.batch_size * num_partitions // num_chips,
            remat_policy='full',
        )
        return Smallest(kind, topology, choice, held, reasons[-1])
      too_large.append(
          f'{held.total / _GIB:.1f} GiB of state and {room / _GIB:.1f} for the'
          f' step are more than {limit / _GIB:.0f}'
      )
    reasons.append(f'{topology}: {(too_large or uneven)[-1]}')
  return Smallest(kind, None, None, None, '; '.join(reasons[-2:]))


def lines(run: RunState, room: int) -> Iterator[str]:
  """Yields a table of the smallest slices, and why no smaller one would do.

  Args:
    run: the run.
    room: see `smallest`.
  """
  answers = [smallest(run, kind, room) for kind in SIZES]
  table = [_COLUMNS, *map(_row, answers)]
  yield from text_table.lines(table, right=range(1, len(_COLUMNS)))
  yield 'Cut with, behind the run:'
  for answer in answers:
    yield f'  {answer.kind:4} {_flags(answer)}'
  yield 'Why not smaller:'
  for answer in answers:
    yield f'  {answer.kind:4} {answer.reason}.'
  yield (
      f'GiB of a chip, by arithmetic; {room / _GIB:.1f} are kept for what a step'
      ' makes. t5x.precompile tells whether it fits.'
  )


_COLUMNS = ('smallest', 'parameters', 'optimizer', 'gradients', 'of')


def _row(answer: Smallest) -> Sequence[str]:
  limit = f'{chips.TPUS[answer.kind].per_device().hbm_bytes / _GIB:.0f}'
  if answer.chip_bytes is None:
    return (f'{answer.kind}: none', '', '', '', limit)
  held = answer.chip_bytes
  sizes = (held.parameters, held.optimizer, held.gradients)
  return answer.topology, *(f'{size / _GIB:.1f}' for size in sizes), limit


def _flags(answer: Smallest) -> str:
  if answer.choice is None:
    return 'no way that was tried'
  cuts_all = answer.choice.parameter_dims == 2
  file = _FSDP_FILE if cuts_all else mesh_choice.MESH_FILE
  return f'--gin_file={file} {answer.choice.flags()}'
