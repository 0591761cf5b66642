import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_llm.golden.case import load_case
from pixel_llm.golden.compare import compare_case
from pixel_llm.golden.runners import vision
from pixel_llm.modules import visual_projection

GOLDEN = pathlib.Path(__file__).parents[2] / 'golden'


@pytest.mark.golden
@pytest.mark.parametrize(
    'name', ['visual_projection', 'visual_projection_no_norm']
)
def test_matches_the_golden_figures(name):
  case = load_case(GOLDEN, name)
  outputs = vision.RUNNERS[name](case)
  assert [r for r in compare_case(outputs, case.expected) if not r.passed] == []


def test_norm_follows_the_linear_layer():
  x = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
  y, variables = visual_projection.VisualProjection(16).init_with_output(
      jax.random.key(1), x
  )
  assert set(variables['params']) == {
      'visual_projection.0',
      'visual_projection.1',
  }
  np.testing.assert_allclose(jnp.mean(y, axis=-1), 0, atol=1e-5)
  np.testing.assert_allclose(jnp.std(y, axis=-1), 1, atol=1e-3)
