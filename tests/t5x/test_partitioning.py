import dataclasses
import itertools
import json
import os
import pathlib
import subprocess
import sys

from flax.linen import partitioning as flax_partitioning
import jax
import numpy as np
import pytest

from t5x import optimizers
from t5x import partitioning
from t5x import train_state as train_state_lib

P = partitioning.PartitionSpec
AxisMetadata = flax_partitioning.AxisMetadata


@dataclasses.dataclass(frozen=True)
class Tpu:
  """A device of a TPU slice that is not there."""

  id: int
  process_index: int
  coords: tuple[int, int, int]
  core_on_chip: int
  device_kind: str = 'TPU v3'
  platform: str = 'tpu'


def _tpus(x, y, cores, kind='TPU v3'):
  """Hosts of 2 x 2 chips."""
  places = itertools.product(range(y), range(x), range(cores))
  return [
      Tpu(i, (py // 2) * (x // 2) + px // 2, (px, py, 0), core, kind)
      for i, (py, px, core) in enumerate(places)
  ]


@pytest.fixture
def tpus(monkeypatch):
  """Replaces JAX's devices, as seen by one of their hosts."""

  def replace(devices, process_index=0):
    local = [d for d in devices if d.process_index == process_index]
    monkeypatch.setattr(jax, 'devices', lambda *_: devices)
    monkeypatch.setattr(jax, 'local_devices', lambda **_: local)
    monkeypatch.setattr(
        jax._src.xla_bridge, 'process_index', lambda *_: process_index
    )

  return replace


def test_tpu_mesh_keeps_a_host_together(tpus):
  tpus(_tpus(4, 4, 2))
  mesh = partitioning.default_mesh(4)
  assert dict(mesh.shape) == {'data': 8, 'model': 4}
  assert dict(mesh.local_mesh.shape) == {'data': 2, 'model': 4}
  coords = [
      [partitioning.get_coords(d) for d in row]
      for row in mesh.local_mesh.devices
  ]
  assert coords == [
      [(0, y, 0, 0), (0, y, 0, 1), (1, y, 0, 0), (1, y, 0, 1)] for y in (0, 1)
  ]


@pytest.mark.parametrize('num_partitions', [1, 2, 4, 8, 16, 32])
def test_every_power_of_two_gives_a_tpu_mesh(tpus, num_partitions):
  for kind, cores in (('TPU v3', 2), ('TPU v4', 1)):
    tpus(_tpus(8, 4, cores, kind))
    mesh = partitioning.default_mesh(num_partitions)
    assert mesh.shape['model'] == num_partitions
    assert len({d.id for d in mesh.devices.flat}) == 32 * cores


def test_odd_partitions_and_unknown_kinds_ask_for_a_submesh(tpus):
  tpus(_tpus(4, 4, 2))
  with pytest.raises(ValueError, match='power of two'):
    partitioning.default_mesh(3)
  with pytest.raises(ValueError, match='does not fit'):
    partitioning.default_mesh(64)
  tpus(_tpus(4, 4, 2, 'TPU v99'))
  with pytest.raises(ValueError, match='model_parallel_submesh'):
    partitioning.default_mesh(2)
  mesh = partitioning.default_mesh(2, (1, 1, 1, 2))
  assert dict(mesh.shape) == {'data': 16, 'model': 2}
  with pytest.raises(ValueError, match='does not tile'):
    partitioning.default_mesh(2, (3, 1, 1, 1))


def test_each_host_reads_another_part_of_the_batch(tpus):
  seen = []
  for host in range(4):
    tpus(_tpus(4, 4, 2), host)
    partitioner = partitioning.PjitPartitioner(num_partitions=4)
    layout = partitioner.get_data_layout(32)
    assert (layout.batch_size, layout.num_shards) == (32, 4)
    assert layout.is_first_host_in_replica_set
    seen.append(layout.shard_id)
    chunker = partitioning.LocalChunker(partitioner.mesh)
    assert chunker.num_chunks == {'data': 4, 'model': 1}
    info = chunker.get_local_chunk_info((128, 16), ['data', 'model'])
    start = 32 * layout.shard_id
    assert info.slice == (slice(start, start + 32), slice(0, 16))
    assert info.replica_id == 0
    info = chunker.get_local_chunk_info((128, 16), [None, 'model'])
    assert info.slice == (slice(None), slice(0, 16))
    assert info.replica_id == layout.shard_id
  assert sorted(seen) == [0, 1, 2, 3]


def test_model_copies_over_several_hosts_share_a_part_of_the_batch(tpus):
  firsts = []
  for host in range(4):
    tpus(_tpus(4, 4, 2), host)
    partitioner = partitioning.PjitPartitioner(
        model_parallel_submesh=(4, 2, 1, 2)
    )
    layout = partitioner.get_data_layout()
    assert (layout.batch_size, layout.num_shards) == (2, 2)
    firsts.append((layout.shard_id, layout.is_first_host_in_replica_set))
  assert sorted(firsts) == [(0, False), (0, True), (1, False), (1, True)]


def test_partitioner_needs_a_layout():
  with pytest.raises(ValueError, match='num_partitions'):
    partitioning.PjitPartitioner()
  with pytest.raises(ValueError, match='both or none'):
    partitioning.PjitPartitioner(1, ici_mesh_shape=(1, 1, 1))


def test_a_mesh_of_other_than_all_devices_tells_both_numbers():
  partitioner = partitioning.PjitPartitioner(
      1, ici_mesh_shape=(1, 50, 2), dcn_mesh_shape=(3, 1, 1)
  )
  with pytest.raises(ValueError, match='mesh of 300 devices, and there are'):
    _ = partitioner.mesh


REPLICATED = [
    ('relpos_buckets', None),
    ('abspos_buckets', None),
    ('length', None),
    ('layers', None),
    ('stack', None),
    ('mlp_activations', None),
]


@pytest.mark.parametrize(
    ('dims', 'embed_first', 'embed_last'),
    [
        ((1, 1), [('embed', None)], []),
        ((2, 1), [], [('embed', 'model')]),
        ((1, 2), [], [('embed', 'data')]),
        ((2, 2), [], [('embed', 'model'), ('embed', 'data')]),
    ],
)
def test_standard_rules(dims, embed_first, embed_last):
  rules = partitioning.standard_logical_axis_rules(*dims)
  assert rules == [
      ('batch', 'data'),
      ('vocab', 'model'),
      *embed_first,
      ('mlp', 'model'),
      ('heads', 'model'),
      ('kv', None),
      ('joined_kv', 'model'),
      *embed_last,
      *REPLICATED,
  ]
  extra = (('mine', 'data'), ('yours', None))
  more = partitioning.standard_logical_axis_rules(*dims, additional_rules=extra)
  assert more == rules + list(extra)


def test_other_dimensions_are_an_error():
  with pytest.raises(ValueError, match='must be 1 or 2'):
    partitioning.standard_logical_axis_rules(3, 1)


def test_updated_rules_keep_their_place():
  updated = partitioning.update_logical_axis_rules(
      (('a', None), ('b', 'model'), ('c', 'data'), ('b', 'data')),
      (('b', None), ('d', None), ('c', 'model'), ('c', 'data')),
  )
  assert updated == (
      ('a', None),
      ('b', None),
      ('c', 'model'),
      ('c', 'data'),
      ('d', None),
  )


def _state(axes, shape=(6, 4)):
  return train_state_lib.FlaxOptimTrainState.create(
      optimizers.adam(0.1),
      {
          'params': {'layer': {'kernel': np.zeros(shape, np.float32)}},
          'params_axes': {'layer': {'kernel_axes': AxisMetadata(names=axes)}},
      },
  )


def _spec(partitioner, axes):
  return partitioner.get_mesh_axes(_state(axes)).params['layer']['kernel']


@pytest.mark.parametrize(
    ('dims', 'axes', 'spec'),
    [
        ((1, 1), ('embed', 'mlp'), P(None, 'model')),
        ((2, 1), ('embed', 'mlp'), P(None, 'model')),
        ((2, 1), ('embed', 'kv'), P('model', None)),
        ((1, 2), ('embed', 'joined_kv'), P('data', 'model')),
        ((2, 2), ('vocab', 'embed'), P('model', 'data')),
        ((2, 2), ('embed', 'kv'), P('model', None)),
        ((1, 1), (None, 'heads'), P(None, 'model')),
    ],
)
def test_axes_take_the_first_free_rule(dims, axes, spec):
  partitioner = partitioning.PjitPartitioner(
      num_partitions=1,
      logical_axis_rules=partitioning.standard_logical_axis_rules(*dims),
  )
  assert _spec(partitioner, axes) == spec


def test_moments_follow_their_parameter_and_counters_are_replicated():
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  axes = partitioner.get_mesh_axes(_state(('embed', 'mlp')))
  adam = axes.param_states[0]
  assert adam.count is None
  assert adam.mu['layer']['kernel'] == P(None, 'model')
  assert axes.step is None
  assert set(axes.state_dict()) == {'target', 'state'}


def test_unknown_axis_names_the_parameter_and_the_nearest_name():
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  with pytest.raises(ValueError, match=r"^layer/kernel: .*'embde'.*'embed'"):
    _spec(partitioner, ('embde', 'mlp'))


def test_wrong_rank_and_repeated_names_name_the_parameter():
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  with pytest.raises(ValueError, match='^layer/kernel: 1 axis names'):
    _spec(partitioner, ('embed',))
  with pytest.raises(ValueError, match='^layer/kernel: cannot place'):
    _spec(partitioner, ('mlp', 'mlp'))


def test_rules_must_name_axes_of_the_mesh():
  partitioner = partitioning.PjitPartitioner(
      num_partitions=1, logical_axis_rules=(('embed', 'modle'),)
  )
  with pytest.raises(ValueError, match='modle'):
    _spec(partitioner, ('embed', 'embed'))


def test_mutables_without_axes_are_replicated():
  state = _state(('embed', 'mlp')).replace_flax_mutables(
      {'stats': {'mean': np.zeros(3)}}
  )
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  axes = partitioner.get_mesh_axes(state)
  assert axes.flax_mutables == {'stats': {'mean': None}}
  step = partitioner.partition(lambda s: s, (axes,), axes)
  step(state)


def test_partitioned_function_runs_lowers_and_takes_static_arguments():
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  traced = []

  def add(x, times, y):
    traced.append(jax.sharding.get_abstract_mesh().axis_names)
    assert flax_partitioning.get_axis_rules() == tuple(
        partitioner.logical_axis_rules
    )
    return x + times * y

  fn = partitioner.partition(
      add, (P('data'), None), P('data'), static_argnums=(1,)
  )
  x = np.ones((2, 3), np.float32)
  np.testing.assert_array_equal(fn(x, 2, x), 3 * x)
  fn(x, 2, x)
  assert traced == [('data', 'model')]
  compiled = partitioner.compile(fn, x, 2, x)
  np.testing.assert_array_equal(compiled(x, x), 3 * x)


def test_donated_state_is_taken_over():
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  fn = partitioner.partition(
      lambda x: x + 1, (None,), None, donate_argnums=(0,)
  )
  x = jax.numpy.ones(3)
  fn(x)
  assert x.is_deleted()


def test_batch_of_one_process():
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  layout = partitioner.get_data_layout(4)
  assert layout == partitioning.DataLayout(4, 0, 1, True)
  with pytest.raises(ValueError, match='nearest: 1'):
    partitioner.get_data_layout(0)
  array = partitioning.host_local_array_to_global_array(
      np.arange(4), partitioner.mesh, P('data')
  )
  np.testing.assert_array_equal(array, np.arange(4))


def test_constraint_is_a_no_op_on_cpu():
  x = np.ones(3)
  assert partitioning.with_sharding_constraint(x, P('nowhere')) is x


def test_axis_names_are_one_leaf():
  names = partitioning.AxisNames('batch', None)
  assert jax.tree.leaves({'a': names}) == [names]
  assert tuple(names) == ('batch', None)


@pytest.fixture(scope='module')
def eight_devices():
  """What a process with eight virtual CPU devices reports."""
  script = pathlib.Path(__file__).parent / 'eight_devices.py'
  flags = '--xla_force_host_platform_device_count=8'
  result = subprocess.run(
      [sys.executable, '-W', 'error', str(script)],
      env={**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
      capture_output=True,
      text=True,
      check=False,
  )
  assert result.returncode == 0, result.stderr
  return json.loads(result.stdout.splitlines()[-1])


def test_every_mesh_of_eight_devices_gives_the_loss_of_one(eight_devices):
  one = eight_devices['losses'].pop('one device')
  assert len(eight_devices['losses']) == 5
  for name, losses in eight_devices['losses'].items():
    np.testing.assert_allclose(losses, one, rtol=1e-5, err_msg=name)


def test_eight_devices_shard_as_the_rules_say(eight_devices):
  assert eight_devices['meshes'] == {
      'default': {'data': 1, 'model': 8},
      'data': {'data': 8, 'model': 1},
      'both': {'data': 4, 'model': 2},
      'both, embed over data': {'data': 4, 'model': 2},
      'replicas': {'replica': 2, 'data': 2, 'model': 2},
  }
  assert eight_devices['kernel_shards'] == {
      'default': [8, 1],
      'data': [8, 8],
      'both': [8, 4],
      'both, embed over data': [2, 4],
      'replicas': [8, 4],
  }


def test_errors_of_uneven_layouts_say_how_to_mend_them(eight_devices):
  batch, axis, microbatches = eight_devices['errors']
  assert 'Batch size (9)' in batch
  assert "'data'" in batch
  assert 'nearest: 8 or 12' in batch
  assert axis.startswith('layer/kernel: ')
  assert "axis 'mlp' of size 5" in axis
  assert 'Pad it to 6' in axis
  assert microbatches == (
      'Trainer: batch_size = 8 in num_microbatches = 2 is 4 examples at a time,'
      " which do not divide into 8 parts of mesh axis 'data'. Set"
      ' num_microbatches to 1, or batch_size to 16.'
  )
