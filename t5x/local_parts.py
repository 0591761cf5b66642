"""The parts of a sharded state that one process holds, in one file.

A `.npz` of raw bytes with an index: which array, which part of it, which dtype.
Its checksums tell a file that was cut off or damaged. Any part of an array that
the stored parts cover can be put together again, so the mesh may change as long
as every process still finds what it needs.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import json
import math
import os
from typing import Any
import zipfile

import jax
import numpy as np

# (start, stop) a dimension.
Bounds = tuple[tuple[int, int], ...]

_INDEX = 'index'
# What reading a file that is not whole may raise.
UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


@dataclasses.dataclass(frozen=True)
class Part:
  """A part of one array.

  Attributes:
    name: the array's path in the state dict, joined by '/'.
    shape: the whole array's shape.
    bounds: which part of it.
    value: the numbers, on the host.
  """

  name: str
  shape: tuple[int, ...]
  bounds: Bounds
  value: np.ndarray


def get_parts(name: str, leaf: jax.Array) -> Iterator[Part]:
  """Yields copies of this process's parts of an array, each part once."""
  seen = set()
  for shard in leaf.addressable_shards:
    bounds = to_bounds(shard.index, leaf.shape)
    if bounds not in seen:
      seen.add(bounds)
      # A copy: the device's own buffer may be donated to the next step.
      value = np.array(shard.data, copy=True)
      yield Part(name, tuple(leaf.shape), bounds, value)


def to_bounds(index: Sequence[slice], shape: Sequence[int]) -> Bounds:
  """Returns (start, stop) for each slice of a part."""
  return tuple(
      part.indices(size)[:2] for part, size in zip(index, shape, strict=True)
  )


def write(path: str, parts: Sequence[Part], about: Mapping[str, Any]) -> None:
  """Writes parts to a new file.

  Args:
    path: the file.
    parts: what to write.
    about: JSON values to read back with the parts.
  """
  index = [
      {
          'name': part.name,
          'shape': part.shape,
          'bounds': part.bounds,
          'dtype': part.value.dtype.name,
      }
      for part in parts
  ]
  text = json.dumps({'about': dict(about), 'parts': index})
  arrays = {
      str(number): np.ascontiguousarray(part.value).reshape(-1).view(np.uint8)
      for number, part in enumerate(parts)
  }
  with open(path, 'xb') as file:
    np.savez(file, **{_INDEX: np.array(text)}, **arrays)
    file.flush()
    os.fsync(file.fileno())


def read_about(path: str) -> dict[str, Any]:
  """Returns what was written with the parts, without reading them.

  Raises:
    One of `UNREADABLE` if the file is not whole.
  """
  with np.load(path) as file:
    return json.loads(str(file[_INDEX]))['about']


def read(path: str) -> dict[str, list[Part]]:
  """Returns the parts of a file by array.

  Raises:
    One of `UNREADABLE` if the file is not whole.
  """
  found: dict[str, list[Part]] = {}
  with np.load(path) as file:
    for number, entry in enumerate(json.loads(str(file[_INDEX]))['parts']):
      bounds = tuple((start, stop) for start, stop in entry['bounds'])
      value = file[str(number)].view(jax.numpy.dtype(entry['dtype']))
      part = Part(
          entry['name'],
          tuple(entry['shape']),
          bounds,
          value.reshape([stop - start for start, stop in bounds]),
      )
      found.setdefault(part.name, []).append(part)
  return found


def assemble(parts: Sequence[Part], bounds: Bounds) -> np.ndarray:
  """Puts one part of an array together from the stored ones.

  Example: of the parts 0:2 and 2:4, the part 1:4 is the last number of the
  first and the whole second one.

  Args:
    parts: the stored parts of the array; they do not overlap.
    bounds: the wanted part.

  Raises:
    ValueError: if the stored parts do not cover the wanted one.
  """
  for part in parts:
    if part.bounds == bounds:
      return part.value
  shape = [stop - start for start, stop in bounds]
  result, filled = np.empty(shape, parts[0].value.dtype), 0
  for part in parts:
    overlap = [
        (max(a, c), min(b, d)) for (a, b), (c, d) in zip(bounds, part.bounds)
    ]
    if any(start >= stop for start, stop in overlap):
      continue
    there = tuple(
        slice(a - o[0], b - o[0]) for (a, b), o in zip(overlap, bounds)
    )
    here = tuple(
        slice(a - o[0], b - o[0]) for (a, b), o in zip(overlap, part.bounds)
    )
    result[there] = part.value[here]
    filled += math.prod(stop - start for start, stop in overlap)
  if filled != math.prod(shape):
    raise ValueError(
        f'{parts[0].name}: {filled} of the {math.prod(shape)} numbers of'
        f' {bounds} are here.'
    )
  return result
