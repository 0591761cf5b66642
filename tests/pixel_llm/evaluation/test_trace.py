"""Trace scores."""

import pathlib

import numpy as np
import pytest
import seqio

from pixel_llm.evaluation import trace
from pixel_llm.golden import case as case_lib
from pixel_llm.golden import compare
from pixel_llm.golden.runners import evaluation as runners

_GOLDEN = pathlib.Path(__file__).parents[2] / 'golden'
# Begin, three tokens, end, padding; the last token has no trace.
_TOKENS = np.asarray([[0, 7, 8, 9, 1, 0]], np.int32)


def _target():
  points = np.zeros((1, 6, 2, 2))
  points[0, 1] = [[10, 20], [30, 40]]
  points[0, 2] = [[50, 20], [70, 40]]
  return {
      'image_hw': np.asarray([50, 100]),
      'text_tokens': _TOKENS,
      'points': points,
  }


def _points(shift=0.0):
  """Points of the target, moved; the rows that do not count hold rubbish."""
  points = _target()['points'] + shift
  points[0, 3:] = 1e6
  return np.concatenate([points, np.full_like(points, 1e6)])


def _padded(tokens):
  return np.concatenate([tokens, np.full_like(tokens, 5)])


@pytest.mark.golden
def test_figures_of_the_original():
  case = case_lib.load_case(_GOLDEN, 'eval_points')
  reports = compare.compare_case(runners.run_points(case), case.expected)
  assert len(reports) == 2
  assert [r for r in reports if not r.passed] == []


def test_distance_by_hand():
  # 100 x 50 pixels; the nearest target differs per point.
  points = np.asarray([[[[20.0, 20.0], [30.0, 50.0]]]])
  targets = np.asarray([[[[10.0, 20.0], [30.0, 40.0]]]])
  distance = trace.point_distances(points, targets, (50, 100))
  # (|10|/100 + 0) / 2 = 0.05 and (0 + |10|/50) / 2 = 0.1.
  np.testing.assert_allclose(distance, [[0.075]])


def test_order_of_the_target_points_changes_nothing():
  rng = np.random.default_rng(0)
  points, targets = rng.uniform(0, 50, (2, 2, 3, 2, 2))
  np.testing.assert_allclose(
      trace.point_distances(points, targets, (50, 60)),
      trace.point_distances(points[:, :, ::-1], targets[:, :, ::-1], (50, 60)),
  )


def test_points_of_the_true_caption():
  scores = trace.trace_metrics(
      [_target()], [[]], {'gt_text_points': [_points(5.0)]}
  )
  assert scores == {
      'num_trace_examples': 1,
      'num_trace_examples_without_points': 0,
      'trace_l1': pytest.approx((5 / 100 + 5 / 50) / 2),
  }


def test_a_decoded_caption_counts_as_far_as_it_agrees():
  decoded = _TOKENS.copy()
  decoded[0, 2] = 4
  # The third token agrees again, but belongs to another sentence by now.
  points = _points(5.0)
  points[0, 2] = 1e6
  scores = trace.trace_metrics(
      [_target()], [_padded(decoded)], {'points': [points]}
  )
  assert scores['trace_decoded_coverage'] == 0.5
  assert scores['trace_decoded_l1'] == pytest.approx(0.075)
  assert 'trace_l1' not in scores


def test_an_example_without_points_is_no_error_of_zero():
  empty = _target() | {'points': np.zeros((1, 6, 2, 2))}
  aux = {'gt_text_points': [_points(5.0), _points()]}
  scores = trace.trace_metrics([_target(), empty], [[], []], aux)
  assert scores['trace_l1'] == pytest.approx(0.075)
  assert scores['num_trace_examples_without_points'] == 1


def test_without_any_point_there_is_no_distance():
  empty = _target() | {'points': np.zeros((1, 6, 2, 2))}
  aux = {'gt_text_points': [_points()], 'points': [_points()]}
  scores = trace.trace_metrics([empty], [_padded(_TOKENS)], aux)
  assert scores == {
      'num_trace_examples': 1,
      'num_trace_examples_without_points': 1,
  }


@pytest.mark.parametrize(
    ('predictions', 'aux'),
    [([['a dog', '']], {'points': [_points()]}), ([_padded(_TOKENS)], {})],
)
def test_points_of_an_unknown_caption_are_an_error(predictions, aux):
  with pytest.raises(ValueError, match="they need 'gt_text_points', or"):
    trace.trace_metrics([_target()], predictions, aux)


def test_seqio_takes_it_as_a_metric_of_predictions_with_aux_values():
  metric = seqio.metrics.PassthroughLegacyMetric.from_metric_fn(
      trace.trace_metrics
  )
  kind = seqio.metrics.ModelOutputType.PREDICTION_WITH_AUX
  assert metric.model_output_type == kind
