"""Scanned and unrolled towers compute the same, with and without remat."""

import functools

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_llm import layer_layout
from pixel_llm.modules import eva02_vit
from pixel_llm.modules import sam_image_encoder
from t5x import layer_stack

EVA = eva02_vit.Eva02Vit(
    patch_size=4,
    embed_dim=16,
    depth=3,
    num_heads=2,
    pretrain_image_size=8,
    drop_path_rate=0.5,
)
SAM = sam_image_encoder.SamImageEncoder(
    image_size=16,
    patch_size=4,
    embed_dim=8,
    depth=4,
    num_heads=2,
    output_dim=4,
    window_size=2,
    global_block_indexes=(1, 3),
)
TOWERS = {
    'eva02': EVA,
    'sam': SAM,
    'sam_windowed': SAM.clone(global_block_indexes=()),
}
IMAGES = jax.random.normal(jax.random.key(0), (2, 12, 16, 3))


def shapes_of(tower):
  return jax.eval_shape(tower.init, jax.random.key(0), IMAGES)['params']


@functools.cache
def both_forms(name):
  """A tower in both forms, with the same random parameters."""
  tower = TOWERS[name]
  rng = np.random.default_rng(0)
  params = jax.tree.map(
      lambda x: jnp.asarray(rng.normal(scale=0.2, size=x.shape), jnp.float32),
      shapes_of(tower),
  )
  scanned = tower.clone(scan_layers=True)
  scanned_params = layer_layout.to_layout_of(params, shapes_of(scanned))
  assert jax.tree.map(jnp.shape, scanned_params) == jax.tree.map(
      jnp.shape, shapes_of(scanned)
  )
  return (tower, params), (scanned, scanned_params)


def value_and_grad(tower, params):
  def loss(params):
    y = tower.apply({'params': params}, IMAGES)
    return jnp.sum(jnp.sin(3 * y)), y

  (_, value), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  return value, layer_layout.to_unrolled(grads)


@functools.cache
def expected(name):
  return value_and_grad(*both_forms(name)[0])


def assert_equal_to_unrolled(name, tower, params):
  for actual, wanted in zip(
      jax.tree.leaves(value_and_grad(tower, params)),
      jax.tree.leaves(expected(name)),
      strict=True,
  ):
    np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-4)


def test_scanned_towers_give_equal_outputs_and_gradients():
  assert_equal_to_unrolled('eva02', *both_forms('eva02')[1])


def test_a_tower_with_global_blocks_gives_equal_outputs():
  unrolled, scanned = (
      jax.jit(tower.apply)({'params': params}, IMAGES)
      for tower, params in both_forms('sam')
  )
  np.testing.assert_allclose(scanned, unrolled, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    'scanned', [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_remat_changes_no_number(scanned):
  tower, params = both_forms('eva02')[scanned]
  assert_equal_to_unrolled('eva02', tower.clone(remat_policy='full'), params)


@pytest.mark.slow
@pytest.mark.parametrize('policy', layer_stack.REMAT_POLICIES)
@pytest.mark.parametrize('name', TOWERS)
def test_all_policies_give_equal_outputs_and_gradients(name, policy):
  for tower, params in both_forms(name):
    assert_equal_to_unrolled(name, tower.clone(remat_policy=policy), params)


def test_rates_of_drop_path_grow_over_the_blocks_in_both_forms():
  images = jnp.tile(IMAGES[:1], (256, 1, 1, 1))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes_of(EVA))
  for tower in (EVA, EVA.clone(scan_layers=True)):
    run = jax.jit(functools.partial(tower.apply, enable_dropout=True))
    shares = []
    for block in range(3):
      # Only one block's attention adds anything, so its rate can be seen.
      alone = traverse_util.flatten_dict(zeros, sep='/')
      alone['ln_post/scale'] += 1
      alone[f'blocks.{block}/attn/proj/bias'] += jnp.arange(16.0)
      alone = layer_layout.to_layout_of(
          traverse_util.unflatten_dict(alone, sep='/'), shapes_of(tower)
      )
      y = run({'params': alone}, images, rngs={'dropout': jax.random.key(1)})
      shares.append(np.mean(np.abs(y[:, 0, 0, 0]) < 1e-6))
    np.testing.assert_allclose(shares, [0, 0.25, 0.5], atol=0.1)


def test_scanned_parameters_name_the_axis_of_layers():
  variables = jax.eval_shape(
      EVA.clone(scan_layers=True).init, jax.random.key(0), IMAGES
  )
  axes = traverse_util.flatten_dict(variables['params_axes'], sep='/')
  assert axes['blocks/mlp/w1/kernel_axes'].names == ('embed', 'layers', 'mlp')
  assert axes['blocks/norm1/scale_axes'].names == ('embed', 'layers')
  assert 'layers' not in axes['patch_embed.proj/kernel_axes'].names
  params = traverse_util.flatten_dict(variables['params'], sep='/')
  for name, array in params.items():
    assert len(axes[f'{name}_axes'].names) == array.ndim, name


def test_layers_of_a_scanned_tower_start_from_different_values():
  init = jax.jit(EVA.clone(scan_layers=True).init)
  params = init(jax.random.key(0), IMAGES)['params']
  kernel = params['blocks']['attn']['proj']['kernel']
  assert not np.allclose(kernel[:, 0], kernel[:, 1])
  # The deviation is that of one layer: 1/√16 from 16 inputs.
  assert np.std(kernel) == pytest.approx(0.25, rel=0.1)


def test_global_blocks_without_a_pattern_cannot_be_scanned():
  tower = SAM.clone(global_block_indexes=(0, 3), scan_layers=True)
  with pytest.raises(ValueError, match=r'global_block_indexes=\(0, 3\)'):
    shapes_of(tower)


def test_an_unknown_remat_policy_is_told_with_the_nearest():
  with pytest.raises(ValueError, match="Did you mean 'minimal'"):
    shapes_of(EVA.clone(remat_policy='minimum'))
