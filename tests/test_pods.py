"""docs/pods.md is what benchmarks/pods.py makes of the reports in docs/pods."""

import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def pods(monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
  import pods

  return pods


def test_the_page_is_that_of_the_stored_reports(pods):
  cells = list(pods.cells())
  assert len({cell.name for cell in cells}) == len(cells)
  known = {cell.name for cell in cells}
  assert {path.stem for path in pods.DIRECTORY.glob('*.json')} <= known
  # Which gin files have changed since takes long to find out.
  lines = [
      line
      for line in pods.PAGE.read_text().splitlines(keepends=True)
      if not line.startswith(pods.pods_page.CHANGED)
  ]
  assert ''.join(lines) == pods.pods_page.page(cells, pods.stored)


def test_what_does_not_fit_or_is_missing_is_said(pods):
  cells = [
      pods.Cell('t5', 'refseg', 'v4:2x2x4'),
      pods.Cell('bert', 'refseg', 'v4:2x2x4'),
  ]
  report = json.loads((pods.DIRECTORY / f'{cells[0].name}.json').read_text())
  step = report['steps'][0]
  step['fits'] = False
  text = pods.pods_page.page(cells, {cells[0]: report}.get)
  assert '1 of 2 cells are compiled' in text
  assert 'Not fitting: t5_refseg on v4:2x2x4 (train).' in text
  assert '- train, v4:2x2x4: bert_refseg' in text
  assert '- train, v4:2x2x4: all' in pods.pods_page.page(cells, {}.get)
  (row,) = re.findall(r'^\| `t5_refseg`.*$', text, re.MULTILINE)
  assert 'does not fit' in row
  # The utilisation, by hand.
  peak = 16 * 275e12 * step['roofline']['least']
  assert f'| {step["flops"]["model"] / peak:.0%} |' in row


@pytest.mark.slow
def test_the_page_says_which_reports_are_older_than_their_gin_files(pods):
  text = pods.PAGE.read_text()
  told = ''.join(re.findall(f'^{pods.pods_page.CHANGED}(.*)$', text, re.M))
  for cell in pods.cells():
    if cell.path.exists():
      name = f'{cell.head}_{cell.recipe} on {cell.topology} ({cell.step})'
      assert (name in told) != pods.is_current(cell), name
