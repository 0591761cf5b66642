import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_llm import geometry
from pixel_llm.modules import image_features


def test_whole_and_float_pixels_give_the_same():
  images = np.random.default_rng(0).integers(0, 256, (2, 6, 5, 3), np.uint8)
  normalizer = image_features.SamImageNormalizer()
  whole = normalizer(jnp.asarray(images))
  np.testing.assert_array_equal(
      whole, normalizer(jnp.asarray(images, jnp.float32))
  )
  expected = (images - np.array([123.675, 116.28, 103.53])) / np.array(
      [58.395, 57.12, 57.375]
  )
  np.testing.assert_allclose(whole, expected, atol=1e-5)


def test_padding_is_exactly_zero_whatever_it_held():
  mask = geometry.valid_mask(jnp.asarray([[4, 3]]), 6, 5)
  normalizer = image_features.ImageNormalizer()
  normalized = normalizer(jnp.full((1, 6, 5, 3), 200.0), mask)
  np.testing.assert_array_equal(normalized[0, 4:], 0)
  np.testing.assert_array_equal(normalized[0, :, 3:], 0)
  assert jnp.all(normalized[0, :4, :3] != 0)


def test_images_take_the_size_of_the_tower():
  normalizer = image_features.ImageNormalizer(size=[4, 7])
  assert normalizer(jnp.zeros((2, 9, 9, 3))).shape == (2, 4, 7, 3)


def test_plus_takes_the_larger_grid_by_height_then_width():
  sizes = {'a': (4, 9), 'b': (5, 2), 'c': (5, 3)}
  assert image_features.fused_size('a+b+c', sizes) == (5, 3)
  assert image_features.fused_size('a,b,c', sizes) == (4, 9)
  assert image_features.fused_size('b', sizes) == (5, 2)


def test_fusing_keeps_the_order_of_the_names():
  maps = {
      'eva': jnp.full((1, 3, 3, 2), 1.0),
      'sam': jnp.full((1, 2, 2, 1), 2.0),
  }
  fused = image_features.fuse_feature_maps('sam+eva', maps)
  expected = np.broadcast_to([2.0, 1.0, 1.0], (1, 3, 3, 3))
  np.testing.assert_allclose(fused, expected, atol=1e-6)


def test_fusing_keeps_a_bfloat16_run_in_bfloat16():
  maps = {
      name: jax.random.normal(jax.random.key(0), (1, side, side, 2)).astype(
          jnp.bfloat16
      )
      for name, side in (('a', 3), ('b', 2))
  }
  assert image_features.fuse_feature_maps('a+b', maps).dtype == jnp.bfloat16


def test_an_unknown_name_lists_the_nearest():
  with pytest.raises(ValueError, match="names 'same'.*'sam'"):
    image_features.fused_size('eva+same', {'eva': (1, 1), 'sam': (1, 1)})


@pytest.mark.parametrize(
    ('expression', 'message'), [('a+b,c', 'mixes'), ('a+', 'empty name')]
)
def test_a_malformed_expression_is_refused(expression, message):
  with pytest.raises(ValueError, match=message):
    image_features.feature_names(expression)
