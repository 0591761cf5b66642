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
  return tuple(
      jax.random.normal(key, (2, 3, *shape))
      for key, shape in zip(keys, ((2, 16), (4, 7), (5, 6)))
  )


def small_adapter(**fields):
  defaults = {'depth': 1, 'transformer_dim': 16, 'mlp_dim': 8}
  return mask_adapter.MaskAdapter(**(defaults | fields))


def test_a_new_adapter_changes_nothing(inputs):
  corrected, _ = small_adapter().init_with_output(jax.random.key(1), *inputs)
  np.testing.assert_array_equal(corrected, inputs[0])


def test_without_the_gate_it_has_no_alpha_and_corrects_at_once(inputs):
  corrected, variables = small_adapter(gating=False).init_with_output(
      jax.random.key(1), *inputs
  )
  assert 'alpha_output.weight' not in variables['params']
  assert not np.allclose(corrected, inputs[0])


def test_without_input_projection_there_are_no_projections(inputs):
  sparse, _, _ = inputs
  variables = small_adapter(input_projection=False).init(
      jax.random.key(1), sparse, sparse, sparse
  )
  assert not [k for k in variables['params'] if 'projection' in k]


def test_other_embeddings_are_refused(inputs):
  with pytest.raises(ValueError, match=r'shape \(2, 16\).* are \(2, 8\)'):
    small_adapter(transformer_dim=8).init(jax.random.key(1), *inputs)
