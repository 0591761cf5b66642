"""Reads the text of a compiled program (HLO) into instructions.

A module is a set of named computations, each a list of instructions; loops,
branches and fusions call other computations. Only what costs depend on is
kept: shapes, memory spaces, operands, and attributes as text.

Example, an instruction of a loop's body on a TPU:

  %fusion.7 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} fusion(%copy.3, %param.2),
      kind=kOutput, calls=%fused_computation.4, metadata={…}

It gives one array of 8 x 128 bfloat16 in memory space 1 (the chip's fast
scratchpad, not HBM), the operands copy.3 and param.2, and that it calls
fused_computation.4.
"""

from collections.abc import Iterator
import dataclasses
import functools
import math
import re

_BITS = re.compile(r'[a-z]+?(\d+)')
_ARRAY = re.compile(
    r'(?P<dtype>[a-z]\w*)\[(?P<dims>[^\]]*)\](?:\{(?P<layout>[^}]*)\})?'
)
_SPACE = re.compile(r'S\((\d+)\)')
_NAMES = re.compile(r'%([\w.\-]+)')
_HEADER = re.compile(r'(?P<entry>ENTRY )?%(?P<name>[\w.\-]+) \(.*\{\s*$')
_INSTRUCTION = re.compile(
    r'\s+(?P<root>ROOT )?%(?P<name>[\w.\-]+) = (?P<rest>.*)'
)
_OPCODE = re.compile(r'\s*(?P<opcode>[\w\-]+)\(')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')

# Attributes that name computations which run once a call.
_CALLS = re.compile(
    r'(?:calls|to_apply|called_computations|async_computation)='
    r'(?:%(?P<one>[\w.\-]+)|\{(?P<many>[^}]*)\})'
)
_BRANCHES = re.compile(
    r'(?:branch_computations=\{(?P<many>[^}]*)\}'
    r'|(?:true|false)_computation=%(?P<one>[\w.\-]+))'
)


@dataclasses.dataclass(frozen=True)
class Array:
  """One array, as a chip holds it.

  Attributes:
    dtype: such as 'bf16'.
    dims: size of each dimension.
    space: 0 is the main memory (HBM), others are on the chip or the host.
  """

  dtype: str
  dims: tuple[int, ...]
  space: int = 0

  @property
  def num_bytes(self) -> int:
    """Bytes without the padding of tiles; tokens and tuples have none."""
    if self.dtype == 'pred':
      return math.prod(self.dims)
    bits = _BITS.match(self.dtype)
    return -(-math.prod(self.dims) * int(bits[1]) // 8) if bits else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One instruction.

  Attributes:
    name: unique in its computation.
    opcode: such as 'fusion'.
    arrays: what it gives, tuples flattened.
    operands: names of instructions of the same computation.
    arguments: the text in parentheses: a constant's value, a parameter's number.
    attributes: the rest of the line.
    is_root: whether it gives its computation's result.
  """

  name: str
  opcode: str
  arrays: tuple[Array, ...]
  operands: tuple[str, ...]
  arguments: str
  attributes: str
  is_root: bool

  @functools.cached_property
  def called(self) -> tuple[str, ...]:
    """Computations that run once: of a fusion, a call, a reduction."""
    return tuple(_computations(_CALLS, self.attributes))

  @functools.cached_property
  def branches(self) -> tuple[str, ...]:
    """Computations of which one runs."""
    return tuple(_computations(_BRANCHES, self.attributes))

  @property
  def body(self) -> str:
    """The computation that a loop repeats."""
    return self.attribute('body').removeprefix('%')

  @property
  def condition(self) -> str:
    """The computation that tells whether a loop goes on."""
    return self.attribute('condition').removeprefix('%')

  @property
  def known_trip_count(self) -> int | None:
    """How often a loop runs, None if the compiler has not noted it."""
    match = _TRIPS.search(self.attributes)
    return int(match[1]) if match else None

  @property
  def channel(self) -> str:
    """Identifies a collective; its asynchronous parts share one channel."""
    return self.attribute('channel_id')

  @property
  def op_name(self) -> str:
    """Where in the model it comes from, '' if not said."""
    match = _OP_NAME.search(self.attributes)
    return match[1] if match else ''

  def attribute(self, name: str) -> str:
    """Returns the text of an attribute up to a comma or space, or ''."""
    match = re.search(rf'\b{name}=([^\s,]*)', self.attributes)
    return match[1] if match else ''


@dataclasses.dataclass(frozen=True)
class Computation:
  """A list of instructions, by name, in order."""

  name: str
  instructions: dict[str, Instruction]

  @functools.cached_property
  def root(self) -> Instruction:
    """The instruction that gives the result."""
    return next(i for i in self.instructions.values() if i.is_root)

  @functools.cached_property
  def parameters(self) -> dict[int, Instruction]:
    """Parameters by number."""
    return {
        int(i.arguments): i
        for i in self.instructions.values()
        if i.opcode == 'parameter'
    }

  @functools.cached_property
  def users(self) -> dict[str, list[Instruction]]:
    """Instructions that read an instruction, by its name."""
    users: dict[str, list[Instruction]] = {}
    for instruction in self.instructions.values():
      for operand in dict.fromkeys(instruction.operands):
        users.setdefault(operand, []).append(instruction)
    return users

  def operand_arrays(self, instruction: Instruction) -> list[Array]:
    """Returns the arrays that an instruction of this computation reads."""
    return [
        array
        for name in instruction.operands
        for array in self.instructions[name].arrays
    ]


@dataclasses.dataclass(frozen=True)
class Module:
  """A compiled program."""

  computations: dict[str, Computation]
  entry: Computation


def parse(text: str) -> Module:
  """Reads a module.

  Args:
    text: as from `jax.stages.Compiled.as_text()`.

  Raises:
    ValueError: if it has no entry, or an instruction that makes no sense.
  """
  computations: dict[str, Computation] = {}
  current: dict[str, Instruction] = {}
  entry = None
  for line in text.splitlines():
    header = _HEADER.match(line)
    if header:
      current = {}
      name = header['name']
      computations[name] = Computation(name, current)
      entry = name if header['entry'] else entry
      continue
    match = _INSTRUCTION.match(line)
    if match:
      current[match['name']] = _instruction(
          match['name'], match['rest'], bool(match['root'])
      )
  if entry is None:
    raise ValueError(
        'The text has no ENTRY computation: give the HLO text of a compiled'
        f' program. It begins with {text[:80]!r}.'
    )
  return Module(computations, computations[entry])


def _instruction(name: str, rest: str, is_root: bool) -> Instruction:
  # A tuple's shape stands in parentheses, as layouts do inside of it.
  end = _closing(rest, 0) if rest.startswith('(') else rest.index(' ')
  match = _OPCODE.match(rest, end)
  if match is None:
    raise ValueError(f'HLO instruction {name} has no opcode: {rest[:200]}')
  closing = _closing(rest, match.end() - 1)
  arguments = rest[match.end() : closing - 1]
  return Instruction(
      name=name,
      opcode=match['opcode'],
      arrays=tuple(arrays_of(rest[:end])),
      operands=tuple(_NAMES.findall(arguments)),
      arguments=arguments,
      attributes=rest[closing:],
      is_root=is_root,
  )


def arrays_of(shape: str) -> Iterator[Array]:
  """Yields the arrays of a shape's text, tuples flattened."""
  for match in _ARRAY.finditer(shape):
    space = _SPACE.search(match['layout'] or '')
    # Bounded dynamic sizes are written as `<=n`.
    dims = [d.strip(' <=') for d in match['dims'].split(',') if d.strip()]
    yield Array(
        match['dtype'],
        tuple(int(d) for d in dims),
        int(space[1]) if space else 0,
    )


def _closing(text: str, start: int) -> int:
  """Returns the place after the parenthesis that closes the one at `start`."""
  depth = 0
  for place in range(start, len(text)):
    depth += (text[place] == '(') - (text[place] == ')')
    if depth == 0:
      return place + 1
  raise ValueError(f'Unbalanced parentheses in HLO: {text[:200]}')


def _computations(pattern: re.Pattern, attributes: str) -> Iterator[str]:
  for match in pattern.finditer(attributes):
    if match['one']:
      yield match['one']
    else:
      yield from _NAMES.findall(match['many'])
