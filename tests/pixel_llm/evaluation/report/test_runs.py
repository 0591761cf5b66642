"""Reading the folder of a run."""

import json

import pytest

from pixel_llm.evaluation.report import runs


def _lines(path, *rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(f'{row}\n' for row in rows))


def test_metrics_of_t5x_and_of_seqio_are_found(tmp_path):
  _lines(tmp_path / 'train-metrics.jsonl', '{"step": 1, "loss": 2}')
  _lines(
      tmp_path / 'training_eval/refseg-metrics.jsonl', '{"step": 1, "loss": 3}'
  )
  _lines(
      tmp_path / 'inference_eval/refseg-metrics.jsonl',
      '{"step": 1, "mask_cIoU": 0.5, "text": "no number", "ok": true}',
  )
  _lines(tmp_path / 'inference_eval/refseg-000001.jsonl', '{"input": {}}')
  _lines(tmp_path / 'checkpoint_1/x-metrics.jsonl', '{"step": 1, "x": 1}')
  run = runs.load_run(str(tmp_path))
  assert run.curves == {
      'train': {'loss': [(1, 2.0)]},
      'training_eval/refseg': {'loss': [(1, 3.0)]},
      'inference_eval/refseg': {'mask_cIoU': [(1, 0.5)]},
  }
  assert run.last_step == 1
  assert run.notes == []


def test_a_repeated_step_counts_as_it_was_written_last(tmp_path):
  path = tmp_path / 'train-metrics.jsonl'
  _lines(
      path,
      *(
          json.dumps({'step': s, 'x': x})
          for s, x in [(2, 1), (4, 2), (2, 3), (3, 4)]
      ),
  )
  curves, notes = runs.read_curves(path)
  assert curves == {'x': [(2, 3.0), (3, 4.0), (4, 2.0)]}
  assert notes == []


def test_cut_off_lines_and_numbers_that_are_not_finite_are_told(tmp_path):
  path = tmp_path / 'train-metrics.jsonl'
  _lines(path, '{"step": 1, "x": NaN, "y": 2}', '', '[1]', '{"step": 2, "x')
  curves, notes = runs.read_curves(path)
  assert curves == {'y': [(1, 2.0)]}
  assert notes == [
      f'{path}: 2 unreadable lines were left out.',
      f'{path}: x is not a finite number in 1 lines.',
  ]


def test_the_newest_predictions_of_a_task_count(tmp_path):
  for step in [100, 1000, 200]:
    name = f'refseg-predictions-{step:06d}.json'
    (tmp_path / name).write_text(json.dumps([{'step': step}]))
  (tmp_path / 'a-b-predictions-000005.json').write_text('[]')
  run = runs.load_run(str(tmp_path))
  assert run.predictions == [
      runs.Predictions('a-b', 5, []),
      runs.Predictions('refseg', 1000, [{'step': 1000}]),
  ]
  assert run.last_step is None


def test_a_folder_that_is_no_run_is_an_error(tmp_path):
  with pytest.raises(ValueError, match='is it the folder of a run'):
    runs.load_run(str(tmp_path))
  with pytest.raises(FileNotFoundError, match='no such folder'):
    runs.load_run(str(tmp_path / 'nowhere'))
