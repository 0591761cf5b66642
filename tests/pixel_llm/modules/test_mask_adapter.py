import pathlib

import jax
import numpy as np
import pytest

from pixel_llm.golden.case import load_case
from pixel_llm.golden.compare import compare_case
from pixel_llm.golden.runners import vision
from pixel_llm.modules import mask_adapter

GOLDEN = pathlib.Path(__file__).parents[2] / 'golden'


@pytest.mark.golden
def test_matches_the_golden_figures():
  case = load_case(GOLDEN, 'mask_adapter')
  outputs = vision.RUNNERS[case.name](case)
  assert [r for r in compare_case(outputs, case.expected) if not r.passed] == []


@pytest.fixture(name='inputs')
def make_inputs():
  keys = jax.random.split(jax.random.key(0), 3)
  sequences = tuple(
      jax.random.normal(key, (2, 3, *shape))
      for key, shape in zip(keys, ((2, 16), (4, 7), (5, 6)))
  )
  # The last two of five text tokens are padding.
  return *sequences, np.broadcast_to(np.arange(5) < 3, (2, 3, 5))


def small_adapter(**fields):
  defaults = {'depth': 1, 'transformer_dim': 16, 'mlp_dim': 8}
  return mask_adapter.MaskAdapter(**(defaults | fields))


def test_a_closed_gate_changes_nothing(inputs, random_params):
  params = random_params(small_adapter(), *inputs)
  params['alpha_output.weight'] *= 0
  corrected = jax.jit(small_adapter().apply)({'params': params}, *inputs)
  np.testing.assert_array_equal(corrected, inputs[0])


def test_a_new_gate_is_closed(inputs):
  # Compiled, all other parameters are left out.
  alpha = jax.jit(
      lambda key: small_adapter().init(key, *inputs)['params'][
          'alpha_output.weight'
      ]
  )(jax.random.key(0))
  np.testing.assert_array_equal(alpha, np.zeros((2, 16)))


def test_without_the_gate_it_has_no_alpha_and_corrects_at_once(
    inputs, random_params
):
  adapter = small_adapter(gating=False)
  params = random_params(adapter, *inputs)
  assert 'alpha_output.weight' not in params
  corrected = jax.jit(adapter.apply)({'params': params}, *inputs)
  assert not np.allclose(corrected, inputs[0])


def test_without_input_projection_there_are_no_projections(
    inputs, random_params
):
  sparse = inputs[0]
  params = random_params(
      small_adapter(input_projection=False),
      sparse,
      sparse,
      sparse,
      np.ones(sparse.shape[:3], bool),
  )
  assert not [k for k in params if 'projection' in k]


def test_other_embeddings_are_refused(inputs):
  with pytest.raises(ValueError, match=r'shape \(2, 16\).* are \(2, 8\)'):
    small_adapter(transformer_dim=8).init(jax.random.key(1), *inputs)


def test_padding_is_read_only_where_it_is_asked_for(inputs, random_params):
  sparse, visual, text, mask = inputs
  other = np.where(mask[..., None], text, 5.0)
  params = random_params(small_adapter(), *inputs)

  def correct(text, mask, **fields):
    adapter = small_adapter(**fields)
    return jax.jit(adapter.apply)(
        {'params': params}, sparse, visual, text, mask
    )

  found = correct(text, mask)
  np.testing.assert_array_equal(correct(other, mask), found)
  np.testing.assert_allclose(
      correct(text[:, :, :3], mask[:, :, :3]), found, rtol=1e-5, atol=1e-5
  )
  read = correct(other, mask, reads_padding=True)
  assert not np.allclose(read, correct(text, mask, reads_padding=True))
