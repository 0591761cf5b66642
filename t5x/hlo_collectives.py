"""Collectives of a compiled program: what goes over the network, among whom.

A device sends, in rings over a group of n devices (RefA):
  all-gather          (n-1)·shard
  reduce-scatter      (n-1)/n·array
  all-reduce          2·(n-1)/n·array: scatter and gather
  all-to-all          (n-1)/n·array
  collective-permute  array

Between slices TPUs use hosts: such a collective stands in the program as a
`send` to the runtime of the data centre's network ("megascale"), which says
what it is part of.

RefA: "How to Scale Your Model", jax-ml.github.io/scaling-book, Sharding.
"""

import dataclasses
import math
import re

import numpy as np

from t5x import hlo_text

KINDS = (
    'all-gather',
    'all-reduce',
    'all-to-all',
    'collective-broadcast',
    'collective-permute',
    'ragged-all-to-all',
    'reduce-scatter',
)

_LISTED = re.compile(r'replica_groups=\{\{([\d,]*)\}')
_IOTA = re.compile(
    r'replica_groups=\[(?P<groups>[\d,]+)\]<=\[(?P<dims>[\d,]+)\]'
    r'(?:T\((?P<order>[\d,]+)\))?'
)
_MESH = re.compile(
    r'replica_groups=mesh\[(?P<axes>[^\]]*)\](?P<order>[^{]*)'
    r'\{(?P<used>[^}]*)\}'
)
_MEGASCALE = re.compile(
    r'_xla_megascale_target="\{(?P<slices>[\d,:]+)\}[^"]*",'
    r'_xla_megascale_transfer_type="(?P<kind>\w+)"'
)
_AXIS = re.compile(r"'?([\w.\-]+)'?\s*=\s*(\d+)")
_USED = re.compile(r"'([\w.\-]+)'(?::\((\d+)\)(\d+))?")
_PAIRS = re.compile(r'source_target_pairs=\{(\{[\d,{}]*\})\}')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective of one device.

  Attributes:
    kind: such as 'all-gather'.
    num_bytes: the array, whole; of an all-gather what it gives.
    group: the devices of one of its groups, as partition numbers: places in
      the flat mesh. Between slices, empty.
    num_slices: between how many slices it is, 1 inside of them.
  """

  kind: str
  num_bytes: int
  group: tuple[int, ...]
  num_slices: int = 1

  @property
  def sent_bytes(self) -> float:
    """Bytes that a device sends; see the module's documentation."""
    n = len(self.group) or self.num_slices
    if self.kind == 'collective-permute':
      return float(self.num_bytes)
    passes = 2 if self.kind == 'all-reduce' else 1
    return passes * self.num_bytes * (n - 1) / n

  def axes(self, mesh_shape: dict[str, int]) -> tuple[str, ...]:
    """Returns the mesh axes along which the group's devices differ.

    Between slices it is 'slices'.
    """
    if self.num_slices > 1:
      return ('slices',)
    places = np.unravel_index(self.group, tuple(mesh_shape.values()))
    return tuple(
        name for name, at in zip(mesh_shape, places) if len(set(at)) > 1
    )


def collective_of(
    computation: hlo_text.Computation,
    instruction: hlo_text.Instruction,
    num_devices: int,
) -> Collective | None:
  """Returns what an instruction sends; None if it is no collective.

  Groups of one device send nothing, and are none.

  Args:
    computation: where it stands.
    instruction: a collective, or the start of an asynchronous one.
    num_devices: how many devices there are; a collective without groups is
      among all.
  """
  kind = instruction.opcode.removesuffix('-start')
  if kind == 'send':
    return _between_slices(computation, instruction)
  if kind not in KINDS:
    return None
  group = _group(instruction.attributes, num_devices)
  if len(group) < 2:
    return None
  size = sum(a.num_bytes for a in computation.operand_arrays(instruction))
  if kind == 'all-gather':
    size *= len(group)
  # TPUs write a reduce-scatter as a fusion of that name around an all-reduce.
  if computation.name.startswith('all-reduce-scatter'):
    kind = 'reduce-scatter'
  return Collective(kind, size, group)


def _between_slices(
    computation: hlo_text.Computation, send: hlo_text.Instruction
) -> Collective | None:
  """Reads what a send to the data centre's network is part of."""
  match = _MEGASCALE.search(send.attributes)
  if match is None:
    return None
  slices = 0
  for part in match['slices'].split(','):
    first, _, last = part.partition(':')
    slices += int(last or first) - int(first) + 1
  if slices < 2:
    return None
  kind = match['kind'].lower().replace('_', '-')
  kind = 'collective-permute' if kind == 'one-to-one' else kind
  size = sum(a.num_bytes for a in computation.operand_arrays(send))
  if kind == 'all-gather':
    size *= slices
  return Collective(kind, size, (), slices)


def _group(attributes: str, num_devices: int) -> tuple[int, ...]:
  """Returns the first group, in any of the forms that XLA writes."""
  pairs = _PAIRS.search(attributes)
  if pairs:
    # A device that sends to itself, as some do in a shift, moves nothing.
    found = (pair.split(',') for pair in re.findall(r'\d+,\d+', pairs[1]))
    moved = [(int(a), int(b)) for a, b in found if a != b]
    return moved[0] if moved else ()
  match = _LISTED.search(attributes)
  if match:
    return tuple(int(n) for n in match[1].split(',') if n)
  match = _IOTA.search(attributes)
  if match:
    ids = _iota(match['dims'], match['order'])
    return tuple(ids.reshape(_ints(match['groups']))[0].tolist())
  match = _MESH.search(attributes)
  if match:
    return _mesh_group(match)
  if 'replica_groups=' in attributes and 'replica_groups={}' not in attributes:
    raise ValueError(
        'Unknown form of replica_groups in HLO: '
        + attributes[attributes.index('replica_groups=') :][:200]
    )
  return tuple(range(num_devices))


def _ints(text: str) -> list[int]:
  return [int(part) for part in text.split(',') if part]


def _iota(dims: str, order: str | None) -> np.ndarray:
  shape = _ints(dims)
  ids = np.arange(math.prod(shape)).reshape(shape)
  return ids.transpose(_ints(order)) if order else ids


def _mesh_group(match: re.Match) -> tuple[int, ...]:
  """Reads `mesh['a'=4,'b'=2] {'b'}`: groups along the axes in braces.

  `'a':(2)2` is a part of an axis: the size 2 after the first 2.
  """
  sizes = {name: int(size) for name, size in _AXIS.findall(match['axes'])}
  ids = _mesh_ids(match['order'], math.prod(sizes.values()))
  dims, places = [], {}
  parts = [
      (name, int(before or 1), int(size) if size else sizes[name])
      for name, before, size in _USED.findall(match['used'])
  ]
  for name, size in sizes.items():
    cuts = sorted(part for part in parts if part[0] == name)
    done = 1
    for part in cuts:
      dims += [part[1] // done, part[2]]
      places[part] = len(dims) - 1
      done = part[1] * part[2]
    dims.append(size // done)
  used = [places[part] for part in parts]
  others = [place for place in range(len(dims)) if place not in used]
  ids = ids.reshape(dims).transpose([*others, *used])
  group = math.prod(dims[place] for place in used)
  return tuple(ids.reshape(-1, group)[0].tolist())


def _mesh_ids(order: str, num_devices: int) -> np.ndarray:
  """Reads `device_ids=(3,1,…)` or `device_ids=([4,2]T(1,0))`, else 0, 1, …"""
  listed = re.search(r'device_ids=\(([\d,]+)\)', order)
  if listed:
    return np.array(_ints(listed[1]))
  iota = re.search(
      r'device_ids=\((?:\[[\d,]+\]<=)?\[([\d,]+)\](?:T\(([\d,]+)\))?\)', order
  )
  if iota:
    return _iota(iota[1], iota[2]).reshape(-1)
  return np.arange(num_devices)
