import pathlib

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_llm.golden.case import load_case
from pixel_llm.golden.compare import compare_case
from pixel_llm.golden.runners import vision
from pixel_llm.modules import sam_mask_decoder

GOLDEN = pathlib.Path(__file__).parents[2] / 'golden'


@pytest.mark.golden
def test_matches_the_golden_figures():
  case = load_case(GOLDEN, 'sam_mask_decoder')
  outputs = vision.RUNNERS[case.name](case)
  assert [r for r in compare_case(outputs, case.expected) if not r.passed] == []


@pytest.fixture(name='params', scope='module')
def load_params():
  case = load_case(GOLDEN, 'sam_mask_decoder')
  return jax.tree.map(jnp.asarray, dict(case.params))


@pytest.fixture(name='inputs', scope='module')
def make_inputs():
  keys = jax.random.split(jax.random.key(0), 4)
  image = jax.random.normal(keys[0], (2, 3, 2, 256))
  image_pe = jax.random.normal(keys[1], (3, 2, 256))
  sparse = jax.random.normal(keys[2], (2, 4, 2, 256))
  dense = jax.random.normal(keys[3], (256,))
  return image, image_pe, sparse, dense


@jax.jit
def decode(params, *inputs):
  return sam_mask_decoder.SamMaskDecoder().apply({'params': params}, *inputs)


@hypothesis.settings(max_examples=5, deadline=None)
@hypothesis.given(order=st.permutations(range(4)))
def test_prompt_order_moves_with_the_prompts(params, inputs, order):
  image, image_pe, sparse, dense = inputs
  order = np.array(order)
  masks = decode(params, *inputs)
  moved = decode(params, image, image_pe, sparse[:, order], dense)
  np.testing.assert_allclose(moved.logits, masks.logits[:, order], atol=1e-4)
  np.testing.assert_allclose(moved.iou, masks.iou[:, order], atol=1e-4)


def test_a_vector_equals_the_map_it_stands_for(params, inputs):
  image, image_pe, sparse, dense = inputs
  by_vector = decode(params, *inputs)
  by_map = decode(
      params,
      image,
      image_pe,
      sparse,
      jnp.broadcast_to(dense, (2, 4, 3, 2, 256)),
  )
  assert by_vector.logits.shape == (2, 4, 1, 12, 8)
  np.testing.assert_allclose(by_map.logits, by_vector.logits, atol=1e-4)


def test_both_modes_make_the_same_parameters(params, inputs):
  decoder = sam_mask_decoder.SamMaskDecoder()
  for multimask_output in (False, True):
    made = jax.eval_shape(
        lambda *args: decoder.init(
            jax.random.key(0), *args, multimask_output=multimask_output  # noqa: B023
        ),
        *inputs,
    )['params']
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, params)


def test_doubling_equals_a_transposed_convolution():
  conv = sam_mask_decoder.DoublingConv(3)
  x = jax.random.normal(jax.random.key(0), (2, 4, 5, 6))
  y, variables = conv.init_with_output(jax.random.key(1), x)
  expected = jax.lax.conv_transpose(
      x,
      variables['params']['kernel'],
      strides=(2, 2),
      padding='VALID',
      transpose_kernel=True,
  )
  np.testing.assert_allclose(y, expected, atol=1e-5)


def test_another_width_is_refused(inputs):
  narrow = [x[..., :8] for x in inputs]
  with pytest.raises(ValueError, match='the prompts 8; both must be 256'):
    sam_mask_decoder.SamMaskDecoder().init(jax.random.key(0), *narrow)
