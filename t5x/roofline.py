"""The least time of a step on a chip: matrix work, memory, interconnect.

Each is the time that one part of the chip needs at its published peak, if the
others did not exist. All three may overlap, so a step takes at least the
longest, which is said to bound it; without any overlap it takes their sum.

A ring over a torus uses the links of the dimensions that its group spans: two
a dimension where the ends are joined, else one (RefA). Groups over several
slices share the data centre's network.

RefA: "How to Scale Your Model", jax-ml.github.io/scaling-book, TPUs.
"""

from collections.abc import Sequence
import dataclasses

import jax

from t5x import chips
from t5x import hlo_costs
from t5x import topology as topology_lib
from t5x.hlo_collectives import Collective


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Seconds a step needs of each part of a chip.

  Attributes:
    matmul: for matrix work.
    hbm: for memory traffic.
    network: for collectives, one after the other.
    unpriced: collectives whose network has no published bandwidth.
  """

  matmul: float
  hbm: float
  network: float
  unpriced: int = 0

  @property
  def least(self) -> float:
    """Seconds if all overlaps."""
    return max(self.matmul, self.hbm, self.network)

  @property
  def without_overlap(self) -> float:
    """Seconds if nothing overlaps."""
    return self.matmul + self.hbm + self.network

  @property
  def bound(self) -> str:
    """What bounds the step: 'matmul', 'hbm' or 'network'."""
    parts = {'matmul': self.matmul, 'hbm': self.hbm, 'network': self.network}
    return max(parts, key=lambda name: parts[name])


def estimate(
    costs: hlo_costs.Costs,
    topology: topology_lib.Topology,
    mesh: jax.sharding.Mesh,
) -> Roofline | None:
  """Returns the roofline of a step; None for hardware without figures.

  Args:
    costs: of one device.
    topology: the hardware.
    mesh: its flat order numbers the devices of collectives.
  """
  chip = topology.chip
  if chip is None:
    return None
  devices = mesh.devices.flatten().tolist()
  network, unpriced = 0.0, 0
  for collective, count in costs.collectives:
    group = [devices[place] for place in collective.group]
    seconds = _seconds(collective, group, topology, chip)
    if seconds is None:
      unpriced += 1
    else:
      network += count * seconds
  return Roofline(
      costs.flops / chip.flops,
      costs.hbm_bytes / chip.hbm_bandwidth,
      network,
      unpriced,
  )


def _seconds(
    collective: Collective,
    group: Sequence[jax.Device],
    topology: topology_lib.Topology,
    chip: chips.Chip,
) -> float | None:
  if collective.num_slices > 1:
    if chip.dcn_bandwidth is None:
      return None
    return collective.sent_bytes / chip.dcn_bandwidth
  links = _links(group, topology)
  if links == 0:
    # Between the cores of one chip: no published figure, and not the network.
    return 0.0
  return collective.sent_bytes / (links * chip.link_bandwidth)


def _links(group: Sequence[jax.Device], topology: topology_lib.Topology) -> int:
  """Links of a chip that a ring over a group can use."""
  links = 0
  for axis in range(len(topology.size)):
    span = len({device.coords[axis] for device in group})
    if span > 1:
      # A ring closes only if it goes all around.
      closed = topology.wraps(axis) and span == topology.size[axis]
      links += 2 if closed else 1
  return links
