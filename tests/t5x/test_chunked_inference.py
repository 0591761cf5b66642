"""Inference that is killed, resumed, split in shards, and merged."""

import functools
import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
from run_kwargs import dataset_cfg
from run_kwargs import partitioner
from run_kwargs import run_kwargs
import scripts
import seqio
import tiny_task

from t5x import checkpoint_config
from t5x import checkpoint_evaluation
from t5x import chunked_inference
from t5x import inference_files
from t5x import loop
from t5x import step_guard
from t5x import trainer


@pytest.fixture(scope='module')
def run_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp('run')
  loop.train(**run_kwargs(path, save={'period': 2}))
  return path


def restore_cfg(path, **kwargs):
  return checkpoint_config.RestoreCheckpointConfig(str(path), **kwargs)


def write_plainly(path, inferences, task_ds, mode, vocabulary):
  """A user's own writer: what came out, beside the tokens of the example."""
  del mode, vocabulary
  outputs, aux = inferences
  with open(path, 'w') as file:
    for index, example in enumerate(task_ds.as_numpy_iterator()):
      row = {'tokens': example['tokens'].tolist(), 'output': outputs[index]}
      if aux:
        row['score'] = aux['scores'][index]
      file.write(json.dumps(row) + '\n')


def infer(run_dir, output_dir, **overrides):
  kwargs = {
      'mode': 'predict_with_aux',
      'model': tiny_task.TinyModel(None),
      'dataset_cfg': dataset_cfg('validation', batch_size=2),
      'restore_checkpoint_cfg': restore_cfg(run_dir),
      'partitioner': partitioner(),
      'output_dir': str(output_dir),
      'checkpoint_period': 1,
      'write_fn': write_plainly,
      'summarize_config_fn': lambda *_: None,
      'output_vocab_feature_name': 'tokens',
  }
  chunked_inference.infer(**{**kwargs, **overrides})


def results(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


NAME = 'tiny_plain_task-predict_with_aux.jsonl-00000-of-00001'


@pytest.fixture(scope='module')
def whole(run_dir, tmp_path_factory):
  path = tmp_path_factory.mktemp('whole')
  infer(run_dir, path)
  rows = results(path / NAME)
  tokens = [
      example['tokens'].tolist()
      for example in tiny_task._examples(
          'validation', False
      ).as_numpy_iterator()
  ]
  assert [row['tokens'] for row in rows] == tokens
  assert [row['output'] for row in rows] == tokens
  assert len({row['score'] for row in rows}) == len(rows) == 10
  return rows


def write_or_die(path, inferences, *args):
  """Dies in the middle of the fourth chunk, the first time."""
  died = pathlib.Path(os.environ['DIED'])
  if path.endswith('chunk00003') and not died.exists():
    with open(path, 'w') as file:
      file.write('{"half')
    died.write_text('')
    os.kill(os.getpid(), signal.SIGKILL)
  # What was done is not done again.
  assert not died.exists() or path[-1] in '34', path
  write_plainly(path, inferences, *args)


@pytest.mark.parametrize('saves_position', [True, False])
def test_a_killed_job_goes_on_at_the_unfinished_chunk(
    run_dir, whole, tmp_path, monkeypatch, saves_position
):
  monkeypatch.setenv('DIED', str(tmp_path / 'died'))
  output_dir = tmp_path / 'out'
  job = (
      'import test_chunked_inference as t\n'
      f't.infer({str(run_dir)!r}, {str(output_dir)!r},'
      f' write_fn=t.write_or_die, checkpoint_ds_iter={saves_position})'
  )
  result = subprocess.run(
      [sys.executable, '-c', job],
      env=scripts.environment(),
      capture_output=True,
      text=True,
      timeout=180,
      check=False,
  )
  assert result.returncode == -signal.SIGKILL, result.stderr
  assert not (output_dir / NAME).exists()
  infer(
      run_dir,
      output_dir,
      write_fn=write_or_die,
      checkpoint_ds_iter=saves_position,
  )
  assert results(output_dir / NAME) == whole
  assert (output_dir / f'{NAME}.COMPLETED').exists()
  assert not list(output_dir.glob('tmp-*'))


def test_shards_together_hold_every_example_once(run_dir, whole, tmp_path):
  rows = []
  for shard in range(3):
    infer(run_dir, tmp_path, shard_id=shard, num_shards=3)
    name = NAME.replace('00000-of-00001', f'{shard:05d}-of-00003')
    rows += results(tmp_path / name)
  key = str
  assert sorted((r['tokens'] for r in rows), key=key) == sorted(
      (r['tokens'] for r in whole), key=key
  )


def test_a_job_of_another_mode_that_ends_leaves_the_chunks_of_this(
    run_dir, whole, tmp_path
):
  def write_in_company(path, *args):
    if path.endswith('chunk00001'):
      infer(run_dir, tmp_path, mode='score')
    write_plainly(path, *args)

  infer(run_dir, tmp_path, write_fn=write_in_company)
  assert results(tmp_path / NAME) == whole
  scores = tmp_path / NAME.replace('predict_with_aux', 'score')
  assert len(results(scores)) == len(whole)
  assert not list(tmp_path.glob('*.new')) + list(tmp_path.glob('tmp-*'))


def test_an_unfinished_job_with_other_settings_is_refused(run_dir, tmp_path):
  def fail(*_):
    raise OSError('disk full')

  with pytest.raises(OSError, match='disk full'):
    infer(run_dir, tmp_path, write_fn=fail)
  with pytest.raises(ValueError, match='chunk_size = 2, this one has 4'):
    infer(run_dir, tmp_path, checkpoint_period=2)


def test_scores_are_written_as_json_lines(run_dir, whole, tmp_path):
  infer(
      run_dir,
      tmp_path,
      mode='score',
      write_fn=functools.partial(
          inference_files.write_inferences_to_file,
          input_fields_to_include=['tokens'],
      ),
  )
  rows = results(tmp_path / NAME.replace('predict_with_aux', 'score'))
  assert [row['inputs'] for row in rows] == [
      {'tokens': row['tokens']} for row in whole
  ]
  np.testing.assert_allclose(
      [row['score'] for row in rows], [row['score'] for row in whole], rtol=1e-6
  )


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        ({'mode': 'guess'}, "'predict_with_aux'.*'guess'"),
        ({'shard_id': 2, 'num_shards': 2}, 'from 0 to 1'),
        ({'output_vocab_feature_name': 'targets'}, 'output_vocab_feature_name'),
    ],
)
def test_wrong_settings_are_told(run_dir, tmp_path, overrides, message):
  with pytest.raises(ValueError, match=message):
    infer(run_dir, tmp_path, **overrides)


def evaluate(run_dir, output_dir, **overrides):
  kwargs = {
      'model': tiny_task.TinyModel(None),
      'dataset_cfg': dataset_cfg('validation', batch_size=2),
      'restore_checkpoint_cfg': restore_cfg(run_dir, mode='all'),
      'partitioner': partitioner(),
      'output_dir': str(output_dir),
      'inference_evaluator_cls': functools.partial(
          seqio.Evaluator,
          logger_cls=[seqio.JSONLogger],
          target_field_name='tokens',
      ),
      'summarize_config_fn': lambda *_: None,
  }
  checkpoint_evaluation.evaluate(**{**kwargs, **overrides})


METRICS = 'inference_eval/tiny_plain_task-metrics.jsonl'


def test_all_checkpoints_are_evaluated_and_those_on_record_skipped(
    run_dir, tmp_path
):
  record = tmp_path / 'eval.tiny_plain_task.ckpt'
  record.write_text(f'{run_dir}/checkpoint_0\n')
  evaluate(
      run_dir,
      tmp_path,
      # As the gin file of a training run may have bound it.
      training_evaluator_cls=functools.partial(
          trainer.Trainer, guard=step_guard.StepGuard()
      ),
      eval_steps=2,
  )
  assert [row['step'] for row in results(tmp_path / METRICS)] == [2, 4]
  assert record.read_text().splitlines() == [
      f'{run_dir}/checkpoint_{step}' for step in (0, 2, 4)
  ]
  assert list((tmp_path / 'training_eval/tiny_plain_task').iterdir())
  evaluate(run_dir, tmp_path)
  assert len(results(tmp_path / METRICS)) == 2


def test_the_latest_or_one_checkpoint_is_evaluated_each_time(run_dir, tmp_path):
  for cfg in (
      restore_cfg(run_dir, mode='latest'),
      restore_cfg(run_dir / 'checkpoint_2', mode='specific'),
  ):
    for use_orbax in (True, False):
      evaluate(
          run_dir, tmp_path, restore_checkpoint_cfg=cfg, use_orbax=use_orbax
      )
  rows = results(tmp_path / METRICS)
  assert [row['step'] for row in rows] == [4, 4, 2, 2]
  assert rows[0] == rows[1]


def test_checkpoints_in_the_legacy_layout_are_inferred_and_evaluated(
    whole, tmp_path
):
  run = tmp_path / 'run'
  loop.train(**run_kwargs(run, save={'period': 2}, use_orbax=False))
  assert (run / 'checkpoint_4/checkpoint').is_file()
  infer(run, tmp_path)
  assert results(tmp_path / NAME) == whole
  evaluate(run, tmp_path / 'eval')
  rows = results(tmp_path / 'eval' / METRICS)
  assert [row['step'] for row in rows] == [0, 2, 4]


def test_a_directory_without_checkpoints_is_told(tmp_path):
  with pytest.raises(ValueError, match='names no checkpoint'):
    evaluate(tmp_path, tmp_path / 'out')
