"""Hardware that is not here: names, meshes of its devices, rooflines."""

import dataclasses
import importlib.util
import itertools

import jax
import numpy as np
import pytest

from t5x import chips
from t5x import hlo_collectives
from t5x import hlo_costs
from t5x import mesh as mesh_lib
from t5x import partitioning
from t5x import roofline
from t5x import topology


@dataclasses.dataclass(frozen=True)
class Device:
  id: int
  process_index: int
  coords: tuple[int, int, int]
  slice_index: int = 0
  core_on_chip: int = 0
  device_kind: str = 'TPU v5 lite'
  platform: str = 'tpu'


def devices(x, y, num_slices=1):
  """Hosts of 2 x 2 chips, as libtpu describes them."""
  places = itertools.product(range(num_slices), range(y), range(x))
  return [
      Device(
          i,
          s * (x // 2) * (y // 2) + (py // 2) * (x // 2) + px // 2,
          (px, py, 0),
          s,
      )
      for i, (s, py, px) in enumerate(places)
  ]


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('gpu:8', 'only where there is one'),
        ('v99:2x2', 'v5e'),
        ('v5e', 'chips along each dimension'),
        ('v5e:0x4', 'makes no sense'),
        ('cpu:2x4', 'makes no sense'),
    ],
)
def test_a_topology_that_cannot_be_says_what_can(name, words):
  with pytest.raises(ValueError, match=words):
    topology.get_topology(name)


def test_without_libtpu_the_mend_is_named(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ImportError, match=r"pip install .*'jax\[tpu\]'.*cpu:8"):
    topology.prepare('v5e:4x4')


def test_a_partitioner_takes_devices_that_are_not_here():
  partitioner = partitioning.PjitPartitioner(num_partitions=4)
  partitioner.use_devices(devices(4, 4))
  assert dict(partitioner.mesh.shape) == {'data': 4, 'model': 4}
  # This host's four chips share one copy of the model.
  assert {d.process_index for d in partitioner.mesh.devices[0]} == {0}
  layout = partitioner.get_data_layout(64)
  assert (layout.num_shards, layout.shard_id) == (4, 0)
  with pytest.raises(RuntimeError, match='built already'):
    partitioner.use_devices(devices(2, 2))


def test_several_slices_need_a_mesh_of_their_own():
  with pytest.raises(ValueError, match='2 slices: set ici_mesh_shape'):
    mesh_lib.default_mesh(4, devices=devices(4, 4, num_slices=2))
  mesh = mesh_lib.default_mesh(
      1,
      ici_mesh_shape=(1, 4, 4),
      dcn_mesh_shape=(2, 1, 1),
      devices=devices(4, 4, num_slices=2),
  )
  assert dict(mesh.shape) == {'replica': 2, 'data': 4, 'model': 4}
  assert {d.slice_index for d in mesh.devices[1].flat} == {1}


def test_a_mesh_that_scatters_a_host_says_so():
  with pytest.raises(ValueError, match='products of the dimensions'):
    mesh_lib.default_mesh(
        1,
        ici_mesh_shape=(2, 32, 1),
        dcn_mesh_shape=(1, 1, 1),
        devices=devices(8, 8),
    )


def test_a_step_is_traced_for_the_platform_of_its_mesh():
  assert mesh_lib.platform() == 'cpu'
  device = jax.sharding.AbstractDevice(
      device_kind='TPU v5 lite', num_cores=1, platform='tpu'
  )
  mesh = jax.sharding.AbstractMesh((4,), ('data',), abstract_device=device)
  with jax.sharding.use_abstract_mesh(mesh):
    assert mesh_lib.platform() == 'tpu'


@pytest.mark.parametrize(
    ('kind', 'size', 'wraps'),
    [
        ('v5e', (16, 8), [True, False]),
        ('v5e', (8, 8), [False, False]),
        ('v4', (4, 4, 8), [True, True, True]),
        ('v4', (2, 2, 4), [False, False, False]),
        ('v3', (32, 16), [True, False]),
    ],
)
def test_which_dimensions_close_to_rings(kind, size, wraps):
  slices = topology.Topology('', (), chips.TPUS[kind], size)
  assert [slices.wraps(axis) for axis in range(len(size))] == wraps


def collective(kind, size, group):
  return hlo_collectives.Collective(kind, size, tuple(group))


def estimated(size, collectives, num_slices=1, flops=0.0, hbm_bytes=0.0):
  found = devices(*size, num_slices)
  hardware = topology.Topology('', found, chips.TPUS['v5e'], size)
  mesh = jax.sharding.Mesh(
      np.array(found, dtype=object).reshape(num_slices, -1), ('a', 'b')
  )
  costs = hlo_costs.Costs(flops, hbm_bytes, tuple(collectives))
  return roofline.estimate(costs, hardware, mesh)


def test_the_longest_part_bounds_a_step():
  gathered = collective('all-gather', 8e9, range(4))
  found = estimated((4, 4), [(gathered, 2.0)], flops=197e12, hbm_bytes=819e8)
  assert found.matmul == pytest.approx(1.0)
  assert found.hbm == pytest.approx(0.1)
  # Three quarters arrive over one link of 50 GB/s, twice.
  assert found.network == pytest.approx(2 * 6e9 / 50e9)
  assert found.bound == 'matmul'
  assert found.least == pytest.approx(1.0)
  assert found.without_overlap == pytest.approx(1.34)


def test_a_ring_uses_the_links_of_the_dimensions_it_spans():
  def seconds(size, group):
    step = collective('collective-permute', 50e9, group)
    return estimated(size, [(step, 1.0)]).network

  assert seconds((4, 4), range(4)) == pytest.approx(1.0)
  assert seconds((4, 4), range(16)) == pytest.approx(1 / 2)
  assert seconds((16, 4), range(16)) == pytest.approx(1 / 2)
  assert seconds((16, 4), range(64)) == pytest.approx(1 / 3)


def test_groups_over_slices_use_the_network_of_the_data_centre():
  step = hlo_collectives.Collective('all-reduce', 1e9, (), num_slices=2)
  found = estimated((4, 4), [(step, 1.0)], num_slices=2)
  assert found.network == pytest.approx(1e9 / (25e9 / 8))
  assert found.unpriced == 0


def test_a_cpu_has_no_roofline():
  hardware = topology.get_topology(f'cpu:{jax.device_count()}')
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ('data',))
  assert roofline.estimate(hlo_costs.Costs(), hardware, mesh) is None
