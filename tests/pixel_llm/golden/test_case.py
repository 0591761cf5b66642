"""Golden cases as read from disk, and the comparison with computed figures."""

import json

import numpy as np
import pytest

from pixel_llm.golden import case as case_lib
from pixel_llm.golden import compare


@pytest.fixture(name='folder')
def _folder(tmp_path):
  (tmp_path / 'settings.json').write_text('{"a.npz": {"depth": 2}}')
  np.savez(
      tmp_path / 'a.npz',
      **{
          'param/x/y': np.ones(2, np.float32),
          'in/z': np.zeros(3, np.int32),
          'out/w': np.arange(3.0),
      },
  )
  document = {
      'examples': [{'points': [1.0]}],
      'expected': {'boxes': {'P@1': 0.5, 'bleu': [0.1, 0.2]}, 'METEOR': 0.25},
      'per_example': [1, 2.5],
      'merged_targets': {
          '7': [{'bbox': [1.0, 2.0, 3.0, 4.0], 'captions': ['a dog']}],
          '8': [],
      },
      'meteor_pairs': {'candidates': {'0': 'a'}, 'scores': [0.5], 'mean': 0.5},
      'tokenized_references': {'7': ['a dog', '']},
  }
  (tmp_path / 'eval_b.json').write_text(json.dumps(document))
  (tmp_path / 'io_strings.json').write_text('{}')
  return tmp_path


def test_arrays_are_sorted_by_their_prefix(folder):
  case = case_lib.load_case(folder, 'a')
  assert case.params['x']['y'].tolist() == [1, 1]
  assert list(case.inputs) == ['z']
  assert list(case.expected) == ['out/w']
  assert case.settings == {'depth': 2}


def test_answers_of_a_metric_case_get_one_name_each(folder):
  case = case_lib.load_case(folder, 'eval_b')
  assert case.document['examples'] == [{'points': [1.0]}]
  assert {k: v.tolist() for k, v in case.expected.items()} == {
      'metric/boxes/P@1': 0.5,
      'metric/boxes/bleu': [0.1, 0.2],
      'metric/METEOR': 0.25,
      'metric/per_example': [1, 2.5],
      'metric/merged_targets/7/0/bbox': [1, 2, 3, 4],
      'metric/merged_targets/7/0/captions': ['a dog'],
      'metric/merged_targets/8': [],
      'metric/meteor_pairs/scores': [0.5],
      'metric/meteor_pairs/mean': 0.5,
      'metric/tokenized_references/7': ['a dog', ''],
  }


def test_attachments_are_no_cases(folder):
  assert case_lib.case_names(folder) == ['a', 'eval_b']


def test_an_unknown_prefix_is_an_error(folder):
  np.savez(folder / 'bad.npz', **{'output/x': np.ones(1)})
  with pytest.raises(ValueError, match="'output/x' starts with 'output'"):
    case_lib.load_case(folder, 'bad')


@pytest.mark.parametrize(
    ('name', 'allowed', 'refused'),
    [
        ('metric/P@1', 9e-7, 1.1e-6),
        ('metric/METEOR', 9e-5, 1.1e-4),
        ('metric/meteor_pairs/mean', 9e-5, 1.1e-4),
        ('metric/meteor/mAP', 9e-7, 1.1e-6),
        ('metric/first/0/bbox', 9e-3, 1.1e-2),
        ('out/boxes', 9e-3, 1.1e-2),
        ('out/features', 9.9e-5, 1.01e-4),
        ('grad/kernel', 4e-4, 6e-4),
    ],
)
def test_tolerance_follows_the_name(name, allowed, refused):
  expected = np.asarray(0.5)
  assert compare.compare_array(name, 0.5 + allowed, expected).passed
  assert not compare.compare_array(name, 0.5 + refused, expected).passed


@pytest.mark.parametrize('name', ['out/lr', 'out/plain/update2/a/kernel'])
def test_rates_and_updates_are_compared_by_digits(name):
  expected = np.asarray([2e-7, 0.0])
  assert compare.compare_array(name, expected * (1 + 9e-5), expected).passed
  assert not compare.compare_array(name, expected * 1.01, expected).passed
  assert not compare.compare_array(name, np.zeros(2), expected).passed
  # A first update of rate 0 is 0, and 1e-7 is not.
  assert compare.compare_array(name, expected * 0, expected * 0).passed
  assert not compare.compare_array(name, expected, expected * 0).passed


def test_small_numbers_are_not_lost_in_the_absolute_tolerance():
  scores = np.asarray([4e-5, 1e-5])
  assert not compare.compare_array('out/scores', scores * 1.01, scores).passed
  # The noise of a large array is no error in its small entries.
  mixed = np.asarray([3.0, 1e-7])
  assert compare.compare_array('out/x', mixed + 9e-5, mixed).passed
  assert compare.compare_array('out/x', np.full(2, 9e-5), np.zeros(2)).passed


def test_a_figure_without_stored_input_is_known():
  assert case_lib.has_unstored_input('utils', 'out/image_size_plus')
  assert not case_lib.has_unstored_input('utils', 'out/concat_plus')
  assert not case_lib.has_unstored_input('other', 'out/image_size_plus')


@pytest.mark.parametrize('wrong', [np.nan, np.inf])
@pytest.mark.parametrize('name', ['metric/x', 'out/x', 'grad/x', 'out/boxes'])
def test_what_is_no_number_fails(name, wrong):
  actual = np.asarray([1.0, wrong])
  assert not compare.compare_array(name, actual, np.asarray([1.0, 1.0])).passed


def test_whole_numbers_and_texts_must_be_equal():
  ids = np.asarray([2, 3], np.int32)
  assert compare.compare_array('out/ids', np.asarray([2, 3]), ids).passed
  assert not compare.compare_array('out/ids', np.asarray([2, 3.7]), ids).passed
  texts = np.asarray(['a', 'b'])
  assert compare.compare_array('metric/t', ['a', 'b'], texts).passed
  assert not compare.compare_array('metric/t', ['a', 'c'], texts).passed
  assert not compare.compare_array('metric/t', [1, 2], texts).passed
  assert not compare.compare_array('metric/t', ['1'], np.ones(1)).passed


def test_unchecked_and_unknown_arrays_fail():
  reports = compare.compare_case(
      {'out/a': np.ones(1), 'out/typo': np.ones(1)},
      {'out/a': np.ones(1), 'out/b': np.ones(1)},
  )
  messages = {r.name: r.message for r in reports}
  assert messages == {
      'out/a': '',
      'out/b': 'was not checked',
      'out/typo': 'is not in the golden case',
  }
