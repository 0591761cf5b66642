"""Reading the settings of the input pipeline's cases."""

import pytest

from pixel_llm.golden.runners import pipeline_case

_SETTING = '3 pairs, 12 text tokens, context prefix "Question: " (no end token)'


def test_numbers_and_texts_are_read_out_of_a_sentence():
  assert pipeline_case.number(_SETTING, r'(\d+) pairs') == 3
  assert pipeline_case.find_number(_SETTING, r'(\d+) captions') is None
  assert pipeline_case.quoted(_SETTING, 'context prefix') == 'Question: '
  assert pipeline_case.quoted(_SETTING, 'suffix') == ''


def test_a_number_that_is_missing_is_named():
  with pytest.raises(
      ValueError, match=r"'3 pairs.* has nothing like .*captions"
  ):
    pipeline_case.number(_SETTING, r'(\d+) captions')
