"""The command that runs a folder of golden cases."""

import json

import numpy as np
import pytest

from pixel_llm.golden import __main__ as golden
from pixel_llm.golden import case as case_lib
from pixel_llm.golden.runners import registry


@pytest.fixture(name='folder')
def _folder(tmp_path):
  (tmp_path / 'settings.json').write_text('{}')
  for name in ['one', 'two']:
    np.savez(
        tmp_path / f'{name}.npz',
        **{'in/x': np.arange(3.0), 'out/y': np.arange(3.0) * 2},
    )
  (tmp_path / 'eval_three.json').write_text(
      json.dumps({'examples': [1.0, 2.0], 'expected': {'mean': 1.5}})
  )
  (tmp_path / 'io_strings.json').write_text('{}')
  return tmp_path


def _double(case):
  return {'out/y': case.inputs['x'] * 2}


def _mean(case):
  return {'metric/mean': np.mean(case.document['examples'])}


_GOOD = {'one': _double, 'two': _double, 'eval_three': _mean}


def test_right_figures_pass(folder, capsys):
  reports = golden.run_folder(folder, _GOOD)
  assert all(r.passed for r in reports)
  lines = capsys.readouterr().out.splitlines()
  assert lines == [
      'pass  eval_three: 1 arrays checked, largest error 0 of its tolerance in'
      ' metric/mean',
      'pass  one: 1 arrays checked, largest error 0 of its tolerance in out/y',
      'pass  two: 1 arrays checked, largest error 0 of its tolerance in out/y',
      '3 passed, 0 failed',
  ]


def test_a_case_without_runner_fails(folder, capsys):
  golden.run_folder(folder, {'one': _double, 'eval_three': _mean})
  lines = capsys.readouterr().out.splitlines()
  assert lines[2] == 'FAIL  two: no runner for this case'
  assert lines[-1] == '2 passed, 1 failed'


def test_an_unchecked_array_fails(folder, capsys):
  golden.run_folder(folder, _GOOD | {'two': lambda case: {}})
  lines = capsys.readouterr().out.splitlines()
  assert 'FAIL  two' in lines[2] and 'out/y (was not checked)' in lines[2]
  assert lines[-1] == '2 passed, 1 failed'


def test_the_line_says_which_figures_have_no_input_of_their_own(
    folder, capsys, monkeypatch
):
  monkeypatch.setattr(case_lib, 'UNSTORED_INPUTS', {'two': 'out/y'})
  golden.run_folder(folder, _GOOD)
  lines = capsys.readouterr().out.splitlines()
  assert lines[2].endswith('; 1 arrays take from themselves an unstored input')
  assert 'unstored' not in lines[1]


def test_nan_is_the_worst_error(folder, capsys):
  nan = np.full(3, np.nan)
  golden.run_folder(folder, _GOOD | {'one': lambda case: {'out/y': nan}})
  lines = capsys.readouterr().out.splitlines()
  assert 'FAIL  one: 1 arrays checked, largest error nan' in lines[1]


def test_a_runner_that_raises_does_not_stop_the_others(folder, capsys):
  def broken(case):
    raise RuntimeError(f'no such thing\nas {case.name}')

  golden.run_folder(folder, _GOOD | {'one': broken})
  out, err = capsys.readouterr()
  lines = out.splitlines()
  assert lines[1] == 'FAIL  one: RuntimeError: no such thing as one'
  assert lines[-1] == '2 passed, 1 failed'
  assert 'in broken' in err


def test_a_misspelt_case_names_the_nearest(folder):
  with pytest.raises(ValueError, match=r"No case 'ome' .* nearest: \['one'"):
    golden.run_folder(folder, _GOOD, ['ome'])


def test_a_folder_without_cases_is_an_error(tmp_path):
  with pytest.raises(ValueError, match='holds no golden case'):
    golden.run_folder(tmp_path, _GOOD)


def test_exit_status_tells_failure(folder, monkeypatch):
  monkeypatch.setattr(registry, 'load_runners', lambda: _GOOD)
  assert golden.main([str(folder)]) == 0
  monkeypatch.setattr(registry, 'load_runners', lambda: {'one': _double})
  assert golden.main([str(folder)]) == 1
  assert golden.main([str(folder), 'one']) == 0


def test_two_runners_for_one_case_are_an_error():
  with pytest.raises(ValueError, match="'one' has a runner in 'a' and in 'b'"):
    registry.merge([('a', {'one': _double}), ('b', {'one': _mean})])


def test_the_evaluation_runners_load():
  runners = registry.load_runners(['evaluation', 'captioning'])
  assert set(runners) == {
      'eval_points',
      'eval_refcoco',
      'eval_densecap',
      'eval_loca',
      'eval_captions',
  }
