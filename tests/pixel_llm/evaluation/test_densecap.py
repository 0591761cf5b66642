"""Dense captioning: merged regions, matching, average precision."""

import json
import pathlib

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest
import seqio

from pixel_llm.evaluation import boxes as boxes_lib
from pixel_llm.evaluation import densecap
from pixel_llm.evaluation import meteor as meteor_lib
from pixel_llm.evaluation import regions
from pixel_llm.golden import case as case_lib
from pixel_llm.golden import compare
from pixel_llm.golden.runners import captioning as runners

_TESTS = pathlib.Path(__file__).parents[2]
_LEFT = [0, 0, 10, 10]
_RIGHT = [20, 0, 30, 10]


def _word_overlap(candidates, references):
  """Stands in for METEOR: the share of the words that agree."""
  pairs = []
  for candidate, texts in zip(candidates, references):
    words = set(candidate.split())
    shares = [
        len(words & set(text.split())) / max(len(words | set(text.split())), 1)
        for text in texts
    ]
    pairs.append(max(shares))
  return meteor_lib.MeteorScores(np.asarray(pairs), 0.0)


def _regions(*rows):
  return [
      regions.Region(np.asarray(box, np.float64), tuple(captions))
      for box, *captions in rows
  ]


def _detections(*rows):
  return densecap.Detections(
      np.asarray([box for box, _, _ in rows], np.float64).reshape(-1, 4),
      np.asarray([score for _, score, _ in rows], np.float64),
      [caption for _, _, caption in rows],
  )


def _scores(truth, detections, **settings_):
  return densecap.densecap_scores(
      truth, detections, **({'meteor': _word_overlap} | settings_)
  )


@pytest.mark.golden
def test_figures_of_the_original(shared_meteor):
  case = case_lib.load_case(_TESTS / 'golden', 'eval_densecap')
  reports = compare.compare_case(runners.run_densecap(case), case.expected)
  assert len(reports) == 239
  assert [r for r in reports if not r.passed] == []


def test_known_scores_of_real_regions(meteor):
  folder = _TESTS / 'data' / 'densecap'
  document = json.loads((folder / 'regions.json').read_text())
  rows = json.loads((folder / 'detections.json').read_text())
  expected = json.loads((folder / 'expected_scores.json').read_text())

  def of_image(table, image):
    found = [row for row in table if row['image_id'] == image['id']]
    boxes = np.asarray([row['bbox'] for row in found], np.float64)
    return found, boxes_lib.xywh_to_xyxy(boxes)

  truth, detections = {}, {}
  for image in document['images']:
    found, boxes = of_image(document['annotations'], image)
    captions = [row['caption'] for row in found]
    truth[image['id']] = regions.merge_regions(boxes, captions)
    found, boxes = of_image(rows, image)
    detections[image['id']] = densecap.Detections(
        boxes,
        np.asarray([row['score'] for row in found]),
        [row['caption'] for row in found],
    )
  assert sum(map(len, truth.values())) == 1540
  scores = densecap.densecap_scores(truth, detections, meteor)
  assert scores == pytest.approx(expected['scores'], abs=1e-6)


def test_average_precision_by_hand():
  # Precision 1, 1/2, 2/3, 1/2; recall 1/4, 1/4, 1/2, 1/2 of four regions:
  # 1 up to recall 0.25 (26 of the hundred), 2/3 up to 0.5 (25), then 0.
  right = np.asarray([True, False, True, False])
  expected = (26 + 25 * 2 / 3) / 100
  assert densecap.average_precision(right, 4) == pytest.approx(expected)
  assert densecap.average_precision(np.zeros(0, bool), 4) == 0
  assert densecap.average_precision(np.asarray([False]), 4) == 0


def test_regions_that_overlap_enough_are_one():
  merged = regions.merge_regions(
      np.asarray([[0, 0, 10, 10], [0, 0, 10, 8], [20, 0, 30, 10]], np.float64),
      ['a dog', 'the dog', 'a cat'],
  )
  assert [region.captions for region in merged] == [
      ('a dog', 'the dog'),
      ('a cat',),
  ]
  assert merged[0].box.tolist() == [0, 0, 10, 9]


def test_an_overlap_of_exactly_seven_tenths_merges():
  boxes = np.asarray([[0, 0, 10, 10], [0, 0, 10, 7]], np.float64)
  assert len(regions.merge_regions(boxes, ['a', 'b'])) == 1


def test_the_box_with_most_neighbours_takes_them():
  # A row: neighbours overlap by 3/4, second neighbours by 5/9.
  boxes = np.asarray([[i, 0, i + 7, 1] for i in (0, 1, 2, 3, 4)], np.float64)
  groups = regions.clusters(regions.iou_matrix(boxes, boxes))
  assert groups == [[0, 1, 2], [3, 4]]


def test_no_region_and_flat_boxes():
  assert regions.merge_regions(np.zeros((0, 4)), []) == []
  flat = np.asarray([[5, 5, 5, 9]], np.float64)
  assert regions.merge_regions(flat, ['a line']) == []


def test_a_perfect_prediction_scores_one(meteor):
  truth = {1: _regions((_LEFT, 'a dog')), 2: _regions((_RIGHT, 'a red cat'))}
  found = {
      1: _detections((_LEFT, 0.2, 'a dog')),
      2: _detections((_RIGHT, 0.9, 'a red cat')),
  }
  scores = densecap.densecap_scores(truth, found, meteor)
  assert set(scores.values()) == {1.0}
  assert len(scores) == 1 + 1 + 5 + 30


def test_the_best_region_counts_even_if_it_is_taken():
  # The second detection lies best on the taken left region, though the other
  # one, which it also overlaps, is free.
  truth = {1: _regions((_LEFT, 'a'), ([4, 0, 14, 10], 'a'))}
  found = _detections((_LEFT, 0.9, 'a'), ([1, 0, 11, 10], 0.8, 'a'))
  scores = _scores(truth, {1: found})
  assert scores['mAP_detection_iou0.3'] == pytest.approx(0.51)


def test_a_poor_box_takes_the_region_from_a_later_better_one():
  truth = {1: _regions((_LEFT, 'a'))}
  found = _detections(([9, 9, 19, 19], 0.9, 'a'), (_LEFT, 0.8, 'a'))
  assert _scores(truth, {1: found})['mAP_detection'] == 0


def test_meteor_must_exceed_its_threshold():
  truth = {1: _regions((_LEFT, 'a b c d'))}

  def quarter(candidates, references):
    return meteor_lib.MeteorScores(np.full(len(candidates), 0.25), 0.25)

  scores = _scores(truth, {1: _detections((_LEFT, 0.9, 'x'))}, meteor=quarter)
  assert scores['mAP_iou0.3_meteor0.20'] == 1
  assert scores['mAP_iou0.3_meteor0.25'] == 0
  assert scores['mAP'] == pytest.approx(5 / 6)
  assert scores['mAP_detection'] == 1


def test_meteor_is_asked_only_where_it_can_matter():
  asked = []

  def listening(candidates, references):
    asked.extend(zip(candidates, references))
    return meteor_lib.MeteorScores(np.ones(len(candidates)), 1.0)

  truth = {1: _regions((_LEFT, 'a', 'b'), (_RIGHT, ''))}
  found = _detections(
      (_LEFT, 0.9, 'right'),
      (_LEFT, 0.8, 'too late'),
      (_RIGHT, 0.7, 'empty truth'),
      ([50, 50, 60, 60], 0.6, 'nowhere'),
  )
  _scores(truth, {1: found}, meteor=listening)
  assert asked == [('right', ('a', 'b'))]


def test_a_region_with_an_empty_caption_takes_any_words_or_does_not_count():
  truth = {1: _regions((_LEFT, 'a dog'), (_RIGHT, '', 'a cat'))}
  found = {
      1: _detections((_LEFT, 0.9, 'a dog'), (_RIGHT, 0.8, 'something else'))
  }
  assert _scores(truth, found)['mAP'] == 1
  without = _scores(truth, found, count_empty=False)
  # Of one region to find, two detections lie on a region.
  assert without['mAP_detection'] == 1
  assert without['mAP'] == 1


def test_without_meteor_there_are_no_caption_scores():
  truth = {1: _regions((_LEFT, 'a'))}
  scores = _scores(truth, {}, meteor=None)
  assert set(scores) == {'mAP_detection'} | {
      f'mAP_detection_iou{t}' for t in densecap.IOU_THRESHOLDS
  }
  assert set(scores.values()) == {0.0}


def test_what_cannot_be_scored_is_an_error():
  with pytest.raises(ValueError, match='No region to find in 1 pictures'):
    _scores({1: []}, {})
  with pytest.raises(ValueError, match=r'without truth: \[2\]'):
    _scores({1: _regions((_LEFT, 'a'))}, {2: _detections()})


_BOX = st.tuples(
    st.integers(0, 20),
    st.integers(0, 20),
    st.integers(5, 20),
    st.integers(5, 20),
).map(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]])
_WORDS = st.sampled_from(['a dog', 'a cat', 'the red dog', ''])
_PICTURES = st.dictionaries(
    st.integers(0, 5),
    st.tuples(
        st.lists(st.tuples(_BOX, _WORDS), min_size=1, max_size=4),
        st.lists(st.tuples(_BOX, st.sampled_from([0.1, 0.5, 0.9]), _WORDS)),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=50, deadline=None)
@given(_PICTURES, st.randoms(use_true_random=False))
def test_the_order_of_pictures_changes_nothing(pictures, random):
  def scored(names):
    return _scores(
        {name: _regions(*pictures[name][0]) for name in names},
        {name: _detections(*pictures[name][1]) for name in names},
    )

  names = list(pictures)
  shuffled = random.sample(names, len(names))
  scores = scored(names)
  assert scored(shuffled) == scores
  assert all(0 <= score <= 1 for score in scores.values())
  parts = [v for k, v in scores.items() if 'meteor' in k]
  assert scores['mAP'] == pytest.approx(np.mean(parts))
  # Words can only take away from what the boxes give.
  assert scores['mAP'] <= scores['mAP_detection'] + 1e-12


def _example(image_id, rows, found):
  """A 100 x 200 picture as 50 x 100 pixels of the network input."""
  target = {
      'image_id': image_id,
      'image_hw': np.asarray([50, 100]),
      'orig_hw': np.asarray([100, 200]),
      'prompt_ids': [name for name, _, _ in rows],
      'boxes_orig': np.asarray([box for _, box, _ in rows], np.float32),
      'texts': [text for _, _, text in rows],
  }
  aux = {
      'boxes': np.asarray([box for box, _, _ in found], np.float32) / 2,
      'box_mask': np.ones(len(found), bool),
      'detection_scores': np.asarray([score for _, score, _ in found]),
  }
  return target, [text for _, _, text in found], aux


def _metrics(*examples):
  targets, texts, aux = zip(*examples)
  stacked = {name: np.stack([a[name] for a in aux]) for name in aux[0]}
  return densecap.densecap_metrics(targets, texts, stacked)


def test_a_picture_in_two_examples_is_scored_once(shared_meteor):
  found = [(_LEFT, 0.9, 'a dog'), (_RIGHT, 0.8, 'a red cat')]
  scores = _metrics(
      _example('p', [('r1', _LEFT, 'a dog')], found),
      _example('p', [('r2', _RIGHT, 'a red cat')], found),
      _example('p', [('r2', _RIGHT, 'a red cat')], found),
  )
  assert set(scores.values()) == {1.0}


def test_what_is_masked_or_no_number_is_no_detection(shared_meteor):
  found = [(_LEFT, np.nan, 'x'), ([np.nan] * 4, 2.0, 'x'), (_LEFT, 3.0, 'x')]
  found += [(_LEFT, 0.9, 'a dog')]
  target, texts, aux = _example('p', [('r1', _LEFT, 'a dog')], found)
  aux['box_mask'][2] = False
  assert _metrics((target, texts, aux))['mAP'] == 1


def test_seqio_takes_it_as_a_metric_of_predictions_with_aux_values():
  metric = seqio.metrics.PassthroughLegacyMetric.from_metric_fn(
      densecap.densecap_metrics
  )
  kind = seqio.metrics.ModelOutputType.PREDICTION_WITH_AUX
  assert metric.model_output_type == kind
