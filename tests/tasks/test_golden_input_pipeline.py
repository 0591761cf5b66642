"""The input pipeline against the original's figures."""

import pathlib

import pytest

from pixel_llm.golden import case as golden_case
from pixel_llm.golden import compare
from pixel_llm.golden.runners import registry

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
RUNNERS = registry.load_runners(['input_geometry', 'input_text', 'input_rows'])


@pytest.mark.golden
@pytest.mark.parametrize('name', sorted(RUNNERS))
def test_arrays_are_the_original_ones(name):
  case = golden_case.load_case(GOLDEN, name)
  computed = RUNNERS[name](case)
  reports = compare.compare_case(computed, case.expected)
  assert [r for r in reports if not r.passed] == []
