"""One compiled step: memory, costs and roofline of a device, as plain data."""

from collections.abc import Sequence
import dataclasses
import pathlib
import tempfile
import time

from absl import logging
import jax

from t5x import buffer_assignment
from t5x import hlo_costs
from t5x import hlo_text
from t5x import matmul_flops
from t5x import roofline as roofline_lib
from t5x import step_programs
from t5x import topology as topology_lib

# How many of the largest arrays are named.
NUM_LARGEST = 3


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of a device's memory that a step needs.

  Attributes:
    arguments: train state and batch, or their like.
    temporaries: what it makes and drops.
    outputs: what it gives.
    aliased: outputs that take the place of arguments.
    code: the program itself; 0 if the compiler did not come to write it.
    limit: what the device has, None if not known.
  """

  arguments: int
  temporaries: int
  outputs: int
  aliased: int
  code: int
  limit: int | None

  @property
  def total(self) -> int:
    """All together."""
    return (
        self.arguments
        + self.temporaries
        + self.outputs
        - self.aliased
        + self.code
    )


@dataclasses.dataclass(frozen=True)
class LargeArray:
  """An array that takes much of a device's memory.

  Attributes:
    name: of an argument; of a temporary, where in the model it is made.
    kind: 'argument' or 'temporary'.
    shape: of an argument, the global shape and the mesh axis of each dimension;
      of a temporary, the device's part.
    device_bytes: what one device holds.
  """

  name: str
  kind: str
  shape: str
  device_bytes: int


@dataclasses.dataclass(frozen=True)
class CompiledStep:
  """What is known of a step.

  Attributes:
    name: 'train' or 'predict'.
    batch_size: examples of the global batch.
    num_devices: over how many it is partitioned.
    compile_seconds: how long the compiler took.
    refusal: what the compiler said if it found the step too large, else ''.
    memory: of a device.
    largest: the largest arrays, largest first.
    flops: matrix FLOPs of the step on all devices.
    costs: of one device.
    roofline: None for hardware without figures.
  """

  name: str
  batch_size: int
  num_devices: int
  compile_seconds: float
  refusal: str
  memory: Memory
  largest: tuple[LargeArray, ...]
  flops: matmul_flops.MatmulFlops
  costs: hlo_costs.Costs
  roofline: roofline_lib.Roofline | None

  @property
  def fits(self) -> bool:
    """Whether a device has memory enough."""
    limit = self.memory.limit
    return not self.refusal and (limit is None or self.memory.total <= limit)


def compile_step(
    program: step_programs.StepProgram,
    topology: topology_lib.Topology,
    mesh: jax.sharding.Mesh,
    *,
    memory_limit: int | None = None,
    dump_dir: str | None = None,
) -> CompiledStep:
  """Compiles a step and analyses it.

  Args:
    program: the traced step.
    topology: what to compile for.
    mesh: the mesh it was traced for.
    memory_limit: bytes that a device has, by default those of the chip.
    dump_dir: a local directory where XLA leaves the program's text and memory
      plan, None for nowhere.

  Raises:
    jax.errors.JaxRuntimeError: if the compiler fails for another reason than
      the step's size.
  """
  flops = matmul_flops.count_jaxpr(program.traced.jaxpr)
  with tempfile.TemporaryDirectory() as temporary:
    directory = pathlib.Path(dump_dir or temporary)
    logging.info('Compiling the %s step for %s.', program.name, topology.name)
    start = time.time()
    compiled, refusal = _compile(program, directory)
    seconds = time.time() - start
    text = _dumped(directory, 'after_optimizations.txt')
    plan = buffer_assignment.parse(
        _dumped(directory, 'after_optimizations-buffer-assignment.txt')
    )
  costs = hlo_costs.count(text, mesh.size)
  if memory_limit is None and topology.chip is not None:
    memory_limit = int(topology.chip.hbm_bytes)
  return CompiledStep(
      name=program.name,
      batch_size=program.batch_size,
      num_devices=mesh.size,
      compile_seconds=seconds,
      refusal=refusal,
      memory=_memory(compiled, plan, memory_limit),
      largest=_largest(program.arguments, plan, text),
      flops=flops,
      costs=costs,
      roofline=roofline_lib.estimate(costs, topology, mesh),
  )


def _compile(
    program: step_programs.StepProgram, directory: pathlib.Path
) -> tuple[jax.stages.Compiled | None, str]:
  """Compiles; a step too large gives None and what the compiler said."""
  # The plan of a program that is refused is nowhere else.
  options = {'xla_dump_to': str(directory), 'xla_dump_hlo_as_text': True}
  try:
    return program.traced.lower().compile(compiler_options=options), ''
  except jax.errors.JaxRuntimeError as error:
    message = str(error)
    if not message.startswith('RESOURCE_EXHAUSTED'):
      raise
    return None, message.splitlines()[0].removeprefix('RESOURCE_EXHAUSTED: ')


def _dumped(directory: pathlib.Path, ending: str) -> str:
  """Returns the newest file that XLA left with this ending."""
  found = sorted(
      directory.glob(f'*{ending}'), key=lambda path: path.stat().st_mtime
  )
  if not found:
    raise FileNotFoundError(
        f'XLA left no *{ending} in {directory}, but'
        f' {sorted(path.name for path in directory.iterdir())}.'
    )
  return found[-1].read_text()


def _memory(
    compiled: jax.stages.Compiled | None,
    plan: list[buffer_assignment.Allocation],
    limit: int | None,
) -> Memory:
  if compiled is None:
    totals = buffer_assignment.totals(plan)
    return Memory(**dataclasses.asdict(totals), code=0, limit=limit)
  stats = compiled.memory_analysis()
  return Memory(
      arguments=stats.argument_size_in_bytes,
      temporaries=stats.temp_size_in_bytes,
      outputs=stats.output_size_in_bytes,
      aliased=stats.alias_size_in_bytes,
      code=stats.generated_code_size_in_bytes,
      limit=limit,
  )


def _largest(
    arguments: Sequence[step_programs.Argument],
    plan: list[buffer_assignment.Allocation],
    text: str,
) -> tuple[LargeArray, ...]:
  module = hlo_text.parse(text)
  arrays = [
      LargeArray(
          a.name,
          'argument',
          f'{a.dtype}{list(a.shape)} over {a.spec}',
          a.device_bytes,
      )
      for a in arguments
  ]
  arrays += [
      LargeArray(
          _origin(v.name, module),
          'temporary',
          v.shape.split('{')[0],
          v.size,
      )
      for v in buffer_assignment.largest_temporaries(plan, NUM_LARGEST)
  ]
  arrays.sort(key=lambda array: -array.device_bytes)
  return tuple(arrays[:NUM_LARGEST])


def _origin(name: str, module: hlo_text.Module) -> str:
  """Returns where in the model an instruction comes from, or its name.

  What the compiler fuses of several may say it only inside.
  """
  for computation in module.computations.values():
    instruction = computation.instructions.get(name)
    if instruction is None:
      continue
    inside = [
        inner
        for called in instruction.called
        for inner in module.computations[called].instructions.values()
    ]
    for candidate in (instruction, *reversed(inside)):
      if candidate.op_name:
        return candidate.op_name
  return name
