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
import math
import re

from t5x import hlo_loops
from t5x import hlo_text
from t5x import matmul_flops
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

_WINDOW = re.compile(r'window=\{([^}]*)\}')


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
  module: hlo_text.Module
  num_devices: int

  def computation(self, computation: hlo_text.Computation) -> Costs:
    """Costs of running a computation once."""
    total, channels = Costs(), set()
    for instruction in computation.instructions.values():
      total += self._instruction(computation, instruction)
      found = self._collectives(computation, instruction, channels)
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
      channels: set[tuple[Collective, str]],
  ) -> list[Collective]:
    """Collectives of an instruction, and of what is fused into it.

    TPUs fuse the start, the middle and the end of an asynchronous collective
    into other work; all name the same channel and count once.
    """
    found = []
    collective = collective_of(computation, instruction, self.num_devices)
    if collective is not None:
      seen = collective, instruction.channel
      if instruction.channel and seen in channels:
        return []
      channels.add(seen)
      found.append(collective)
    if instruction.opcode == 'fusion':
      for name in instruction.called:
        called = self.module.computations[name]
        for inner in called.instructions.values():
          found += self._collectives(called, inner, channels)
    return found

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
    if instruction.opcode == 'dot':
      return _dot_flops(computation, instruction)
    if instruction.opcode == 'convolution':
      return _convolution_flops(computation, instruction)
    return 0.0

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
    if root.opcode == 'parameter':
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


def _sizes(instruction: hlo_text.Instruction, name: str) -> list[int]:
  """Returns an attribute such as `lhs_contracting_dims={1,2}`."""
  match = re.search(rf'\b{name}=\{{([\d,]*)\}}', instruction.attributes)
  return [int(n) for n in match[1].split(',') if n] if match else []


def _dot_flops(
    computation: hlo_text.Computation, dot: hlo_text.Instruction
) -> float:
  lhs = computation.operand_arrays(dot)[0].dims
  contracted = math.prod(lhs[d] for d in _sizes(dot, 'lhs_contracting_dims'))
  return 2.0 * contracted * math.prod(dot.arrays[0].dims)


def _convolution_flops(
    computation: hlo_text.Computation, convolution: hlo_text.Instruction
) -> float:
  """TPUs write every product as a convolution, batches as dilated windows."""
  lhs, rhs = (a.dims for a in computation.operand_arrays(convolution)[:2])
  out = convolution.arrays[0].dims
  labels = convolution.attribute('dim_labels')
  inputs, kernel, outputs = re.split('_|->', labels)
  window = _window(convolution)
  pairs = 1
  for spatial in sorted(set(inputs) - set('bf')):
    place = int(spatial)
    pairs *= matmul_flops.meeting_pairs(
        size=lhs[inputs.index(spatial)],
        kernel=rhs[kernel.index(spatial)],
        out=out[outputs.index(spatial)],
        stride=window.get('stride', {}).get(place, 1),
        padding=window.get('pad', {}).get(place, 0),
        dilation=window.get('lhs_dilate', {}).get(place, 1),
        kernel_dilation=window.get('rhs_dilate', {}).get(place, 1),
    )
  plane = out[outputs.index('b')] * out[outputs.index('f')]
  return 2.0 * pairs * plane * rhs[kernel.index('i')]


def _window(convolution: hlo_text.Instruction) -> dict[str, dict[int, int]]:
  """Returns settings by spatial dimension; of padding, what stands before."""
  match = _WINDOW.search(convolution.attributes)
  return {
      name: {
          place: int(part.split('_')[0])
          for place, part in enumerate(value.split('x'))
      }
      for name, value in (
          item.split('=') for item in (match[1].split() if match else ())
      )
  }
