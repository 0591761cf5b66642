"""Published figures of accelerators: peak rate, memory, interconnect.

They turn counts into times: what a step must take at least (`roofline`), and
what share of the peak a run reaches (model FLOPs utilisation). All figures are
of a chip as sold. A JAX device may be half of one: ask `Chip.per_device`.

RefA: docs.cloud.google.com/tpu/docs/{v2,v3,v4,v5e,v5p,v6e,tpu7x}, key
  specifications. Inter-chip bandwidth stands there per chip, both ways and all
  links; here per link and one way.
RefB: TPU v4, arXiv 2304.01433, Table 4 (links of v3 and v4).
RefC: NVIDIA's data sheets of A100, H100 and H200: dense BF16 without sparsity.
"""

import dataclasses
from typing import Any

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One kind of accelerator.

  Attributes:
    name: what people call it.
    flops: peak FLOP/s of bfloat16 matrix products.
    hbm_bytes: memory.
    hbm_bandwidth: bytes/s between memory and cores.
    link_bandwidth: bytes/s of one link to one neighbour, one way; on GPUs of
      all links of the chip together.
    links: links of a chip: 4 in a 2D torus, 6 in a 3D one, 1 behind a switch.
    dcn_bandwidth: bytes/s of a chip's share of the network between slices;
      None where it is not published.
    devices: JAX devices of a chip.
  """

  name: str
  flops: float
  hbm_bytes: float
  hbm_bandwidth: float
  link_bandwidth: float
  links: int
  dcn_bandwidth: float | None = None
  devices: int = 1

  def per_device(self, devices: int | None = None) -> 'Chip':
    """Returns the share of one JAX device.

    Args:
      devices: JAX devices of a chip, if other than usual: a v4 without
        megacore has 2.
    """
    share = devices or self.devices
    return dataclasses.replace(
        self,
        flops=self.flops / share,
        hbm_bytes=self.hbm_bytes / share,
        hbm_bandwidth=self.hbm_bandwidth / share,
        link_bandwidth=self.link_bandwidth / share,
        dcn_bandwidth=self.dcn_bandwidth and self.dcn_bandwidth / share,
        devices=1,
    )


def _tpu(
    name: str,
    teraflops: float,
    hbm_gib: float,
    hbm_gb_per_s: float,
    link_gb_per_s: float,
    links: int,
    dcn_gbit_per_s: float | None = None,
    devices: int = 1,
) -> Chip:
  return Chip(
      name=name,
      flops=teraflops * 1e12,
      hbm_bytes=hbm_gib * _GIB,
      hbm_bandwidth=hbm_gb_per_s * 1e9,
      link_bandwidth=link_gb_per_s * 1e9,
      links=links,
      dcn_bandwidth=dcn_gbit_per_s and dcn_gbit_per_s / 8 * 1e9,
      devices=devices,
  )


def _gpu(
    name: str,
    teraflops: float,
    hbm_gb: float,
    hbm_gb_per_s: float,
    nvlink_gb_per_s: float,
) -> Chip:
  """NVLink's bandwidth is published both ways together."""
  return Chip(
      name=name,
      flops=teraflops * 1e12,
      hbm_bytes=hbm_gb * 1e9,
      hbm_bandwidth=hbm_gb_per_s * 1e9,
      link_bandwidth=nvlink_gb_per_s / 2 * 1e9,
      links=1,
  )


# By the word that begins a topology (`v5e:16x16`).
TPUS = {
    'v2': _tpu('TPU v2', 46, 16, 700, 62, 4, devices=2),
    'v3': _tpu('TPU v3', 123, 32, 900, 70, 4, devices=2),
    'v4': _tpu('TPU v4', 275, 32, 1200, 50, 6),
    'v5e': _tpu('TPU v5e', 197, 16, 819, 50, 4, 25),
    'v5p': _tpu('TPU v5p', 459, 95, 2765, 100, 6, 50),
    'v6e': _tpu('TPU v6e', 918, 32, 1638, 100, 4, 100),
    'tpu7x': _tpu('TPU7x', 2307, 192, 7380, 100, 6, 100, devices=2),
}

# `device_kind` of a JAX device -> the word above.
_TPU_KINDS = {
    'TPU v2': 'v2',
    'TPU v3': 'v3',
    'TPU v4': 'v4',
    'TPU v5 lite': 'v5e',
    'TPU v5e': 'v5e',
    'TPU v5': 'v5p',
    'TPU v5p': 'v5p',
    'TPU v6 lite': 'v6e',
    'TPU v6e': 'v6e',
    'TPU7x': 'tpu7x',
}

# By words that must all stand in `device_kind`; the first that fits.
_GPUS = (
    (('H200',), _gpu('H200 SXM', 989, 141, 4800, 900)),
    (('H100', 'PCIe'), _gpu('H100 PCIe', 756, 80, 2000, 600)),
    (('H100', 'NVL'), _gpu('H100 NVL', 835, 94, 3900, 600)),
    (('H100',), _gpu('H100 SXM', 989, 80, 3350, 900)),
    (('A100', '80GB', 'PCIe'), _gpu('A100 80GB PCIe', 312, 80, 1935, 600)),
    (('A100', '80GB'), _gpu('A100 80GB SXM', 312, 80, 2039, 600)),
    (('A100', 'PCI'), _gpu('A100 40GB PCIe', 312, 40, 1555, 600)),
    (('A100',), _gpu('A100 40GB SXM', 312, 40, 1555, 600)),
)


def find(device_kind: str) -> Chip | None:
  """Returns the chip of a JAX device's `device_kind`; None for others.

  CPUs have no entry: their peak depends on the machine.
  """
  if device_kind in _TPU_KINDS:
    return TPUS[_TPU_KINDS[device_kind]]
  for words, chip in _GPUS:
    if all(word in device_kind for word in words):
      return chip
  return None


def peak_flops(device: Any) -> float | None:
  """Returns peak bfloat16 FLOP/s of one JAX device, None if not known.

  Args:
    device: a JAX device.
  """
  chip = find(device.device_kind)
  return None if chip is None else chip.per_device().flops
