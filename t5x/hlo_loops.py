"""How often a loop of a compiled program runs.

Some backends note it on the loop. TPU's final text does not: there it follows
from the loop's counter, which starts at a constant, grows by a constant and is
compared with a constant. All three may hide behind copies and fusions.
"""

import dataclasses
from typing import Any

from t5x import hlo_text

# They give their operand's value, elsewhere or in another form.
_SAME_VALUE = (
    'bitcast',
    'convert',
    'copy',
    'copy-done',
    'copy-start',
    'reshape',
)

# A counter's carried value stands at some place of the loop's tuple.
_Carried = dataclasses.make_dataclass('_Carried', ['place'], frozen=True)


@dataclasses.dataclass(frozen=True)
class _Affine:
  """A value `base + offset`; without a base, a constant."""

  base: Any
  offset: int


def trip_count(
    module: hlo_text.Module,
    computation: hlo_text.Computation,
    loop: hlo_text.Instruction,
) -> int | None:
  """Returns how often a loop runs, None if that is known only at run time.

  Args:
    module: the program.
    computation: where the loop stands.
    loop: a `while` instruction.
  """
  if loop.known_trip_count is not None:
    return loop.known_trip_count
  condition = module.computations[loop.condition]
  body = module.computations[loop.body]
  test = _comparison(module, condition, condition.root.name, {})
  if test is None:
    return None
  index, bound = test
  if not isinstance(index.base, _Carried):
    return None
  initial = _Reader(module, computation, {})
  if isinstance(bound.base, _Carried):
    place = bound.base.place
    if _Reader(module, body, {}).element(body.root.name, place) != bound:
      return None
    outside = initial.element(loop.operands[0], place)
    bound = outside and _Affine(outside.base, outside.offset + bound.offset)
  place = index.base.place
  start = initial.element(loop.operands[0], place)
  after = _Reader(module, body, {}).element(body.root.name, place)
  if bound is None or start is None or after is None:
    return None
  if bound.base is not None or start.base is not None:
    return None
  if after.base != index.base or after.offset <= 0:
    return None
  distance = bound.offset - (start.offset + index.offset)
  return max(0, -(-distance // after.offset))


def _comparison(
    module: hlo_text.Module,
    computation: hlo_text.Computation,
    name: str,
    arguments: dict[int, _Affine | None],
) -> tuple[_Affine, _Affine] | None:
  """Returns (index, bound) of a test `index < bound`, else None."""
  instruction = computation.instructions[name]
  reader = _Reader(module, computation, arguments)
  if instruction.opcode == 'fusion':
    called = module.computations[instruction.called[0]]
    inner = dict(enumerate(map(reader.value, instruction.operands)))
    return _comparison(module, called, called.root.name, inner)
  if instruction.opcode in _SAME_VALUE:
    return _comparison(module, computation, instruction.operands[0], arguments)
  if instruction.opcode != 'compare':
    return None
  left, right = map(reader.value, instruction.operands)
  direction = instruction.attribute('direction')
  if direction in ('GT', 'GE'):
    left, right = right, left
  if left is None or right is None or direction in ('EQ', 'NE'):
    return None
  return left, _Affine(right.base, right.offset + (direction[1] == 'E'))


@dataclasses.dataclass(frozen=True)
class _Reader:
  """Reads integer values of a computation, as far as they are affine.

  Attributes:
    module: the program.
    computation: where the values stand.
    arguments: values of its parameters, of a fusion; none of a loop's body,
      whose one parameter is the tuple that it carries.
  """

  module: hlo_text.Module
  computation: hlo_text.Computation
  arguments: dict[int, _Affine | None]

  def value(self, name: str) -> _Affine | None:
    """Returns the value of a scalar instruction."""
    instruction = self.computation.instructions[name]
    opcode, operands = instruction.opcode, instruction.operands
    if opcode == 'constant':
      text = instruction.arguments
      return _Affine(None, int(text)) if text.lstrip('-').isdigit() else None
    if opcode == 'parameter':
      return self.arguments.get(int(instruction.arguments))
    if opcode in _SAME_VALUE:
      return self.value(operands[0])
    if opcode == 'get-tuple-element':
      return self.element(operands[0], int(instruction.attribute('index')))
    if opcode in ('add', 'subtract'):
      return self._sum(*operands, sign=1 if opcode == 'add' else -1)
    if opcode == 'fusion':
      inner = self._inside(instruction)
      return inner.value(inner.computation.root.name)
    return None

  def element(self, name: str, place: int) -> _Affine | None:
    """Returns the value at one place of a tuple."""
    instruction = self.computation.instructions[name]
    if instruction.opcode == 'tuple':
      return self.value(instruction.operands[place])
    if instruction.opcode == 'parameter':
      return _Affine(_Carried(place), 0)
    if instruction.opcode == 'fusion':
      inner = self._inside(instruction)
      return inner.element(inner.computation.root.name, place)
    return None

  def _inside(self, fusion: hlo_text.Instruction) -> '_Reader':
    called = self.module.computations[fusion.called[0]]
    arguments = dict(enumerate(map(self.value, fusion.operands)))
    return _Reader(self.module, called, arguments)

  def _sum(self, left: str, right: str, sign: int) -> _Affine | None:
    a, b = self.value(left), self.value(right)
    if a is None or b is None:
      return None
    if b.base is None:
      return _Affine(a.base, a.offset + sign * b.offset)
    if a.base is None and sign == 1:
      return _Affine(b.base, a.offset + b.offset)
    return None
