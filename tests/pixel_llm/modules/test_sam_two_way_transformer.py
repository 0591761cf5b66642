import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_llm.golden.case import load_case
from pixel_llm.golden.compare import compare_case
from pixel_llm.golden.runners import vision
from pixel_llm.modules import sam_two_way_transformer

GOLDEN = pathlib.Path(__file__).parents[2] / 'golden'


@pytest.mark.golden
def test_matches_the_golden_figures():
  case = load_case(GOLDEN, 'sam_two_way_transformer')
  outputs = vision.RUNNERS[case.name](case)
  assert [r for r in compare_case(outputs, case.expected) if not r.passed] == []


def small_transformer(**fields):
  defaults = {'depth': 2, 'num_heads': 2, 'mlp_dim': 16}
  return sam_two_way_transformer.SamTwoWayTransformer(**(defaults | fields))


@pytest.fixture(name='inputs')
def make_inputs():
  keys = jax.random.split(jax.random.key(0), 3)
  tokens = jax.random.normal(keys[0], (2, 3, 4, 8))
  image = jax.random.normal(keys[1], (2, 1, 6, 8))
  image_pe = jax.random.normal(keys[2], (1, 1, 6, 8))
  return tokens, image, image_pe


def test_a_shared_image_equals_a_repeated_one(inputs, random_params):
  tokens, image, image_pe = inputs
  transformer = small_transformer()
  variables = {'params': random_params(transformer, *inputs)}
  apply = jax.jit(transformer.apply)
  shared = apply(variables, *inputs)
  repeated = apply(
      variables,
      tokens,
      jnp.repeat(image, 3, axis=1),
      jnp.broadcast_to(image_pe, (2, 3, 6, 8)),
  )
  assert shared[1].shape == (2, 3, 6, 8)
  for a, b in zip(shared, repeated):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_token_order_moves_with_the_tokens(inputs, random_params):
  tokens, image, image_pe = inputs
  transformer = small_transformer()
  variables = {'params': random_params(transformer, *inputs)}
  apply = jax.jit(transformer.apply)
  order = np.array([2, 0, 3, 1])
  out_tokens, out_image = apply(variables, *inputs)
  moved_tokens, moved_image = apply(
      variables, tokens[:, :, order], image, image_pe
  )
  np.testing.assert_allclose(moved_tokens, out_tokens[:, :, order], atol=1e-5)
  np.testing.assert_allclose(moved_image, out_image, atol=1e-5)


def test_heads_that_do_not_divide_the_inner_width_are_refused(inputs):
  with pytest.raises(ValueError, match='inner width 8'):
    small_transformer(num_heads=3).init(jax.random.key(1), *inputs)
