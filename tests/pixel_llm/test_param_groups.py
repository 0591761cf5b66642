import functools
import pathlib

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import optax
import pytest

from pixel_llm import layer_layout
from pixel_llm import param_groups
from pixel_llm import schedules
from pixel_llm.golden import case as case_lib
from pixel_llm.golden import compare
from pixel_llm.golden.runners import optimizer as runner
from t5x import optimizers
from t5x import param_patterns

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
PARAMS = {
    'tower': {
        'blocks.0': {'kernel': jnp.ones((2, 3)), 'bias': jnp.ones(3)},
        'blocks.1': {'kernel': jnp.ones((3, 2)), 'bias': jnp.ones(2)},
        'pos_embed': jnp.ones((1, 2, 2)),
    },
    'head': {'kernel': jnp.ones((2, 2)), 'scale': jnp.ones(2)},
}
GRADS = jax.tree.map(lambda x: 0.5 * x, PARAMS)
LAYER_DECAY = param_groups.LayerDecay(
    num_layers=2, rate=0.5, block_prefix=r'tower/blocks\.', stems=('pos_embed',)
)


def _masked_grads(optimizer):
  mask = optimizer.trainable_mask(PARAMS)
  return jax.tree.map(lambda keep, g: g if keep else None, mask, GRADS)


@pytest.mark.golden
def test_rates_updates_layers_and_freezing_equal_the_original():
  case = case_lib.load_case(GOLDEN, 'optimizer')
  actual = runner.run_optimizer(case)
  reports = compare.compare_case(actual, case.expected)
  assert not [f'{r.name}: {r.message}' for r in reports if not r.passed]
  # Updates are of size 1e-7, far below the common absolute tolerance.
  for name, expected in case.expected.items():
    np.testing.assert_allclose(
        actual[name], expected, rtol=1e-5, atol=1e-13, err_msg=name
    )


def test_frozen_parameters_stay_and_have_no_state():
  optimizer = param_groups.ParamGroupOptimizer(0.1, frozen=('^tower/',))
  state = optimizer.init_state(PARAMS)
  moments = [x for x in jax.tree.leaves(state.param_states) if x.ndim]
  assert len(moments) == 2 * len(PARAMS['head'])
  update = jax.jit(
      lambda p, s: optimizer.apply_gradient(
          optimizer.hyper_params, p, s, _masked_grads(optimizer)
      )
  )
  params, state = update(PARAMS, state)
  jax.tree.map(np.testing.assert_array_equal, params['tower'], PARAMS['tower'])
  np.testing.assert_allclose(params['head']['kernel'], 0.9, rtol=1e-5)
  assert state.step == 1


def test_without_settings_it_is_adam():
  optimizer = param_groups.ParamGroupOptimizer(0.1)
  expected = optax.adam(0.1)
  opt_state = expected.init(PARAMS)
  params, state = PARAMS, optimizer.init_state(PARAMS)
  theirs = PARAMS
  for scale in (1.0, -2.0, 0.3):
    grads = jax.tree.map(lambda g, scale=scale: scale * g, GRADS)
    params, state = optimizer.apply_gradient(None, params, state, grads)
    updates, opt_state = expected.update(grads, opt_state)
    theirs = optax.apply_updates(theirs, updates)
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, theirs
  )


def test_clipping_bounds_the_norm_of_the_trained_gradients_only():
  def make(clip):
    return param_groups.ParamGroupOptimizer(
        0.1, eps=1.0, frozen=('^tower/',), clip_norm=clip
    )

  # Four and two values of 0.5 train: norm sqrt(6)/2.
  norm = np.sqrt(6) / 2

  def step(clip):
    optimizer = make(clip)
    return optimizer.apply_gradient(
        None, PARAMS, optimizer.init_state(PARAMS), _masked_grads(optimizer)
    )[0]['head']['kernel']

  np.testing.assert_allclose(step(1.01 * norm), step(None))
  assert np.all(step(0.5 * norm) > step(None))


def test_state_survives_a_state_dict_and_fits_a_resumed_run():
  optimizer = param_groups.ParamGroupOptimizer(
      schedules.warmup_cosine(0.1, 10, 2), weight_decay=0.1, frozen=('head',)
  )
  bound = optimizer.create(PARAMS)
  grads = _masked_grads(optimizer)
  for _ in range(3):
    bound = bound.apply_gradient(grads)
  restored = optimizer.create(PARAMS).restore_state(bound.state_dict())
  jax.tree.map(
      np.testing.assert_array_equal,
      bound.apply_gradient(grads),
      restored.apply_gradient(grads),
  )


def test_moments_take_the_axes_of_their_parameters():
  optimizer = param_groups.ParamGroupOptimizer(0.1, frozen=('head',))
  axes = jax.tree.map(
      lambda x: PartitionSpec(*[f'axis{i}' for i in range(x.ndim)]), PARAMS
  )
  derived = optimizer.derive_logical_axes(optimizer.create(PARAMS), axes)
  adam = derived.state.param_states[0]
  assert adam.mu['tower'] == axes['tower']
  assert adam.count is None
  assert isinstance(adam.nu['head']['kernel'], optax.MaskedNode)
  assert isinstance(derived, optimizers.Optimizer)


@pytest.mark.parametrize(
    'options, message',
    [
        ({'frozen': ('towr/',)}, r"'towr/' matches none.*Nearest: \['tower'"),
        ({'frozen': ('tower', 'pos_embed')}, r"'tower' and 'pos_embed' both"),
        ({'frozen': ('.',)}, 'freezes all'),
        ({'lr_multipliers': (('haed', 2.0),)}, r"'haed' matches none.*'head'"),
        (
            {'lr_multipliers': (('head', 2.0), ('kernel', 3.0))},
            r"'head' and 'kernel' both match parameter 'head/kernel'",
        ),
        (
            {'layer_decay': param_groups.LayerDecay(2, stems=())},
            'block_prefix .* matches no',
        ),
        (
            {
                'layer_decay': param_groups.LayerDecay(
                    2, block_prefix=r'tower/blocks\.', stems=('pos_embd',)
                )
            },
            r"stem 'pos_embd'.*'pos_embed'",
        ),
        (
            {
                'layer_decay': param_groups.LayerDecay(
                    1, block_prefix=r'tower/blocks\.', stems=('pos_embed',)
                )
            },
            'num_layers=1: set it to the depth',
        ),
    ],
)
def test_a_pattern_that_does_not_fit_is_an_error(options, message):
  optimizer = param_groups.ParamGroupOptimizer(0.1, **options)
  with pytest.raises(ValueError, match=message):
    optimizer.init_state(PARAMS)


def test_a_pattern_that_is_no_expression_is_an_error():
  with pytest.raises(ValueError, match=r"'tower\('"):
    param_groups.ParamGroupOptimizer(0.1, frozen=('tower(',))


def test_a_multiplier_of_frozen_parameters_warns():
  optimizer = param_groups.ParamGroupOptimizer(
      0.1, frozen=('head',), lr_multipliers=(('^head/', 10.0),)
  )
  with pytest.warns(UserWarning, match='no effect'):
    optimizer.trainable_mask(PARAMS)


def test_the_table_tells_how_each_parameter_trains():
  optimizer = param_groups.ParamGroupOptimizer(
      0.1,
      weight_decay=0.1,
      frozen=('blocks.0',),
      lr_multipliers=(('^head/', 10.0),),
      layer_decay=LAYER_DECAY,
  )
  shapes = jax.eval_shape(lambda: PARAMS)
  rows = {row.name: row for row in optimizer.table(shapes)}
  assert len(rows) == 7
  assert not rows['tower/blocks.0/kernel'].trained
  assert rows['head/kernel'] == param_groups.ParamRow(
      'head/kernel', (2, 2), 4, True, 10.0, True
  )
  assert not rows['head/scale'].decays
  assert rows['tower/pos_embed'].lr_factor == 0.125
  assert rows['tower/blocks.1/bias'].lr_factor == 0.5
  text = param_groups.format_table(list(rows.values()))
  assert '18 of 27 values are trained.' in text
  assert 'frozen' in text.splitlines()[2] + text.splitlines()[3]


def test_rate_factors_scale_the_step():
  optimizer = param_groups.ParamGroupOptimizer(
      0.1, lr_multipliers=(('^head/', 3.0),), layer_decay=LAYER_DECAY
  )
  params, _ = optimizer.apply_gradient(
      None, PARAMS, optimizer.init_state(PARAMS), GRADS
  )
  moved = jax.tree.map(lambda a, b: float((a - b).ravel()[0]), PARAMS, params)
  np.testing.assert_allclose(moved['head']['scale'], 0.3, rtol=1e-4)
  np.testing.assert_allclose(moved['tower']['pos_embed'], 0.0125, rtol=1e-4)
  np.testing.assert_allclose(
      moved['tower']['blocks.0']['bias'], 0.025, rtol=1e-4
  )


def _tower(scanned):
  """Six blocks with two members and a stem, random, in either form."""
  rng = np.random.default_rng(0)

  def block(i):
    return {
        'kernel': rng.normal(size=(2, 3)).astype('float32'),
        'bias': rng.normal(size=(3,)).astype('float32'),
        'table': rng.normal(size=(1, 2, 2 + i % 2)).astype('float32'),
    }

  tree = {
      'tower': {f'blocks.{i}': block(i) for i in range(6)}
      | {'pos_embed': rng.normal(size=(1, 2, 2)).astype('float32')},
      'head': {'kernel': rng.normal(size=(2, 2)).astype('float32')},
  }
  if not scanned:
    return tree
  return layer_layout.LAYOUT.scan(tree, {'tower/blocks': 2})


def test_scanned_and_unrolled_parameters_get_the_same_updates():
  optimizer = param_groups.ParamGroupOptimizer(
      0.1,
      weight_decay=0.2,
      clip_norm=1.0,
      frozen=(r'blocks\.\d/table',),
      lr_multipliers=((r'blocks\.[23]/bias', 7.0), ('head', 3.0)),
      layer_decay=param_groups.LayerDecay(
          6, 0.5, r'tower/blocks\.', ('pos_embed',)
      ),
  )

  @jax.jit
  def update(params, state):
    grads = jax.tree.map(
        lambda trains, x: jnp.sin(3 * x) if trains else None,
        optimizer.trainable_mask(params),
        params,
    )
    return optimizer.apply_gradient(
        optimizer.hyper_params, params, state, grads
    )

  trained = []
  for scanned in (False, True):
    params = _tower(scanned)
    state = optimizer.init_state(params)
    for _ in range(3):
      params, state = update(params, state)
    trained.append((params, optimizer.state_dict(params, state)))
  (unrolled, unrolled_state), (scanned, scanned_state) = trained
  close = functools.partial(np.testing.assert_allclose, rtol=2e-6, atol=1e-7)
  jax.tree.map(close, layer_layout.to_unrolled(scanned), unrolled)
  jax.tree.map(close, layer_layout.to_unrolled(scanned_state), unrolled_state)
  # What is frozen stays, everything else moves.
  for name, before, after in zip(
      param_patterns.param_names(unrolled),
      jax.tree.leaves(_tower(False)),
      jax.tree.leaves(unrolled),
  ):
    assert np.array_equal(before, after) == name.endswith('table'), name
  assert optimizer.table(scanned) == optimizer.table(unrolled)


def test_one_scanned_array_cannot_be_frozen_in_part():
  optimizer = param_groups.ParamGroupOptimizer(0.1, frozen=(r'blocks\.0/bias',))
  optimizer.trainable_mask(_tower(False))
  with pytest.raises(ValueError, match=r"'tower/blocks.2/bias' trains"):
    optimizer.trainable_mask(_tower(True))


@pytest.mark.parametrize('scanned', [False, True])
def test_frozen_parameters_may_be_kept_in_half_precision(scanned):
  optimizer = param_groups.ParamGroupOptimizer(
      0.1, frozen=('^tower/',), frozen_dtype='bfloat16'
  )
  state = optimizer.create(_tower(scanned))
  assert {x.dtype.name for x in jax.tree.leaves(state.target['tower'])} == {
      'bfloat16'
  }
  assert state.target['head']['kernel'].dtype == jnp.float32
  updated = state.apply_gradient(
      {
          'tower': jax.tree.map(lambda _: None, state.target['tower']),
          'head': {'kernel': jnp.ones((2, 2))},
      },
      learning_rate=0.1,
  )
  assert jax.tree.map(lambda x: x.dtype, updated.target) == jax.tree.map(
      lambda x: x.dtype, state.target
  )
