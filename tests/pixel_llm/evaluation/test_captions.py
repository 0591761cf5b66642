"""Caption scores: of pictures, and of places in them."""

import json
import pathlib

from hypothesis import HealthCheck
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest
import seqio

from pixel_llm.evaluation import captions
from pixel_llm.evaluation import location_captions
from pixel_llm.golden import case as case_lib
from pixel_llm.golden import compare
from pixel_llm.golden.runners import captioning as runners

_TESTS = pathlib.Path(__file__).parents[2]
_DATA = _TESTS / 'data'


@pytest.mark.golden
@pytest.mark.parametrize(
    ('name', 'num_arrays'), [('eval_captions', 89), ('eval_loca', 386)]
)
def test_figures_of_the_original(name, num_arrays, shared_meteor):
  case = case_lib.load_case(_TESTS / 'golden', name)
  reports = compare.compare_case(runners.RUNNERS[name](case), case.expected)
  assert len(reports) == num_arrays
  assert [r for r in reports if not r.passed] == []


def test_known_scores_of_a_thousand_pictures(meteor):
  folder = _DATA / 'coco_caption'
  references = json.loads((folder / 'gts_ptb_tokenized.json').read_text())
  results = json.loads((folder / 'res_ptb_tokenized.json').read_text())
  expected = json.loads((folder / 'expected_scores.json').read_text())
  names = list(references)
  scores = captions.caption_scores(
      [results[name][0] for name in names],
      [references[name] for name in names],
      tokenize=list,
      meteor=meteor,
  )
  full = expected['computed_full_precision_1000_images']
  assert scores.corpus == pytest.approx(full, abs=1e-9)
  published = expected['published_by_coco_caption_demo_notebook']
  for name, score in scores.corpus.items():
    assert score == pytest.approx(published[name], abs=5.1e-4), name
  for name, single in expected['per_image_first_25'].items():
    index = names.index(name)
    assert scores.cider[index] == pytest.approx(single['CIDEr'], abs=1e-9)
    assert scores.meteor[index] == pytest.approx(single['METEOR'], abs=1e-9)


def test_published_scores_of_two_sentences(meteor):
  folder = _DATA / 'nlg_eval'
  candidates, first, second = (
      (folder / f'{name}.txt').read_text().splitlines()
      for name in ('hyp', 'ref1', 'ref2')
  )
  expected = json.loads((folder / 'expected_scores.json').read_text())
  scores = captions.caption_scores(
      candidates, list(zip(first, second)), meteor=meteor
  )
  published = expected['published_by_nlg_eval_readme_and_tests']
  for name, score in scores.corpus.items():
    assert score == pytest.approx(published[name], abs=1e-6), name


def test_a_perfect_prediction_scores_one(meteor):
  texts = ['A dog runs on the grass.', 'Two red cats sleep.']
  scores = captions.caption_scores(
      texts, [[text.upper()] for text in texts], meteor=meteor
  )
  corpus = dict(scores.corpus)
  assert corpus.pop('CIDEr') == pytest.approx(10)
  assert corpus == pytest.approx(dict.fromkeys(corpus, 1.0))


def test_bleu_by_hand(meteor):
  # Tokens: 3 of 4 words, 1 of 3 pairs; the candidate is not too short.
  scores = captions.caption_scores(
      ['a dog the red'], [['a dog red cat']], meteor=meteor
  )
  assert scores.corpus['Bleu_1'] == pytest.approx(3 / 4)
  assert scores.corpus['Bleu_2'] == pytest.approx((3 / 4 * 1 / 3) ** 0.5)


@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(['a dog', 'A cat.', '', '\n', 'a ||| b', '犬 😀']),
            st.sampled_from(['a dog', 'a red cat\nsleeps', '|||', '犬']),
        ),
        min_size=2,
        max_size=5,
    ),
    st.randoms(use_true_random=False),
)
def test_the_order_of_captions_changes_nothing(meteor, pairs, random):
  def scored(rows):
    return captions.caption_scores(
        [c for c, _ in rows], [[r] for _, r in rows], meteor=meteor
    ).corpus

  scores = scored(pairs)
  assert scored(random.sample(pairs, len(pairs))) == pytest.approx(scores)
  assert all(np.isfinite(score) for score in scores.values())


def test_what_cannot_be_scored_is_an_error():
  with pytest.raises(ValueError, match='No caption was evaluated'):
    captions.caption_scores([], [])
  with pytest.raises(ValueError, match=r"Caption 1 \('b'\) has no reference"):
    captions.caption_scores(['a', 'b'], [['a'], []])


def _target(image_id, texts, boxes=None):
  return {
      'image_id': image_id,
      'prompt_ids': [f'p{i}' for i in range(len(texts))],
      'texts': texts,
      'boxes_orig': np.asarray(
          boxes or [[0, 0, 9, 9]] * len(texts), np.float32
      ),
  }


def test_all_texts_of_a_picture_are_references(shared_meteor):
  targets = [
      _target('a', ['a dog', 'two red cats', '']),
      _target('b', ['a house', 'a tree']),
      _target('c', ['', '']),
      _target('b', ['a house', 'a tree']),
  ]
  predictions = [['two red cats'], ['a tree'], ['no reference'], ['padding']]
  scores = captions.caption_metrics(targets, predictions)
  assert scores['METEOR'] == scores['ROUGE_L'] == 1
  assert scores['Bleu_2'] == pytest.approx(1)


_BOXES = [[40, 40, 50, 50], [40, 40, 50, 49], [0, 0, 0, 0], [60, 0, 70, 0]]


def test_padding_boxes_and_repeated_prompts_do_not_count(shared_meteor):
  target = _target('a', ['a dog', 'a red cat', '', 'a line'], _BOXES)
  captions_ = ['a dog', 'a red cat', 'padding', 'a line']
  scores = location_captions.location_caption_metrics(
      [target, target], [captions_, ['wrong'] * 4]
  )
  assert scores['METEOR'] == scores['ROUGE_L'] == 1


def test_merged_boxes_share_their_captions():
  located = location_captions.LocatedCaptions()
  located.add_picture(
      list('abcd'),
      ['one', 'two', 'padding', 'four'],
      ['a dog', 'a red cat', '', 'a line'],
      np.asarray(_BOXES, np.float64),
      merge=True,
  )
  assert located.candidates == {'a': 'one', 'b': 'two', 'd': 'four'}
  assert located.references == {
      'a': ['a dog', 'a red cat'],
      'b': ['a dog', 'a red cat'],
      'd': ['a line'],
  }


def test_merging_as_the_original_drops_boxes_far_from_the_corner():
  located = location_captions.LocatedCaptions()
  # Seen as corners, (1, 1) and size (9, 9) is a box, (40, 40) and (10, 10) not.
  located.add_picture(
      ['near', 'far'],
      ['one', 'two'],
      ['a', 'b'],
      np.asarray([[1, 1, 10, 10], [40, 40, 50, 50]], np.float64),
      merge=True,
      corners_from_sizes=True,
  )
  assert list(located.candidates) == ['near']


def test_merging_is_a_metric_of_its_own(shared_meteor):
  target = _target('a', ['a dog', 'a red cat'], _BOXES[:2])
  swapped = [['a red cat', 'a dog']]
  alone = location_captions.location_caption_metrics([target], swapped)
  merged = location_captions.merged_location_caption_metrics([target], swapped)
  assert alone['METEOR'] < merged['METEOR'] == 1


@pytest.mark.parametrize(
    'metric_fn',
    [
        captions.caption_metrics,
        location_captions.location_caption_metrics,
        location_captions.merged_location_caption_metrics,
    ],
)
def test_seqio_takes_them_as_metrics_of_predictions(metric_fn):
  metric = seqio.metrics.PassthroughLegacyMetric.from_metric_fn(metric_fn)
  assert metric.model_output_type == seqio.metrics.ModelOutputType.PREDICTION
