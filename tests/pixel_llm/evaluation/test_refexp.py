"""Referring expression scores."""

import json
import pathlib

import numpy as np
import pytest
import seqio

from pixel_llm.evaluation import boxes as boxes_lib
from pixel_llm.evaluation import masks as masks_lib
from pixel_llm.evaluation import refexp
from pixel_llm.golden import case as case_lib
from pixel_llm.golden import compare
from pixel_llm.golden.runners import evaluation as runners

# pycocotools 2.0.11 still has the __array__ of NumPy 1.
pytestmark = pytest.mark.filterwarnings(
    'ignore:__array__ implementation:DeprecationWarning'
)

_TESTS = pathlib.Path(__file__).parents[2]


def _example(true_boxes, boxes, box_mask=None, image_id='a', **fields):
  """A 40 x 80 picture shown as 10 x 20 pixels of a 20 x 20 input."""
  num_prompts = len(true_boxes)
  target = {
      'image_id': image_id,
      'prompt_ids': [f'p{i}' for i in range(num_prompts)],
      'image_hw': np.asarray([10, 20]),
      'padded_hw': np.asarray([20, 20]),
      'orig_hw': np.asarray([40, 80]),
      'boxes_orig': np.asarray(true_boxes, np.float32),
  } | fields
  # One padding row, as in a batch.
  aux = {
      'boxes': np.asarray([*boxes, [0, 0, 0, 0]], np.float32),
      'box_mask': np.asarray([*(box_mask or [True] * num_prompts), True]),
  }
  return target, aux


def _scores(*examples):
  targets = [target for target, _ in examples]
  aux = {
      name: np.stack([aux[name] for _, aux in examples])
      for name in examples[0][1]
  }
  return refexp.refexp_metrics(targets, [None] * len(targets), aux)


@pytest.mark.golden
def test_figures_of_the_original():
  case = case_lib.load_case(_TESTS / 'golden', 'eval_refcoco')
  reports = compare.compare_case(runners.run_refcoco(case), case.expected)
  assert len(reports) == 37
  assert [r for r in reports if not r.passed] == []


def test_known_scores_of_real_expressions():
  folder = _TESTS / 'data' / 'refexp'
  truth = json.loads((folder / 'refcoco_unc_val.json').read_text())
  rows = json.loads((folder / 'predictions_refcoco_unc_val.json').read_text())
  expected = json.loads((folder / 'expected_scores.json').read_text())
  predictions = {row['id']: row for row in rows}
  images = {row['id']: row for row in truth['images']}
  scores = refexp.RefexpScores()
  for row in truth['annotations']:
    prediction = predictions[row['image_id']]
    image = images[row['image_id']]
    size = (image['height'], image['width'])
    true_box = boxes_lib.xywh_to_xyxy(np.asarray(row['bbox'], np.float64))
    box = boxes_lib.xywh_to_xyxy(np.asarray(prediction['bbox'], np.float64))
    scores.add_box(row['image_id'], box, true_box)
    scores.add_mask(
        row['image_id'],
        masks_lib.decode_mask(prediction['segmentation'], size),
        masks_lib.decode_mask(row['segmentation'], size),
        true_box,
    )
  summary = scores.summary()
  assert summary['num_expressions'] == summary['num_masks'] == 36
  for ours, theirs in [
      ('box_precision_at_0.5', 'box_precision_at_0.5'),
      ('box_mean_iou', 'box_mean_iou'),
      ('mask_cIoU', 'mask_cIoU_total_intersection_over_total_union'),
      ('mask_gIoU', 'mask_gIoU_mean_of_ratios'),
      ('mask_precision_at_0.5', 'mask_precision_at_0.5'),
  ]:
    assert summary[ours] == pytest.approx(expected[theirs], abs=1e-6), ours
  per_expression = [
      scores.box_ious[row['image_id']] for row in truth['annotations']
  ]
  np.testing.assert_allclose(
      per_expression, expected['per_expression_box_iou'], atol=1e-6
  )


def test_boxes_meet_in_the_original_picture():
  scores = _scores(_example([[4, 8, 40, 20]], [[1, 2, 10, 5]]))
  assert scores == {
      'box_precision_at_0.5': 1.0,
      'box_mean_iou': 1.0,
      'num_expressions': 1,
      'num_no_box': 0,
  }


def test_an_iou_of_exactly_one_half_is_wrong():
  scores = _scores(_example([[0, 0, 40, 20]], [[0, 0, 10, 2.5]]))
  assert scores['box_mean_iou'] == 0.5
  assert scores['box_precision_at_0.5'] == 0


def test_an_expression_without_box_counts_as_wrong():
  true_boxes = [[4, 8, 40, 20]] * 4
  scores = _scores(
      _example(true_boxes, [[1, 2, 10, 5]] * 4, [True, False, True, True])
  )
  assert scores['box_precision_at_0.5'] == 0.75
  assert scores['num_no_box'] == 1
  assert scores['num_expressions'] == 4


@pytest.mark.parametrize('wrong', [np.nan, np.inf])
def test_a_box_that_is_no_number_is_no_box(wrong):
  scores = _scores(_example([[4, 8, 40, 20]], [[1, 2, wrong, 5]]))
  assert scores['box_mean_iou'] == 0
  assert scores['num_no_box'] == 1


def test_padding_rows_and_repeated_expressions_do_not_count():
  right = _example([[4, 8, 40, 20]], [[1, 2, 10, 5]])
  wrong = _example([[4, 8, 40, 20]], [[9, 2, 10, 5]], image_id='b')
  scores = _scores(right, wrong, wrong, wrong)
  assert scores['num_expressions'] == 2
  assert scores['box_precision_at_0.5'] == 0.5


def test_one_image_may_come_in_several_examples():
  first = _example([[4, 8, 40, 20]], [[1, 2, 10, 5]])
  second = _example([[4, 8, 40, 20]], [[9, 2, 10, 5]], prompt_ids=['p9'])
  assert _scores(first, second)['num_expressions'] == 2


def _with_mask(true_mask, logits, box_mask):
  rle = masks_lib.encode_mask(true_mask)
  target, aux = _example(
      [[0, 0, 40, 40]], [[0, 0, 10, 10]], box_mask, masks_rle=[rle]
  )
  return target, aux | {'mask_logits': np.stack([logits, np.ones((4, 4))])}


def test_mask_scores_by_hand():
  true_mask = np.zeros((40, 80), bool)
  true_mask[:, :40] = True
  # Valid cells: 2 x 4. Half of them are the left half of the picture.
  logits = np.full((4, 4), -1.0)
  logits[:, :2] = 1.0
  scores = _scores(_with_mask(true_mask, logits, [True]))
  assert scores['mask_cIoU'] == pytest.approx(1)
  assert scores['mask_gIoU'] == pytest.approx(1)
  assert scores['mask_precision_at_0.5'] == 1
  assert scores['mask_box_precision_at_0.5'] == 1
  assert scores['num_masks'] == 1


def test_without_box_the_mask_is_empty():
  true_mask = np.zeros((40, 80), bool)
  true_mask[:, :40] = True
  scores = _scores(_with_mask(true_mask, np.ones((4, 4)), [False]))
  assert scores['mask_cIoU'] == scores['mask_gIoU'] == 0


def test_masks_need_the_size_of_the_network_input():
  example = _with_mask(np.ones((40, 80), bool), np.ones((4, 4)), [True])
  del example[0]['padded_hw']
  with pytest.raises(ValueError, match="image 'a' has no 'padded_hw'"):
    _scores(example)


def test_no_expression_at_all_is_an_error():
  with pytest.raises(ValueError, match='No referring expression'):
    refexp.RefexpScores().summary()


def test_seqio_takes_it_as_a_metric_of_predictions_with_aux_values():
  metric = seqio.metrics.PassthroughLegacyMetric.from_metric_fn(
      refexp.refexp_metrics
  )
  kind = seqio.metrics.ModelOutputType.PREDICTION_WITH_AUX
  assert metric.model_output_type == kind
