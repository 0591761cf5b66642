"""Rules of one tower, meshes of several slices, constraints of activations."""

import dataclasses
import itertools

from flax.linen import partitioning as flax_partitioning
from flax.linen import spmd
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gin
from t5x import adafactor
from t5x import optimizers
from t5x import partitioning
from t5x import train_state as train_state_lib
from t5x.examples.t5 import network

P = partitioning.PartitionSpec
FSDP = partitioning.standard_logical_axis_rules(parameter_partitioning_dims=2)
KERNEL = ('embed', 'mlp')
EYE_RULES = (('^eye/', (('embed', None), ('mlp', 'data'))),)


class FourByTwo(partitioning.PjitPartitioner):
  """Names of axes and sizes are all that rules ask of a mesh."""

  mesh = jax.sharding.AbstractMesh((4, 2), ('data', 'model'))


def _state(optimizer, shape=(8, 8)):
  params = {'eye': shape, 'eyelid': shape, 'mouth': (8, 8)}
  names = flax_partitioning.AxisMetadata(names=KERNEL)
  return train_state_lib.FlaxOptimTrainState.create(
      optimizer,
      {
          'params': {
              k: {'kernel': np.zeros(s, np.float32)} for k, s in params.items()
          },
          'params_axes': {k: {'kernel_axes': names} for k in params},
      },
  )


def _specs(state, tower_rules=()):
  """Mesh axes by name, of parameters and moments."""
  axes = FourByTwo(2, logical_axis_rules=FSDP, tower_rules=tower_rules)
  specs = axes.get_mesh_axes(state)
  return {
      jax.tree_util.keystr(path, simple=True, separator='/'): spec
      for path, spec in jax.tree.leaves_with_path(
          specs, is_leaf=lambda x: isinstance(x, P)
      )
  }


@pytest.mark.parametrize(
    'optimizer',
    [
        optimizers.adam(0.1),
        adafactor.Adafactor(beta1=0.9, min_dim_size_to_factor=1000),
    ],
)
def test_rules_of_a_tower_place_its_parameters_and_moments_only(optimizer):
  state = _state(optimizer)
  before, after = _specs(state), _specs(state, EYE_RULES)
  assert set(before.values()) == {P('data', 'model')}
  changed = {name for name in before if before[name] != after[name]}
  assert changed == {name for name in before if '/eye/' in name}
  # The parameter, and two moments.
  assert len(changed) == 3
  assert {after[name] for name in changed} == {P(None, 'data')}


def test_rules_of_a_tower_mend_a_width_that_does_not_divide():
  state = _state(optimizers.sgd(0.1), shape=(6, 8))
  message = (
      "^eye/kernel: axis 'embed' of size 6 .* 4 parts of mesh axis 'data'"
      r".*Pad it to 8, add the rule \('embed', None\).*tower_rules"
  )
  with pytest.raises(ValueError, match=message):
    _specs(state)
  rules = (('^eye(lid)?/', (('embed', None),)),)
  specs = _specs(state, rules)
  assert specs['_optimizer/target/eye/kernel'] == P(None, 'model')
  assert specs['_optimizer/target/mouth/kernel'] == P('data', 'model')


@pytest.mark.parametrize(
    ('tower_rules', 'message'),
    [
        ((('^eey/', ()),), r"tower_rules: pattern '\^eey/' matches none.*'eye"),
        ((('^eye/', ()), ('kernel', ())), "'kernel' both match .*'eye/kernel'"),
        ((('^eye/', (('embed', 'modle'),)),), "'modle'.* no axis of this mesh"),
    ],
)
def test_rules_of_no_tower_are_an_error(tower_rules, message):
  with pytest.raises(ValueError, match=message):
    _specs(_state(optimizers.sgd(0.1)), tower_rules)


def test_rules_of_a_tower_come_from_gin(monkeypatch):
  monkeypatch.setattr(gin.config, '_LOCATION_PREFIXES', [''])
  gin.clear_config()
  gin.parse_config("""
from __gin__ import dynamic_registration
from t5x import partitioning
MADE = @partitioning.PjitPartitioner()
partitioning.PjitPartitioner:
  num_partitions = 1
  logical_axis_rules = @partitioning.standard_logical_axis_rules()
  tower_rules = (('^eye/', (('embed', 'model'), ('mlp', None))),)
""")
  made = gin.query_parameter('%MADE').scoped_configurable_fn()
  gin.clear_config()
  params = made.get_mesh_axes(_state(optimizers.sgd(0.1))).params
  assert params['eye']['kernel'] == P('model', None)
  assert params['mouth']['kernel'] == P(None, 'model')


@dataclasses.dataclass(frozen=True)
class Chip:
  """A chip of a slice that is not there."""

  id: int
  process_index: int
  coords: tuple[int, int, int]
  slice_index: int
  core_on_chip: int = 0
  device_kind: str = 'TPU v5 lite'
  platform: str = 'tpu'


# Two slices of 4 x 4 chips, in hosts of 2 x 2.
SLICES = [
    Chip(i, 4 * s + 2 * (y // 2) + x // 2, (x, y, 0), s)
    for i, (s, y, x) in enumerate(
        itertools.product(range(2), range(4), range(4))
    )
]


@pytest.mark.parametrize(
    ('ici', 'dcn'),
    [
        ((1, 4, 4), (2, 1, 1)),
        ((1, 8, 2), (1, 2, 1)),
        ((2, 4, 2), (2, 1, 1)),
        ((1, 4, 4), (1, 1, 2)),
    ],
)
def test_axes_cross_slices_where_dcn_says_and_hosts_share_out_the_batch(
    ici, dcn, monkeypatch
):
  shape = tuple(np.multiply(ici, dcn))
  parts = []
  for host in range(8):
    monkeypatch.setattr(
        jax._src.xla_bridge, 'process_index', lambda *_, host=host: host
    )
    partitioner = partitioning.PjitPartitioner(
        1, ici_mesh_shape=ici, dcn_mesh_shape=dcn
    )
    partitioner.use_devices(SLICES)
    mesh = partitioner.mesh
    layout = partitioner.get_data_layout(64)
    parts.append((layout.shard_id, layout.is_first_host_in_replica_set))
  assert dict(mesh.shape) == dict(zip(('replica', 'data', 'model'), shape))
  place = np.vectorize(lambda d: d.slice_index)(mesh.devices)
  for axis in range(3):
    # Neighbours along an axis stand in two slices only if DCN is along it.
    lines = np.moveaxis(place, axis, -1).reshape(-1, shape[axis])
    crosses = any(len(set(line)) > 1 for line in lines)
    assert crosses == (dcn[axis] > 1)
  # Every part of the batch is read, and counted by one host.
  firsts = sorted(shard for shard, is_first in parts if is_first)
  assert firsts == list(range(layout.num_shards))
  rules = dict(partitioner.logical_axis_rules)
  assert rules['batch'] == ('replica', 'data')


def test_slices_that_dcn_does_not_count_are_an_error():
  partitioner = partitioning.PjitPartitioner(
      1, ici_mesh_shape=(1, 2, 4), dcn_mesh_shape=(4, 1, 1)
  )
  partitioner.use_devices(SLICES)
  with pytest.raises(ValueError, match='2'):
    _ = partitioner.mesh


def _constraints(jaxpr, found):
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'sharding_constraint':
      found.add(equation.params['sharding'].spec)
    for value in jax.tree.leaves(list(equation.params.values())):
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        _constraints(inner, found)
  return found


@pytest.mark.parametrize('dims', [1, 2])
def test_an_activation_is_constrained_as_the_rules_say(dims):
  partitioner = partitioning.PjitPartitioner(
      num_partitions=1,
      logical_axis_rules=partitioning.standard_logical_axis_rules(dims, 1),
  )
  step = partitioner.partition(
      lambda x: spmd.with_logical_constraint(x, ('batch', 'length', 'embed')),
      (None,),
      None,
  )
  found = _constraints(step.trace(np.ones((2, 3, 4))).jaxpr.jaxpr, set())
  assert found == {P('data', None, 'model' if dims == 2 else None)}


def test_t5_constrains_its_heads_and_hidden_layers():
  config = network.T5Config(
      vocab_size=16,
      emb_dim=8,
      num_heads=2,
      num_encoder_layers=1,
      num_decoder_layers=1,
      head_dim=4,
      mlp_dim=8,
      dropout_rate=0.0,
  )
  transformer = network.Transformer(config)
  tokens = jnp.ones((2, 3), jnp.int32)
  args = (tokens, tokens, tokens)
  variables = jax.eval_shape(
      lambda: transformer.init(jax.random.key(0), *args, enable_dropout=False)
  )
  step = partitioning.PjitPartitioner(num_partitions=1).partition(
      lambda p: transformer.apply({'params': p}, *args, enable_dropout=False),
      (None,),
      None,
  )
  found = _constraints(step.trace(variables['params']).jaxpr.jaxpr, set())
  assert {P('data', None, 'model', None), P('data', None, 'model')} <= found
