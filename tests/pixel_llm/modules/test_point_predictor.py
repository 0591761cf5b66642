import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_llm.golden.case import load_case
from pixel_llm.golden.compare import compare_case
from pixel_llm.golden.runners import vision
from pixel_llm.modules import point_predictor

GOLDEN = pathlib.Path(__file__).parents[2] / 'golden'


@pytest.mark.golden
def test_matches_the_golden_figures():
  case = load_case(GOLDEN, 'point_predictor')
  outputs = vision.RUNNERS[case.name](case)
  assert [r for r in compare_case(outputs, case.expected) if not r.passed] == []


def test_predictions_are_float32_in_a_bfloat16_run():
  predictor = point_predictor.PointPredictor(
      hidden_dim=8, num_points=3, num_classes=2, dtype=jnp.bfloat16
  )
  prediction, _ = predictor.init_with_output(
      jax.random.key(0), jnp.ones((2, 4, 6))
  )
  assert prediction.points_rel.shape == (2, 4, 3, 2)
  assert prediction.logits.shape == (2, 4, 3, 3)
  assert prediction.points_rel.dtype == prediction.logits.dtype == jnp.float32


def test_a_new_head_points_at_the_middle_of_a_blank_token():
  prediction, _ = point_predictor.PointPredictor(hidden_dim=8).init_with_output(
      jax.random.key(0), jnp.zeros((1, 6))
  )
  np.testing.assert_array_equal(prediction.points_rel, np.full((1, 2, 2), 0.5))


def test_an_unknown_activation_is_refused():
  with pytest.raises(ValueError, match="'swish'.*'gelu', 'relu'"):
    point_predictor.PointPredictor(activation='swish').init(
        jax.random.key(0), jnp.zeros((1, 6))
    )
