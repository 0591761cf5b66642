import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def test_map_is_the_tokens_without_the_class_token():
  tower, images = small_tower(), random_images(2, 8, 12)
  variables = jax.jit(tower.init)(jax.random.key(0), images)
  features = tower.apply(variables, images)
  tokens = tower.apply(variables, images, method='tokens')
  assert features.shape == (2, 2, 3, 16)
  np.testing.assert_array_equal(features.reshape(2, 6, 16), tokens[:, 1:])


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


def test_a_tower_of_one_block_never_drops():
  tower, images = small_tower(depth=1), random_images(2, 8, 8)
  variables = jax.jit(tower.init)(jax.random.key(0), images)
  # No random stream is given: it would be asked for if a branch could drop.
  np.testing.assert_array_equal(
      tower.apply(variables, images, enable_dropout=True),
      tower.apply(variables, images),
  )


def test_branches_drop_only_when_asked():
  tower, images = small_tower(), random_images(8, 8, 8)
  variables = jax.jit(tower.init)(jax.random.key(0), images)
  dropped = tower.apply(
      variables,
      images,
      enable_dropout=True,
      rngs={'dropout': jax.random.key(2)},
  )
  assert not np.allclose(dropped, tower.apply(variables, images))


def test_bfloat16_stays_close_and_keeps_float32_parameters():
  images = random_images(2, 8, 8)
  variables = jax.jit(small_tower().init)(jax.random.key(0), images)
  tower = small_tower(dtype='bfloat16')
  features = tower.apply(variables, images)
  assert features.dtype == jnp.bfloat16
  params = jax.jit(tower.init)(jax.random.key(0), images)['params']
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype('float32')}
  np.testing.assert_allclose(
      features.astype('float32'),
      small_tower().apply(variables, images),
      atol=0.1,
  )


def test_heads_that_do_not_split_in_four_are_refused():
  with pytest.raises(ValueError, match='embed_dim=12 over num_heads=2'):
    small_tower(embed_dim=12).init(jax.random.key(0), random_images(1, 8, 8))
