"""Runs whose saves cannot be written."""

import errno
import os
import subprocess

import processes
import pytest
import run_kwargs
import test_survival

from t5x import checkpoints
from t5x import dataset_item
from t5x import exit_status
from t5x import loop
from t5x import save_failures

PERIOD = 2


def full_disk_at(monkeypatch, steps, where):
  """Lets writing the data's position fail, at once or in the background."""
  handler = dataset_item.DatasetCheckpointHandler
  original = getattr(handler, where)

  def write(self, directory, *args, **kwargs):
    if any(f'checkpoint_{step}.' in str(directory) for step in steps):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))
    return original(self, directory, *args, **kwargs)

  monkeypatch.setattr(handler, where, write)


def train(model_dir, total_steps=8, **save):
  return loop.train(
      **run_kwargs.run_kwargs(
          model_dir,
          save={'period': PERIOD, **save},
          total_steps=total_steps,
          stats_period=1,
      )
  )


@pytest.mark.parametrize('where', ['save', 'finalize'])
def test_a_save_that_fails_ends_the_run_with_what_to_do(
    tmp_path, monkeypatch, where
):
  full_disk_at(monkeypatch, [4], where)
  with pytest.raises(save_failures.SaveError) as caught:
    train(tmp_path)
  text = str(caught.value)
  assert f'Step 4 could not be saved in {tmp_path}' in text
  assert 'No space left on device' in text
  assert 'MB are free' in text
  assert 'The last checkpoint is that of step 2' in text
  assert 'max_failed_saves' in text
  assert checkpoints.all_steps(str(tmp_path)) == [0, 2]

  monkeypatch.undo()
  step, _ = train(tmp_path)
  assert step == 8
  assert checkpoints.all_steps(str(tmp_path)) == [0, 2, 4, 6, 8]
  assert not list(tmp_path.glob('*tmp*'))


@pytest.mark.parametrize('where', ['save', 'finalize'])
def test_tolerated_failures_leave_nothing_behind(tmp_path, monkeypatch, where):
  full_disk_at(monkeypatch, [2, 6], where)
  step, _ = train(tmp_path, max_failed_saves=1)
  assert step == 8
  assert checkpoints.all_steps(str(tmp_path)) == [0, 4, 8]
  assert not list(tmp_path.glob('*tmp*'))


def test_too_many_in_a_row_and_the_last_one_are_errors(tmp_path, monkeypatch):
  full_disk_at(monkeypatch, [2, 4], 'finalize')
  with pytest.raises(save_failures.SaveError, match='Step 4'):
    train(tmp_path / 'row', max_failed_saves=1)
  monkeypatch.undo()
  full_disk_at(monkeypatch, [4], 'save')
  with pytest.raises(save_failures.SaveError, match='Step 4'):
    train(tmp_path / 'last', total_steps=4, max_failed_saves=5)


def test_pruning_goes_on_after_a_failure(tmp_path, monkeypatch):
  full_disk_at(monkeypatch, [4], 'finalize')
  train(tmp_path, max_failed_saves=1, keep=2)
  assert checkpoints.all_steps(str(tmp_path)) == [6, 8]


@pytest.mark.slow
@pytest.mark.parametrize('process', [0, 1])
def test_a_failure_on_one_of_two_processes_is_one_of_both(tmp_path, process):
  command = [
      '-m',
      't5x.train',
      '--gin_file=numbered.gin',
      f"--gin.MODEL_DIR='{tmp_path}/run'",
      "--gin.MIXTURE_OR_TASK_MODULE='failing_saves'",
      '--gin.TRAIN_STEPS=60',
      '--gin.utils.SaveCheckpointConfig.period=10',
      '--gin.utils.SaveCheckpointConfig.keep=None',
      '--gin.utils.SaveCheckpointConfig.max_failed_saves=2',
      *processes.FLAGS,
  ]
  env = {'FAILING_PROCESS': str(process), 'FAILING_STEPS': '20,30'}
  with processes.Pod(2, command, tmp_path / 'logs', env=env) as pod:
    pod.check()
    logs = [pod.err(0), pod.err(1)]
  for step in (20, 30):
    text = f'Step {step} could not be saved'
    assert all(text in log for log in logs)
  run = tmp_path / 'run'
  assert checkpoints.all_steps(str(run)) == [0, 10, 40, 50, 60]
  assert not list(run.glob('*tmp*'))


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 2 MB."""
  disk = tmp_path / 'disk'
  disk.mkdir()
  mounting = subprocess.run(
      ['mount', '-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', disk],
      capture_output=True,
      check=False,
  )
  if mounting.returncode:
    pytest.skip(f'no right to mount: {mounting.stderr}')
  yield disk
  subprocess.run(['umount', disk], check=True)


@pytest.mark.slow
def test_a_disk_that_is_really_full_ends_the_script_with_its_status(small_disk):
  everything = (
      '--gin.utils.SaveCheckpointConfig.keep=None',
      '--gin.utils.SaveCheckpointConfig.period=2',
  )
  with test_survival.start(small_disk / 'run', *everything) as process:
    _, stderr = process.communicate(timeout=120)
  assert process.returncode == exit_status.NOT_SAVED, stderr
  # What is written first may be the curves, which need room as well.
  error = stderr[stderr.rindex('error: ') :]
  assert 'No space left on device' in error
  assert 'Make room' in error
  saved = checkpoints.all_steps(str(small_disk / 'run'))
  assert saved

  subprocess.run(['mount', '-o', 'remount,size=50m', small_disk], check=True)
  with test_survival.start(small_disk / 'run', *everything) as process:
    _, stderr = process.communicate(timeout=120)
  assert process.returncode == 0, stderr
  assert f'at step {saved[-1]}' in stderr
  assert checkpoints.latest_step(str(small_disk / 'run')) == 200
