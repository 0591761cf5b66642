"""Feature pyramid and box decoder against the original's figures."""

import pathlib

import pytest

from pixel_llm.golden import case as case_lib
from pixel_llm.golden import compare
from pixel_llm.golden.runners import detection

GOLDEN = pathlib.Path(__file__).parents[2] / 'golden'


@pytest.mark.golden
@pytest.mark.parametrize('name', ['feature_pyramid', 'box_decoder'])
def test_matches_the_golden_figures(name):
  case = case_lib.load_case(GOLDEN, name)
  reports = compare.compare_case(detection.RUNNERS[name](case), case.expected)
  assert reports
  assert not [f'{r.name}: {r.message}' for r in reports if not r.passed]
