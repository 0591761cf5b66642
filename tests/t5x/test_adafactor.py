from flax.linen import partitioning as flax_partitioning
from flax.traverse_util import ModelParamTraversal
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import t5x
from t5x import adafactor
from t5x import partitioning
from t5x import train_state
from t5x.optimizers import MultiOptimizer
from t5x.optimizers import PatternTraversal

Adafactor = adafactor.Adafactor
FactorDim = adafactor.FactorDim
HParamMap = adafactor.HParamMap
BATCH, ROW, COLUMN, NONE = (
    FactorDim.BATCH,
    FactorDim.ROW,
    FactorDim.COLUMN,
    FactorDim.NONE,
)
P = partitioning.PartitionSpec
RULES = adafactor.standard_logical_factor_rules()


def _normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _params():
  return {
      'kernel': _normal(0, 6, 4),
      'small': _normal(1, 6, 2),
      'scale': np.ones((5,), np.float32),
  }


def _grads(step):
  return {
      'kernel': 3.0 * _normal(step + 10, 6, 4),
      'small': _normal(step + 20, 6, 2),
      'scale': 0.1 * _normal(step + 30, 5),
  }


def _run(definition, params, grads, learning_rate=0.1):
  optimizer = definition.create(params)
  step = jax.jit(
      lambda optimizer, grad: optimizer.apply_gradient(
          grad, learning_rate=learning_rate
      )
  )
  for grad in grads:
    optimizer = step(optimizer, grad)
  return optimizer


def _assert_close(a, b, rtol=1e-5):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol, 1e-6), a, b)


class _Twin:
  """Adafactor of one parameter in float64 numpy, from the paper's text."""

  def __init__(self, param, factored, **settings):
    self.param = np.asarray(param, np.float64)
    self.factored = factored
    self.settings = settings
    self.second = np.zeros(self.param.shape)
    self.rows, self.columns = np.zeros(1), np.zeros(1)
    self.momentum = np.zeros(self.param.shape)

  def step(self, grad, time, lr):
    keep = 1 - time ** -self.settings.get('decay_rate', 0.8)
    squared = grad.astype(np.float64) ** 2 + 1e-30
    if self.factored:
      self.rows = keep * self.rows + (1 - keep) * squared.mean(1)
      self.columns = keep * self.columns + (1 - keep) * squared.mean(0)
      second = np.outer(self.rows, self.columns) / self.rows.mean()
    else:
      self.second = keep * self.second + (1 - keep) * squared
      second = self.second
    update = grad / np.sqrt(second)
    update = update / max(1.0, np.sqrt((update**2).mean()))
    scale = max(1e-3, np.sqrt((self.param**2).mean()))
    scale = min(scale, self.settings.get('max_parameter_scale', np.inf))
    update = update * lr * scale
    if 'beta1' in self.settings:
      beta1 = self.settings['beta1']
      self.momentum = beta1 * self.momentum + (1 - beta1) * update
      update = self.momentum
    decay = self.settings.get('weight_decay_rate', 0.0)
    decay *= lr ** self.settings.get('weight_decay_rate_lr_exponent', 0.0)
    self.param = self.param * (1 - decay) - update


@pytest.mark.parametrize(
    'settings',
    [
        {},
        {'beta1': 0.9, 'decay_rate': 0.6},
        {'weight_decay_rate': 0.1},
        {'weight_decay_rate': 0.1, 'weight_decay_rate_lr_exponent': 2.0},
        {'max_parameter_scale': 0.5},
    ],
    ids=lambda settings: '-'.join(settings) or 'defaults',
)
def test_steps_equal_the_paper_in_numpy(settings):
  grads = [_grads(step) for step in range(4)]
  optimizer = _run(
      Adafactor(min_dim_size_to_factor=3, **settings), _params(), grads
  )
  for name, param in _params().items():
    twin = _Twin(param, name == 'kernel', **settings)
    for step, grad in enumerate(grads):
      twin.step(grad[name], step + 1, 0.1)
    np.testing.assert_allclose(optimizer.target[name], twin.param, 2e-5, 1e-6)
  assert optimizer.state.step == 4


def test_steps_equal_optax():
  grads = [_grads(step) for step in range(3)]
  optimizer = _run(Adafactor(min_dim_size_to_factor=3), _params(), grads)
  tx = optax.adafactor(0.1, min_dim_size_to_factor=3, eps=1e-30)
  params = jax.tree.map(jnp.asarray, _params())
  state = tx.init(params)
  for grad in grads:
    updates, state = tx.update(grad, state, params)
    params = optax.apply_updates(params, updates)
  _assert_close(optimizer.target, params)


def test_scanned_layers_train_as_separate_layers():
  # The layers axis stands second, as in public scanned checkpoints.
  layers = [_normal(i, 6, 4) for i in range(3)]
  grads = [[_normal(9 * i + j, 6, 4) for i in range(3)] for j in range(3)]
  rule = HParamMap([('kernel', (ROW, BATCH, COLUMN))])
  scanned = _run(
      Adafactor(factor_map=rule, beta1=0.9),
      {'kernel': np.stack(layers, 1)},
      [{'kernel': np.stack(grad, 1)} for grad in grads],
  )
  moments = scanned.state.param_states['kernel']
  assert moments.v_row.shape == (6, 3)
  assert moments.v_col.shape == (3, 4)
  for i, layer in enumerate(layers):
    alone = _run(
        Adafactor(min_dim_size_to_factor=1, beta1=0.9),
        {'kernel': layer},
        [{'kernel': grad[i]} for grad in grads],
    )
    # The heuristic takes the larger dimension (6) as column; this rule, 4.
    # Factored moments are symmetric in that choice.
    np.testing.assert_allclose(
        scanned.target['kernel'][:, i], alone.target['kernel'], 1e-5, 1e-6
    )


def test_unused_slots_are_one_zero():
  state = Adafactor(min_dim_size_to_factor=3).init_state(_params())
  shapes = {
      name: tuple(
          getattr(moments, slot).shape for slot in 'v_row v_col v m'.split()
      )
      for name, moments in state.param_states.items()
  }
  assert shapes == {
      # The larger dimension, 6, is the column that `v_row` drops.
      'kernel': ((4,), (6,), (1,), (1,)),
      'small': ((1,), (1,), (6, 2), (1,)),
      'scale': ((1,), (1,), (5,), (1,)),
  }


def test_momentum_keeps_its_dtype():
  definition = Adafactor(beta1=0.9, dtype_momentum=jnp.bfloat16)
  optimizer = _run(definition, _params(), [_grads(0)])
  assert optimizer.state.param_states['scale'].m.dtype == jnp.bfloat16


def test_step_offset_restarts_the_decay():
  offset = Adafactor(step_offset=7).create(_params())
  offset = offset.replace(state=offset.state.replace(step=jnp.int32(7)))
  fresh = Adafactor().create(_params())
  _assert_close(
      offset.apply_gradient(_grads(0), learning_rate=0.1).target,
      fresh.apply_gradient(_grads(0), learning_rate=0.1).target,
  )


def test_parameter_scale_by_name():
  by_name = HParamMap([('kernel', False), ('.*', True)])
  mixed, off, on = (
      _run(Adafactor(multiply_by_parameter_scale=v), _params(), [_grads(0)])
      for v in (by_name, False, True)
  )
  np.testing.assert_array_equal(mixed.target['kernel'], off.target['kernel'])
  np.testing.assert_array_equal(mixed.target['small'], on.target['small'])
  assert not np.allclose(on.target['kernel'], off.target['kernel'])


def test_a_rule_for_no_parameter_is_an_error():
  params = {'bias': np.zeros(2), 'kernel': np.zeros((2, 2))}
  scale = HParamMap([('kernal', False), ('.*', True)])
  definition = Adafactor(multiply_by_parameter_scale=scale)
  message = "multiply_by_parameter_scale: pattern 'kernal' .*'kernel'"
  with pytest.raises(ValueError, match=message):
    definition.create(params)
  # Optimizers of several groups may share a map: it speaks of all of them.
  shared = HParamMap([('kernel', False), ('bias', True)])
  groups = MultiOptimizer(
      [
          (
              PatternTraversal([name]),
              Adafactor(multiply_by_parameter_scale=shared),
          )
          for name in params
      ]
  )
  groups.create(params)


def test_global_norm_clipping_scales_all_gradients():
  clipped = _run(
      Adafactor(global_norm_clip_threshold=0.5), _params(), [_grads(0)]
  )
  norm = optax.tree.norm(_grads(0))
  grads = jax.tree.map(lambda grad: grad * 0.5 / norm, _grads(0))
  scaled = _run(Adafactor(), _params(), [grads])
  _assert_close(clipped.target, scaled.target)
  _assert_close(clipped.state, scaled.state)


@pytest.mark.parametrize('skip', [False, True])
def test_nan_updates_are_skipped_if_told(skip):
  grads = {**_grads(0), 'scale': np.full((5,), np.nan, np.float32)}
  optimizer = _run(Adafactor(skip_nan_updates=skip), _params(), [grads])
  assert np.isnan(optimizer.target['scale']).all() != skip
  assert np.isnan(optimizer.state.param_states['scale'].v).all() != skip
  assert not np.isnan(optimizer.target['kernel']).any()


@pytest.mark.parametrize(
    ('axes', 'shape', 'factored'),
    [
        (('embed', 'layers', 'mlp'), (8, 3, 9), True),
        (('embed', 'embed', 'layers'), (8, 8, 3), False),
        (('layers', 'heads', 'relpos_buckets'), (3, 4, 32), False),
    ],
)
def test_logical_axes_rule_the_factors(axes, shape, factored):
  definition = Adafactor(logical_factor_rules=RULES)
  definition.set_param_axes({'a': {'kernel': P(*axes)}})
  state = definition.init_state({'a': {'kernel': jnp.ones(shape)}})
  moments = state.param_states['a']['kernel']
  assert (moments.v.shape == (1,)) == factored


def test_wrong_rules_are_refused():
  cube = {'cube': jnp.ones((4, 4, 4))}
  logical = Adafactor(logical_factor_rules=RULES)
  with pytest.raises(ValueError, match="'cube'.*more than two"):
    Adafactor().init_state(cube)
  with pytest.raises(ValueError, match="'cube'.*rank 2"):
    Adafactor(factor_map={'cube': (ROW, COLUMN)}).init_state(cube)
  with pytest.raises(ValueError, match="'cube' mixes NONE"):
    Adafactor(factor_map={'cube': (ROW, COLUMN, NONE)}).init_state(cube)
  with pytest.raises(ValueError, match="'k' mixes NONE"):
    logical.set_param_axes({'k': P('embed', 'mlp', 'relpos_buckets')})
  with pytest.raises(ValueError, match="'strange'.*'k'"):
    logical.set_param_axes({'k': P('strange')})
  with pytest.raises(KeyError, match='No rule for parameter'):
    Adafactor(factor_map=HParamMap([('x', NONE)])).init_state(cube)
  with pytest.raises(ValueError, match='factored=False'):
    Adafactor(factored=False, factor_map={})
  with pytest.raises(TypeError, match='HParamMap'):
    Adafactor(multiply_by_parameter_scale=0.5)
  with pytest.raises(ValueError, match='no learning rate'):
    Adafactor().create(_params()).apply_gradient(_grads(0))


def test_heuristic_rule_takes_the_two_largest_dimensions():
  definition = Adafactor(
      factor_map=HParamMap([('', adafactor.HEURISTIC_RULE)]),
      min_dim_size_to_factor=4,
  )
  state = definition.init_state({'cube': jnp.ones((5, 2, 6))})
  assert state.param_states['cube'].v_row.shape == (5, 2)
  assert state.param_states['cube'].v_col.shape == (2, 6)


def _variables():
  axes = {
      'kernel': ('embed', 'layers', 'mlp'),
      'scale': ('embed',),
  }
  return {
      'params': {'kernel': jnp.ones((8, 3, 4)), 'scale': jnp.ones((8,))},
      'params_axes': {
          f'{name}_axes': flax_partitioning.AxisMetadata(names=names)
          for name, names in axes.items()
      },
  }


def test_train_state_partitions_and_restores():
  definition = Adafactor(logical_factor_rules=RULES, beta1=0.9)
  state = train_state.FlaxOptimTrainState.create(definition, _variables())
  axes = state.as_logical_axes().param_states
  kernel = P('embed', 'layers', 'mlp')
  assert axes['kernel'] == adafactor._AdafactorParamState(
      None, None, None, kernel
  )
  assert axes['scale'].v == axes['scale'].m == P('embed')

  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  specs = partitioner.get_mesh_axes(state).param_states
  assert specs['kernel'].m == P(None, None, 'model')
  assert specs['kernel'].v_row is None

  trained = state.apply_gradient(state.params, learning_rate=0.1)
  saved = trained.state_dict()
  assert set(saved['state']['param_states']['kernel']) == {
      'v_row',
      'v_col',
      'v',
      'm',
  }
  jax.tree.map(
      np.testing.assert_array_equal,
      state.restore_state(saved).state_dict(),
      saved,
  )


@pytest.mark.filterwarnings(
    'ignore:.flax.traverse_util.Traversal. will be deprecated'
)
def test_multi_optimizer_freezes_what_it_does_not_match():
  definition = MultiOptimizer(
      [
          (
              ModelParamTraversal(lambda name, _: 'kernel' in name),
              Adafactor(logical_factor_rules=RULES),
          )
      ]
  )
  state = train_state.FlaxOptimTrainState.create(definition, _variables())
  grads = {'kernel': jnp.ones((8, 3, 4)), 'scale': None}
  new = state.apply_gradient(type(state.params)(grads), learning_rate=0.1)
  assert new.param_states['scale'] is None
  np.testing.assert_array_equal(new.params['scale'], state.params['scale'])
  alone = _run(
      Adafactor(factor_map={'kernel': (ROW, BATCH, COLUMN)}),
      {'kernel': state.params['kernel']},
      [{'kernel': grads['kernel']}],
  )
  np.testing.assert_allclose(new.params['kernel'], alone.target['kernel'], 1e-6)
  assert new.as_logical_axes().param_states['kernel'].v is None


def test_import_t5x_exposes_adafactor():
  assert t5x.adafactor.Adafactor is Adafactor
