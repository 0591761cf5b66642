"""docs/t5x.md names every flag of the scripts and every scalar by its name."""

import pathlib
import re

_ROOT = pathlib.Path(__file__).parents[2]
_PAGE = (_ROOT / 'docs/t5x.md').read_text()


def _sources():
  return {p.name: p.read_text() for p in sorted((_ROOT / 't5x').glob('*.py'))}


def test_every_flag_of_the_scripts_is_explained():
  flags = {
      name
      for text in _sources().values()
      for name in re.findall(r"flags\.DEFINE_\w+\(\s*'(\w+)'", text)
  }
  assert 'gin_file' in flags
  assert sorted(f for f in flags if f'`--{f}`' not in _PAGE) == []


def test_every_scalar_of_the_trainer_is_explained():
  scalars = {
      name
      for text in _sources().values()
      for name in re.findall(
          r"'((?:timing|ledger|learning_rate)/\w+|weight_gradient_norm)'", text
      )
  }
  assert 'timing/uptime' in scalars
  assert sorted(s for s in scalars if f'`{s}`' not in _PAGE) == []
