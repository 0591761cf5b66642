from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_regression

from t5x import optimizers
from t5x import partitioning

P = partitioning.PartitionSpec

# Flax keeps ModelParamTraversal, but deprecates its base class.
pytestmark = pytest.mark.filterwarnings(
    'ignore:.flax.traverse_util.Traversal. will be deprecated'
)


def _params():
  return {
      'embedder': {'kernel': jnp.ones((4, 3))},
      'head': {'kernel': jnp.full((3, 2), 2.0), 'bias': jnp.zeros((2,))},
  }


AXES = {
    'embedder': {'kernel': P('vocab', 'embed')},
    'head': {'kernel': P('embed', 'mlp'), 'bias': P('mlp')},
}
ONES = jax.tree.map(jnp.ones_like, _params())
MASKED_ONES = {'embedder': {'kernel': None}, 'head': ONES['head']}

WRAPPED = {
    'adabelief': {},
    'adagrad': {},
    'adam': {},
    'adamw': {},
    'fromage': {},
    'lars': {},
    'lamb': {},
    'lion': {},
    'noisy_sgd': {'key': 0},
    'radam': {},
    'rmsprop': {'momentum': 0.9},
    'sgd': {'momentum': 0.9},
    'yogi': {},
}


def _assert_equal(a, b):
  # Noisy SGD keeps a random key, which numpy does not read.
  if jnp.issubdtype(jnp.result_type(a), jax.dtypes.prng_key):
    a, b = jax.random.key_data(a), jax.random.key_data(b)
  np.testing.assert_array_equal(a, b)


def _state_leaves(optimizer):
  return jax.tree_util.tree_leaves_with_path(optimizer.state.param_states)


@pytest.mark.parametrize('name', WRAPPED)
def test_wrapped_optimizers_update_serialise_and_have_axes(name):
  definition = getattr(optimizers, name)(0.1, **WRAPPED[name])
  optimizer = definition.create(_params()).apply_gradient(
      ONES, learning_rate=100.0
  )
  assert optimizer.state.step == 1
  assert not np.array_equal(
      optimizer.target['head']['kernel'], _params()['head']['kernel']
  )
  state_dict = optimizer.state_dict()
  flat = flax.traverse_util.flatten_dict(state_dict, keep_empty_nodes=True)
  assert flax.traverse_util.empty_node not in [
      value for path, value in flat.items() if len(path) > 2
  ]
  restored = definition.create(_params()).restore_state(state_dict)
  assert jax.tree.structure(restored) == jax.tree.structure(optimizer)
  jax.tree.map(_assert_equal, restored, optimizer)
  axes = definition.derive_logical_axes(optimizer, AXES)
  assert axes.target is AXES
  for leaf in jax.tree.leaves(axes.state):
    assert isinstance(leaf, P)


@pytest.mark.filterwarnings('ignore:"seed" is deprecated')
def test_private_sgd_is_wrapped():
  definition = optimizers.dpsgd(0.1, 1.0, 0.0, 0)
  assert isinstance(definition, optimizers.OptaxWrapper)


def test_adamw_axes_and_state_dict():
  definition = optimizers.OptaxWrapper(optax.adamw(1e-3))
  optimizer = definition.create(_params())
  axes = definition.derive_logical_axes(optimizer, AXES)
  assert axes.state.step is None
  assert axes.state.param_states[0] == optax.ScaleByAdamState(None, AXES, AXES)
  assert axes.state.param_states[1:] == (optax.EmptyState(), optax.EmptyState())
  state_dict = optimizer.state_dict()
  assert set(state_dict) == {'target', 'state'}
  assert set(state_dict['state']['param_states']) == {'0'}
  assert set(state_dict['state']['param_states']['0']) == {'count', 'mu', 'nu'}


def test_parts_with_other_shapes_are_replicated():
  definition = optimizers.OptaxWrapper(
      optax.scale_by_factored_rms(min_dim_size_to_factor=2)
  )
  optimizer = definition.create(_params())
  axes = definition.derive_logical_axes(optimizer, AXES)
  state = axes.state.param_states
  assert state.v_row['embedder']['kernel'] is None
  assert state.v['head']['bias'] == P('mlp')


class _Custom(NamedTuple):
  moments: dict


def _custom_transformation():
  return optax.GradientTransformation(
      lambda params: _Custom(jax.tree.map(jnp.zeros_like, params)),
      lambda grads, state, params=None: (grads, state),
  )


def test_unknown_state_class_is_an_error_until_listed():
  definition = optimizers.OptaxWrapper(_custom_transformation())
  optimizer = definition.create(_params())
  with pytest.raises(ValueError, match='_Custom.*state_classes'):
    definition.derive_logical_axes(optimizer, AXES)

  class Listed(optimizers.OptaxWrapper):
    state_classes = (_Custom,)

  definition = Listed(_custom_transformation())
  axes = definition.derive_logical_axes(definition.create(_params()), AXES)
  assert axes.state.param_states.moments == AXES


def test_chain_takes_a_list():
  definition = optimizers.chain(
      transformations=[optax.scale(2.0), optax.scale(-1.0)]
  )
  optimizer = definition.create({'w': jnp.zeros(2)})
  optimizer = optimizer.apply_gradient({'w': jnp.ones(2)}, learning_rate=0.1)
  np.testing.assert_array_equal(optimizer.target['w'], [-2.0, -2.0])


def test_passed_learning_rate_has_no_effect():
  results = [
      optimizers.sgd(0.5)
      .create(_params())
      .apply_gradient(ONES, learning_rate=rate)
      .target
      for rate in (0.0, 9.0)
  ]
  jax.tree.map(np.testing.assert_array_equal, *results)


def test_frozen_parameters_keep_no_state_and_their_bits():
  definition = tiny_regression.FrozenEmbedder(
      optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))
  )
  optimizer = definition.create(_params())
  assert not any(
      'embedder' in str(path) for path, _ in _state_leaves(optimizer)
  )
  for _ in range(2):
    optimizer = optimizer.apply_gradient(MASKED_ONES, learning_rate=0.1)
  np.testing.assert_array_equal(
      optimizer.target['embedder']['kernel'], np.ones((4, 3))
  )
  assert optimizer.target['head']['kernel'][0, 0] < 2
  axes = definition.derive_logical_axes(optimizer, AXES)
  moments = axes.state.param_states[1][0].mu
  assert moments['head'] == AXES['head']
  assert moments['embedder']['kernel'] == optax.MaskedNode()
  names = flax.traverse_util.flatten_dict(optimizer.state_dict(), sep='/')
  assert 'state/param_states/1/0/mu/head/bias' in names
  assert not any('mu/embedder' in name for name in names)
  restored = definition.create(_params()).restore_state(optimizer.state_dict())
  assert jax.tree.structure(restored) == jax.tree.structure(optimizer)
  jax.tree.map(np.testing.assert_array_equal, restored, optimizer)


def test_clipping_sees_trainable_gradients_only():
  definition = tiny_regression.FrozenEmbedder(
      optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0))
  )
  optimizer = definition.create(_params()).apply_gradient(
      MASKED_ONES, learning_rate=0.1
  )
  # Eight trainable numbers with gradient 1: norm sqrt(8).
  np.testing.assert_allclose(
      optimizer.target['head']['bias'], -np.ones(2) / np.sqrt(8), rtol=1e-6
  )


def test_restoring_another_optimizer_names_what_is_missing():
  sgd = optimizers.sgd(0.1).create(_params())
  with pytest.raises(ValueError, match='0/count'):
    optimizers.adam(0.1).create(_params()).restore_state(sgd.state_dict())


def _traversal(prefix):
  return optimizers.ModelParamTraversal(
      lambda path, _: path.startswith(f'/{prefix}')
  )


def test_multi_optimizer_runs_each_part_and_freezes_the_rest():
  definition = optimizers.MultiOptimizer(
      [
          (_traversal('head/kernel'), optimizers.sgd(1.0)),
          (_traversal('head/bias'), optimizers.adam(0.1)),
      ]
  )
  assert definition.trainable_mask(_params()) == {
      'embedder': {'kernel': False},
      'head': {'kernel': True, 'bias': True},
  }
  optimizer = definition.create(_params())
  optimizer = optimizer.apply_gradient(MASKED_ONES, learning_rate=0.1)
  assert optimizer.state.step == 1
  np.testing.assert_array_equal(optimizer.target['embedder']['kernel'], 1)
  np.testing.assert_array_equal(optimizer.target['head']['kernel'], 1)
  np.testing.assert_allclose(
      optimizer.target['head']['bias'], [-0.1, -0.1], rtol=1e-5
  )
  axes = definition.derive_logical_axes(optimizer, AXES)
  assert axes.state.param_states[1][0].mu['head'] == {
      'kernel': None,
      'bias': P('mlp'),
  }
  state_dict = optimizer.state_dict()
  assert set(state_dict['state']['param_states']) == {'1'}
  restored = definition.create(_params()).restore_state(state_dict)
  assert jax.tree.structure(restored) == jax.tree.structure(optimizer)
  jax.tree.map(np.testing.assert_array_equal, restored, optimizer)


class _Momentum(optimizers.OptimizerDef):
  """One state a parameter, as in Adafactor."""

  def init_state(self, params):
    states = jax.tree.map(lambda p: {'m': jnp.zeros_like(p)}, params)
    return optimizers.OptimizerState(jnp.zeros((), jnp.int32), states)

  def apply_gradient(self, hyper_params, params, state, grads):
    rate = hyper_params.learning_rate
    states = jax.tree.map(
        lambda p, s, g: {'m': s['m'] + g}, params, state.param_states, grads
    )
    params = jax.tree.map(lambda p, s: p - rate * s['m'], params, states)
    return params, optimizers.OptimizerState(state.step + 1, states)

  def derive_logical_axes(self, optimizer, param_logical_axes):
    states = jax.tree.map(
        lambda _, spec: {'m': spec}, optimizer.target, param_logical_axes
    )
    return optimizers.Optimizer(
        self, optimizers.OptimizerState(None, states), param_logical_axes
    )


@flax.struct.dataclass
class _Rate:
  learning_rate: float


def test_multi_optimizer_joins_states_kept_by_parameter():
  definition = optimizers.MultiOptimizer(
      [
          (_traversal('head/kernel'), _Momentum(_Rate(1.0))),
          (_traversal('head/bias'), _Momentum(_Rate(2.0))),
      ]
  )
  optimizer = definition.create(_params())
  states = optimizer.state.param_states
  assert states['embedder']['kernel'] is None
  assert states['head']['kernel']['m'].shape == (3, 2)
  optimizer = optimizer.apply_gradient(MASKED_ONES)
  np.testing.assert_array_equal(optimizer.target['head']['kernel'], 1)
  np.testing.assert_array_equal(optimizer.target['head']['bias'], -2)
  optimizer = optimizer.apply_gradient(MASKED_ONES, learning_rate=0.0)
  np.testing.assert_array_equal(optimizer.target['head']['bias'], -2)
  axes = definition.derive_logical_axes(optimizer, AXES)
  assert axes.state.param_states['head']['bias'] == {'m': P('mlp')}
  restored = definition.create(_params()).restore_state(optimizer.state_dict())
  jax.tree.map(np.testing.assert_array_equal, restored, optimizer)


def test_overlapping_traversals_are_an_error():
  definition = optimizers.MultiOptimizer(
      [
          (_traversal('head'), optimizers.sgd(1.0)),
          (_traversal('head/bias'), optimizers.sgd(1.0)),
      ]
  )
  with pytest.raises(ValueError, match="both match 'head/bias'"):
    definition.create(_params())


def test_a_traversal_that_matches_nothing_is_an_error():
  definition = optimizers.MultiOptimizer(
      [
          (_traversal('head'), optimizers.sgd(1.0)),
          (_traversal('hed'), optimizers.sgd(1.0)),
      ]
  )
  message = "Optimizer 1 of the MultiOptimizer: .* none of .*'head/bias'"
  with pytest.raises(ValueError, match=message):
    definition.create(_params())


def test_groups_by_pattern_train_alike_and_name_a_misspelt_pattern():
  def groups(*patterns):
    return optimizers.MultiOptimizer(
        [(optimizers.PatternTraversal(patterns), optimizers.sgd(1.0))]
    )

  optimizer = groups('^head/k', 'bias$').create(_params())
  mask = optimizer.optimizer_def.trainable_mask(optimizer.target)
  assert mask['head'] == {'bias': True, 'kernel': True}
  trained = groups('^head/k').create(_params()).apply_gradient(_params())
  want = (
      optimizers.MultiOptimizer([(_traversal('head/k'), optimizers.sgd(1.0))])
      .create(_params())
      .apply_gradient(_params())
  )
  jax.tree.map(np.testing.assert_array_equal, trained.target, want.target)
  message = "Optimizer 0 .*'haed/k' matches none of .*Nearest: .*'head/k"
  with pytest.raises(ValueError, match=message):
    groups('bias$', 'haed/k').create(_params())
  with pytest.raises(ValueError, match=r"'head\(' is not a regular"):
    groups('head(')


def test_clipping_goes_by_the_norm_of_all_groups_together():
  def step(clip_norm):
    definition = optimizers.MultiOptimizer(
        [
            (_traversal('head/kernel'), optimizers.sgd(1.0)),
            (_traversal('head/bias'), optimizers.sgd(10.0)),
        ],
        clip_norm=clip_norm,
    )
    grads = {
        # Frozen: it is in no group and does not count.
        'embedder': {'kernel': jnp.full((4, 3), 100.0)},
        'head': {
            'kernel': jnp.array([[3.0, 0.0], [0.0, 0.0], [0.0, 0.0]]),
            'bias': jnp.array([0.0, 4.0]),
        },
    }
    new = definition.create(_params()).apply_gradient(grads).target
    return jax.tree.map(lambda a, b: np.asarray(a - b), _params(), new)

  # The norm is 5: clipped to 1, all gradients are a fifth.
  clipped, whole = step(1.0), step(10.0)
  np.testing.assert_allclose(clipped['head']['kernel'][0, 0], 0.6, rtol=1e-6)
  np.testing.assert_allclose(clipped['head']['bias'], [0.0, 8.0], rtol=1e-6)
  np.testing.assert_allclose(whole['head']['bias'], [0.0, 40.0], rtol=1e-6)
  assert not clipped['embedder']['kernel'].any()
