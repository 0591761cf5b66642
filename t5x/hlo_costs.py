"""What one run of a compiled program costs a device, loops multiplied out.

Counted are matrix FLOPs, bytes between main memory (HBM) and the chip, and
collectives. XLA's cost analysis counts the body of a loop once; here a body
counts as often as the loop runs, nested loops multiply.

Bytes are those of operands and results of every instruction that is not fused
into another. A fusion that only slices an operand reads the slice, and one
that updates a slice in place writes the slice: a scanned stack of weights is
read once a step, not once a layer. Arrays that the compiler keeps in a chip's
scratchpad cost nothing.
"""

from collections.abc import Iterable
import dataclasses
import functools

from t5x import hlo_flops
from t5x import hlo_loops
from t5x import hlo_text
from t5x.hlo_collectives import Collective
from t5x.hlo_collectives import collective_of

# They name values or wait for them, and move nothing.
_FREE = frozenset(
    {
        'add-dependency',
        'after-all',
        'bitcast',
        'constant',
        'domain',
        'get-tuple-element',
        'opt-barrier',
        'parameter',
        'partition-id',
        'replica-id',
        'tuple',
    }
)

# They mark the two ends of an asynchronous collective inside fusions.
_ASYNC_START = 'custom_call_target="AsyncCollectiveStart"'
_ASYNC_DONE = 'custom_call_target="AsyncCollectiveDone"'


@dataclasses.dataclass(frozen=True)
class Costs:
  """Costs of one run on one device.

  Attributes:
    flops: of matrix products and convolutions.
    hbm_bytes: read from and written to main memory.
    collectives: what goes over the network, and how often.
    unknown_loops: loops of unknown length, counted as one trip; a line each.
  """

  flops: float = 0.0
  hbm_bytes: float = 0.0
  collectives: tuple[tuple[Collective, float], ...] = ()
  unknown_loops: tuple[str, ...] = ()

  def __add__(self, other: 'Costs') -> 'Costs':
    counts: dict[Collective, float] = {}
    for collective, count in (*self.collectives, *other.collectives):
      counts[collective] = counts.get(collective, 0) + count
    return Costs(
        self.flops + other.flops,
        self.hbm_bytes + other.hbm_bytes,
        tuple(counts.items()),
        (*self.unknown_loops, *other.unknown_loops),
    )

  def times(self, factor: int) -> 'Costs':
    """Returns the costs of `factor` runs."""
    return Costs(
        self.flops * factor,
        self.hbm_bytes * factor,
        tuple((c, count * factor) for c, count in self.collectives),
        self.unknown_loops,
    )


def count(text: str, num_devices: int = 1) -> Costs:
  """Returns the costs of a compiled program.

  Args:
    text: as from `jax.stages.Compiled.as_text()`.
    num_devices: over how many it is partitioned.
  """
  module = hlo_text.parse(text)
  return _Counter(module, num_devices).computation(module.entry)


@dataclasses.dataclass(frozen=True)
class _Counter:
  """Counts what computations of a module cost.

  Attributes:
    module: the program.
    num_devices: over how many it is partitioned.
  """

  module: hlo_text.Module
  num_devices: int

  @functools.cached_property
  def starts(self) -> dict[str, set[str]]:
    """Computations that start an asynchronous collective, by its channel."""
    starts: dict[str, set[str]] = {}
    for computation in self.module.computations.values():
      instructions = computation.instructions.values()
      if any(_ASYNC_START in i.attributes for i in instructions):
        for instruction in instructions:
          if instruction.channel:
            starts.setdefault(instruction.channel, set()).add(computation.name)
    return starts

  def computation(self, computation: hlo_text.Computation) -> Costs:
    """Costs of running a computation once."""
    total = Costs()
    for instruction in computation.instructions.values():
      total += self._instruction(computation, instruction)
      found = self._collectives(computation, instruction)
      total += Costs(collectives=tuple((c, 1.0) for c in found))
    return total

  def _instruction(
      self,
      computation: hlo_text.Computation,
      instruction: hlo_text.Instruction,
  ) -> Costs:
    """Costs of an instruction, without collectives of its own."""
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith(('-done', '-update')):
      return Costs()
    if opcode == 'while':
      return self._loop(computation, instruction)
    if opcode == 'conditional':
      branches = [
          self.computation(self.module.computations[name])
          for name in instruction.branches
      ]
      return max(branches, key=lambda costs: (costs.flops, costs.hbm_bytes))
    if opcode in ('call', 'async-start'):
      return self._bodies(instruction.called)
    return Costs(
        flops=self._flops(computation, instruction),
        hbm_bytes=self._bytes(computation, instruction),
    )

  def _bodies(self, names: Iterable[str]) -> Costs:
    bodies = (self.computation(self.module.computations[n]) for n in names)
    return sum(bodies, Costs())

  def _loop(
      self, computation: hlo_text.Computation, loop: hlo_text.Instruction
  ) -> Costs:
    body = self.computation(self.module.computations[loop.body])
    trips = hlo_loops.trip_count(self.module, computation, loop)
    if trips is not None:
      return body.times(trips)
    where = loop.op_name or loop.name
    line = f'{where}: one trip, of {body.flops:.4g} FLOPs'
    return body + Costs(unknown_loops=(line,))

  def _collectives(
      self,
      computation: hlo_text.Computation,
      instruction: hlo_text.Instruction,
  ) -> list[Collective]:
    """Collectives of an instruction, and of what is fused into it.

    TPUs fuse the parts of an asynchronous collective into other work, some into
    the loops that run meanwhile. All name one channel; the start counts.
    """
    found = []
    collective = collective_of(computation, instruction, self.num_devices)
    if collective is not None and not self._goes_on(computation, instruction):
      found.append(collective)
    if instruction.opcode == 'fusion':
      for name in instruction.called:
        called = self.module.computations[name]
        for inner in called.instructions.values():
          found += self._collectives(called, inner)
    return found

  def _goes_on(
      self,
      computation: hlo_text.Computation,
      instruction: hlo_text.Instruction,
  ) -> bool:
    """Whether an instruction is a later part of an asynchronous collective."""
    if instruction.opcode == 'custom-call':
      return _ASYNC_DONE in instruction.attributes
    starts = self.starts.get(instruction.channel)
    return starts is not None and computation.name not in starts

  # ---- Matrix work ----------------------------------------------------------

  def _flops(
      self,
      computation: hlo_text.Computation,
      instruction: hlo_text.Instruction,
  ) -> float:
    if instruction.opcode == 'fusion':
      return sum(
          self._flops(self.module.computations[name], inner)
          for name in instruction.called
          for inner in self.module.computations[name].instructions.values()
      )
    return hlo_flops.flops_of(computation, instruction)

  # ---- Memory traffic -------------------------------------------------------

  def _bytes(
      self,
      computation: hlo_text.Computation,
      instruction: hlo_text.Instruction,
  ) -> float:
    opcode = instruction.opcode
    if opcode == 'fusion':
      return self._fusion_bytes(computation, instruction)
    operands = [
        computation.instructions[name].arrays for name in instruction.operands
    ]
    if opcode in ('dynamic-slice', 'slice', 'gather'):
      # As much is read as is written, of an operand of any size.
      written = _hbm_bytes(instruction.arrays)
      in_hbm = any(array.space == 0 for array in operands[0])
      return written + in_hbm * _num_bytes(instruction.arrays)
    if opcode in ('dynamic-update-slice', 'scatter'):
      update = operands[1] if opcode[0] == 'd' else operands[-1]
      in_hbm = any(array.space == 0 for array in instruction.arrays)
      return _hbm_bytes(update) + in_hbm * _num_bytes(update)
    if opcode == 'send':
      return _hbm_bytes(operands[0])
    if opcode.endswith('-start'):
      # Gives its operands back beside the result and some flags.
      passed = sum(len(arrays) for arrays in operands)
      result = [a for a in instruction.arrays if a.dtype not in ('u32', 's32')]
      result = result[:passed] if opcode == 'copy-start' else result[passed:]
      return _hbm_bytes(result) + sum(map(_hbm_bytes, operands))
    return _hbm_bytes(instruction.arrays) + sum(map(_hbm_bytes, operands))

  def _fusion_bytes(
      self, computation: hlo_text.Computation, fusion: hlo_text.Instruction
  ) -> float:
    called = self.module.computations[fusion.called[0]]
    total = 0.0
    for number, name in enumerate(fusion.operands):
      arrays = computation.instructions[name].arrays
      if any(array.space == 0 for array in arrays):
        total += self._read_bytes(called, called.parameters[number], arrays)
    return total + self._written_bytes(called, called.root, fusion.arrays)

  def _read_bytes(
      self,
      computation: hlo_text.Computation,
      value: hlo_text.Instruction,
      arrays: tuple[hlo_text.Array, ...],
  ) -> float:
    """Bytes that the users of a value inside a fusion need of it."""
    whole = _hbm_bytes(arrays)
    needed = 0.0
    for user in computation.users.get(value.name, ()):
      place = user.operands.index(value.name)
      if user.opcode in ('dynamic-slice', 'slice', 'gather') and place == 0:
        needed += _num_bytes(user.arrays)
      elif user.opcode == 'dynamic-update-slice' and place == 0:
        continue
      elif self._goes_on(computation, user):
        continue
      elif user.opcode == 'bitcast':
        needed += self._read_bytes(computation, user, arrays)
      elif user.opcode == 'fusion':
        called = self.module.computations[user.called[0]]
        parameter = called.parameters[place]
        needed += self._read_bytes(called, parameter, arrays)
      elif user.opcode not in ('tuple', 'get-tuple-element'):
        return whole
    return min(whole, needed)

  def _written_bytes(
      self,
      computation: hlo_text.Computation,
      root: hlo_text.Instruction,
      arrays: tuple[hlo_text.Array, ...],
  ) -> float:
    """Bytes that a fusion writes; in place, only what it updates."""
    if root.opcode == 'tuple' and len(root.operands) == len(arrays):
      return sum(
          self._written_bytes(
              computation, computation.instructions[name], (array,)
          )
          for name, array in zip(root.operands, arrays)
      )
    whole = _hbm_bytes(arrays)
    if root.opcode == 'parameter' or self._goes_on(computation, root):
      return 0.0
    if root.opcode == 'bitcast':
      source = computation.instructions[root.operands[0]]
      return self._written_bytes(computation, source, arrays)
    if root.opcode == 'dynamic-update-slice':
      update = computation.instructions[root.operands[1]]
      return min(whole, _num_bytes(update.arrays))
    if root.opcode == 'fusion':
      called = self.module.computations[root.called[0]]
      return self._written_bytes(called, called.root, arrays)
    return whole


def _num_bytes(arrays: Iterable[hlo_text.Array]) -> int:
  return sum(array.num_bytes for array in arrays)


def _hbm_bytes(arrays: Iterable[hlo_text.Array]) -> int:
  return sum(array.num_bytes for array in arrays if array.space == 0)
