"""Hardware that is not here: the devices of a TPU slice, for compiling.

`v5e:16x16` is a slice of 16 x 16 chips. libtpu, TPU's own compiler, describes
its devices (place, host, cores) and compiles for them on any machine. `cpu:8`
is eight virtual devices of this CPU: the same path, for tests.
"""

from collections.abc import Sequence
import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from t5x import chips
from t5x import script

_NAME = re.compile(r'(?P<kind>[a-z0-9]+):(?P<size>\d+(x\d+)*)')

_INSTALL = "pip install -c constraints.txt 'jax[tpu]'"

# What libtpu asks of the machine it thinks it runs on. Nothing runs here, so
# several processes may load it, and no cloud is asked.
_LIBTPU_ENVIRONMENT = {
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    'TPU_SKIP_MDS_QUERY': '1',
}

# Both cores of a v4 chip are one JAX device on Cloud TPUs ("megacore"); libtpu
# describes two unless asked. Later chips are one device by themselves.
_MEGACORE = ('v4',)


@dataclasses.dataclass(frozen=True)
class Topology:
  """Devices to compile for.

  Attributes:
    name: as given, such as 'v5e:16x16'.
    devices: JAX devices, those of one host together.
    chip: the share of one device in the published figures; None for CPUs.
    size: chips along each dimension of a slice; empty for CPUs.
  """

  name: str
  devices: Sequence[Any]
  chip: chips.Chip | None
  size: tuple[int, ...]

  @property
  def num_hosts(self) -> int:
    """Number of machines (processes)."""
    return len({device.process_index for device in self.devices})

  @property
  def num_slices(self) -> int:
    """Number of slices that no chip-to-chip link joins."""
    return len({getattr(d, 'slice_index', None) or 0 for d in self.devices})

  def wraps(self, axis: int) -> bool:
    """Tells whether links join the two ends of a dimension into a ring.

    Whole cubes of 4 x 4 x 4 have them in three dimensions; slices in two
    dimensions have them where they span the pod's 16 chips (32 in a v3 pod,
    16 in a v2 pod).
    """
    if len(self.size) == 3:
      return all(size % 4 == 0 for size in self.size)
    return self.size[axis] >= (32 if self.chip.name == 'TPU v3' else 16)


def prepare(name: str) -> None:
  """Makes JAX ready for a topology; call before JAX finds its devices.

  Args:
    name: as for `get_topology`.

  Raises:
    ValueError: if the name is not one of a topology.
    ImportError: if it needs libtpu, and that is not installed.
  """
  kind, size = _parse(name)
  jax.config.update('jax_platforms', 'cpu')
  if kind == 'cpu':
    jax.config.update('jax_num_cpu_devices', math.prod(size))
  elif importlib.util.find_spec('libtpu') is None:
    raise ModuleNotFoundError(
        f'--topology={name} needs libtpu, the compiler of TPUs. Install it:'
        f' {_INSTALL} (Linux, x86-64; no TPU is needed), or try'
        ' --topology=cpu:8.'
    )


def needs_libtpu(name: str) -> bool:
  """Tells whether libtpu compiles for a topology.

  Args:
    name: as for `get_topology`.

  Raises:
    ValueError: if the name is not one of a topology.
  """
  return _parse(name)[0] != 'cpu'


def get_topology(name: str, num_slices: int = 1) -> Topology:
  """Returns the devices of a topology.

  Args:
    name: `<kind>:<size>`: v5e:16x16, v4:4x4x8 (chips along each dimension), or
      cpu:<devices>.
    num_slices: how many such slices a data centre's network joins.

  Raises:
    ValueError: if there is no such slice.
    OSError: if libtpu does not work.
  """
  kind, size = _parse(name)
  if kind == 'cpu':
    if num_slices != 1:
      raise ValueError(f'CPUs have no slices, got num_slices={num_slices}.')
    found = jax.devices('cpu')
    if len(found) != math.prod(size):
      raise ValueError(
          f'{name} asks for {math.prod(size)} devices, and JAX has found'
          f' {len(found)} already: call prepare({name!r}) before.'
      )
    return Topology(name, found, None, ())
  for variable, value in _LIBTPU_ENVIRONMENT.items():
    os.environ.setdefault(variable, value)
  options: dict[str, Any] = {}
  if kind in _MEGACORE:
    options['chip_config_name'] = 'megacore'
  if math.prod(size) == 1:
    # One chip of a host; libtpu thinks of whole hosts otherwise.
    options['chips_per_host_bounds'] = (1, 1, 1)
  if num_slices > 1:
    options['num_slices'] = num_slices
  try:
    with script.held_back_stderr():
      found = topologies.get_topology_desc(
          topology_name=name, platform='tpu', **options
      )
  except jax.errors.JaxRuntimeError as error:
    told = str(error).splitlines()[0]
    if told.startswith('INVALID_ARGUMENT'):
      raise ValueError(f'libtpu knows no slice {name!r}: {told}') from error
    raise OSError(
        f'libtpu cannot describe {name!r}: {told}. Install it anew: {_INSTALL}'
    ) from error
  chip = chips.TPUS[kind]
  return Topology(name, found.devices, chip.per_device(), size)


def _parse(name: str) -> tuple[str, tuple[int, ...]]:
  """Splits `<kind>:<size>`; raises ValueError for anything else."""
  match = _NAME.fullmatch(name)
  kind = match['kind'] if match else name.split(':', 1)[0]
  if kind == 'gpu':
    raise ValueError(
        f'No topology {name!r}: XLA compiles for GPUs only where there is one.'
        ' Give a TPU slice, or cpu:<devices>.'
    )
  if match is None or kind not in (*chips.TPUS, 'cpu'):
    raise ValueError(
        f'No topology {name!r}. Give a kind ({", ".join(chips.TPUS)}) and the'
        ' chips along each dimension, as v5e:16x16 or v4:4x4x8, or'
        ' cpu:<devices>.'
    )
  size = tuple(int(part) for part in match['size'].split('x'))
  if min(size) < 1 or (kind == 'cpu' and len(size) != 1):
    raise ValueError(f'No topology {name!r}: its size {size} makes no sense.')
  return kind, size
