"""Where a compiled program keeps its arrays: XLA's buffer assignment, as text.

XLA plans all memory ahead: an allocation for each argument and result, and one
for all temporaries, inside of which arrays that live at different times share
places. It writes the plan when asked to dump, also of a program that it then
refuses for its size.

Example, two lines of a plan:

  allocation 8: size 28691456, preallocated-temp:
   value: <92 fusion.3 @0> (size=7203840,offset=4096): bf16[60,60032]{1,0}
"""

from collections.abc import Iterator
import dataclasses
import re

_ALLOCATION = re.compile(r'allocation \d+: size (?P<size>\d+)(?P<kind>.*):\s*$')
_VALUE = re.compile(
    r'\s+value: <\d+ (?P<name>[\w.\-]+)(?:\{[\d,]*\})? @\d+>'
    r' \(size=(?P<size>\d+),offset=(?P<offset>\d+)\): (?P<shape>.*)'
)
_PARAMETER = re.compile(r'parameter (\d+)')
_SPACE = re.compile(r'color (\d+)')


@dataclasses.dataclass(frozen=True)
class Value:
  """An array in a place.

  Attributes:
    name: of the instruction that makes it.
    shape: as XLA writes it, of a device's part.
    size: bytes, tiles padded.
    offset: of its first byte in the allocation.
  """

  name: str
  shape: str
  size: int
  offset: int


@dataclasses.dataclass(frozen=True)
class Allocation:
  """Memory for one or several arrays.

  Attributes:
    size: bytes.
    parameter: which of the program's arguments, None for others.
    is_output: whether it holds a result.
    is_temporary: whether it holds temporaries.
    values: the arrays that are there at one time or another.
  """

  size: int
  parameter: int | None
  is_output: bool
  is_temporary: bool
  values: tuple[Value, ...]


@dataclasses.dataclass(frozen=True)
class Totals:
  """Bytes of main memory by use."""

  arguments: int
  temporaries: int
  outputs: int
  aliased: int


def parse(text: str) -> list[Allocation]:
  """Reads the allocations in main memory.

  Args:
    text: of a file `*-buffer-assignment.txt`.
  """
  return list(_allocations(text))


def _allocations(text: str) -> Iterator[Allocation]:
  head, values = None, []
  for line in text.splitlines():
    match = _ALLOCATION.match(line)
    if match:
      yield from _allocation(head, values)
      head, values = match, []
    elif line.startswith('Total bytes'):
      break
    else:
      value = _VALUE.match(line)
      if value:
        values.append(
            Value(
                value['name'],
                value['shape'],
                int(value['size']),
                int(value['offset']),
            )
        )
  yield from _allocation(head, values)


def _allocation(
    head: re.Match | None, values: list[Value]
) -> Iterator[Allocation]:
  """Yields an allocation, unless it lies elsewhere than in main memory."""
  if head is None or _SPACE.search(head['kind']):
    return
  parameter = _PARAMETER.search(head['kind'])
  yield Allocation(
      size=int(head['size']),
      parameter=int(parameter[1]) if parameter else None,
      is_output='maybe-live-out' in head['kind'],
      is_temporary='preallocated-temp' in head['kind'],
      values=tuple(values),
  )


def totals(allocations: list[Allocation]) -> Totals:
  """Sums allocations by use."""

  def total(use) -> int:
    return sum(a.size for a in allocations if use(a))

  return Totals(
      arguments=total(lambda a: a.parameter is not None),
      temporaries=total(lambda a: a.is_temporary),
      outputs=total(lambda a: a.is_output),
      aliased=total(lambda a: a.is_output and a.parameter is not None),
  )


def largest_temporaries(
    allocations: list[Allocation], number: int
) -> list[Value]:
  """Returns the largest arrays that are no arguments, one a place.

  Args:
    allocations: all of them.
    number: how many at most.
  """
  places: dict[tuple[int, int, int], Value] = {}
  for index, allocation in enumerate(allocations):
    if allocation.parameter is None:
      for value in allocation.values:
        places.setdefault((index, value.offset, value.size), value)
  return sorted(places.values(), key=lambda v: -v.size)[:number]
