"""Chips are found by what JAX calls them; two devices may share one."""

import dataclasses

import pytest

from t5x import chips


@dataclasses.dataclass
class Device:
  device_kind: str


@pytest.mark.parametrize(
    ('kind', 'name', 'teraflops'),
    [
        ('TPU v5 lite', 'TPU v5e', 197),
        ('TPU v5', 'TPU v5p', 459),
        ('TPU v4', 'TPU v4', 275),
        ('TPU v3', 'TPU v3', 123 / 2),
        ('TPU7x', 'TPU7x', 2307 / 2),
        ('NVIDIA H100 80GB HBM3', 'H100 SXM', 989),
        ('NVIDIA H100 PCIe', 'H100 PCIe', 756),
        ('NVIDIA H200', 'H200 SXM', 989),
        ('NVIDIA A100-SXM4-80GB', 'A100 80GB SXM', 312),
        ('NVIDIA A100-SXM4-40GB', 'A100 40GB SXM', 312),
    ],
)
def test_a_device_has_its_share_of_the_published_peak(kind, name, teraflops):
  assert chips.find(kind).name == name
  assert chips.peak_flops(Device(kind)) == teraflops * 1e12


def test_a_cpu_has_no_published_peak():
  assert chips.find('cpu') is None
  assert chips.peak_flops(Device('cpu')) is None


def test_two_devices_share_all_of_a_chip():
  chip = chips.TPUS['v4']
  half = chip.per_device(2)
  assert half.hbm_bytes == 16 * 2**30
  assert half.flops * 2 == chip.flops
  assert half.link_bandwidth * 2 == chip.link_bandwidth
  assert chip.per_device() == chip
