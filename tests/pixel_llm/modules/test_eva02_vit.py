import functools
import pathlib

from flax.linen import partitioning
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_llm import axes
from pixel_llm.golden.case import load_case
from pixel_llm.golden.compare import compare_case
from pixel_llm.golden.runners import vision
from pixel_llm.modules import eva02_vit

GOLDEN = pathlib.Path(__file__).parents[2] / 'golden'


@pytest.mark.golden
def test_matches_the_golden_figures():
  case = load_case(GOLDEN, 'eva02_vit')
  outputs = vision.RUNNERS[case.name](case)
  assert [r for r in compare_case(outputs, case.expected) if not r.passed] == []


def small_tower(**fields):
  defaults = {
      'patch_size': 4,
      'embed_dim': 16,
      'depth': 2,
      'num_heads': 2,
      'pretrain_image_size': 8,
      'drop_path_rate': 0.5,
  }
  return eva02_vit.Eva02Vit(**(defaults | fields))


def random_images(*shape):
  return jax.random.normal(jax.random.key(1), (*shape, 3))


def test_full_size_has_304_million_parameters():
  shapes = jax.eval_shape(
      eva02_vit.Eva02Vit().init, jax.random.key(0), jnp.zeros((1, 224, 224, 3))
  )
  count = sum(x.size for x in jax.tree.leaves(shapes['params']))
  assert count == pytest.approx(304e6, rel=0.005)


def test_384_pixels_make_27_patches_a_side():
  tower = eva02_vit.Eva02Vit()
  features, _ = jax.eval_shape(
      tower.init_with_output, jax.random.key(0), jnp.zeros((2, 384, 384, 3))
  )
  assert features.shape == (2, 27, 27, 1024)
  assert tower.grid_size(384, 384) == (27, 27)


def test_map_is_the_tokens_without_the_class_token(random_params):
  tower, images = small_tower(), random_images(2, 8, 12)
  variables = {'params': random_params(tower, images)}
  features = jax.jit(tower.apply)(variables, images)
  tokens = jax.jit(functools.partial(tower.apply, method='tokens'))(
      variables, images
  )
  assert features.shape == (2, 2, 3, 16)
  np.testing.assert_allclose(
      features.reshape(2, 6, 16), tokens[:, 1:], atol=1e-6
  )


def test_rotary_positions_keep_lengths_and_depend_on_distance_only():
  angles = eva02_vit.rotary_angles(3, 4, 8)
  query, key = np.random.default_rng(0).normal(size=(2, 8)).astype('float32')
  # The same query and key at every position; a class token in front.
  queries = eva02_vit.rotate(jnp.tile(query, (1, 13, 1, 1)), angles)[0, 1:, 0]
  keys = eva02_vit.rotate(jnp.tile(key, (1, 13, 1, 1)), angles)[0, 1:, 0]
  np.testing.assert_allclose(
      jnp.linalg.norm(queries, axis=-1), np.linalg.norm(query), rtol=1e-5
  )
  scores = (queries @ keys.T).reshape(3, 4, 3, 4)
  # One row down and one column right of the query, from two places.
  np.testing.assert_allclose(
      scores[0, 0, 1, 1], scores[1, 2, 2, 3], rtol=1e-4, atol=1e-5
  )


def test_a_tower_of_one_block_never_drops(random_params):
  tower, images = small_tower(depth=1), random_images(2, 8, 8)
  variables = {'params': random_params(tower, images)}
  # No random stream is given: it would be asked for if a branch could drop.
  training = functools.partial(tower.apply, enable_dropout=True)
  np.testing.assert_array_equal(
      jax.jit(training)(variables, images),
      jax.jit(tower.apply)(variables, images),
  )


def test_branches_drop_only_when_asked(random_params):
  tower, images = small_tower(), random_images(8, 8, 8)
  variables = {'params': random_params(tower, images)}
  training = functools.partial(tower.apply, enable_dropout=True)
  dropped = jax.jit(training)(
      variables, images, rngs={'dropout': jax.random.key(2)}
  )
  kept = jax.jit(tower.apply)(variables, images)
  changed = jnp.any(jnp.abs(dropped - kept) > 1e-3, axis=(1, 2, 3))
  # The last of the two blocks drops each branch of each image at a rate of 0.5.
  assert 0 < changed.sum() <= 8


def test_bfloat16_stays_close(random_params):
  tower, images = small_tower(dtype='bfloat16'), random_images(2, 8, 8)
  # Float32 parameters, though the computation is not.
  variables = {'params': random_params(tower, images)}
  features = jax.jit(tower.apply)(variables, images)
  assert features.dtype == jnp.bfloat16
  expected = jax.jit(small_tower().apply)(variables, images)
  np.testing.assert_allclose(features.astype('float32'), expected, atol=0.15)


@pytest.mark.parametrize('scan_layers', [False, True])
def test_named_activations_change_nothing_on_a_mesh(random_params, scan_layers):
  tower = small_tower(scan_layers=scan_layers, remat_policy='minimal')
  images = random_images(2, 8, 8)
  variables = {'params': random_params(tower, images)}
  expected = jax.jit(tower.apply)(variables, images)
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1])[None], ('data', 'model'))
  rules = [('batch', 'data'), ('mlp', 'model'), ('embed', None)]
  names = partitioning.axis_rules([*rules, *axes.additional_rules()])
  with jax.set_mesh(mesh), names:
    features = jax.jit(lambda v, x: tower.apply(v, x))(variables, images)
  np.testing.assert_allclose(features, expected, atol=1e-6)


def test_heads_that_do_not_split_in_four_are_refused():
  with pytest.raises(ValueError, match='embed_dim=12 over num_heads=2'):
    small_tower(embed_dim=12).init(jax.random.key(0), random_images(1, 8, 8))
