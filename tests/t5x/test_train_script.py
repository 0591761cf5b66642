"""The training script as a process: runs, resumes, describes, and complains."""

import json
import signal
import subprocess
import sys
import time

import scripts
from scripts import HERE
from scripts import environment


def command(model_dir, *args):
  return [
      sys.executable,
      '-m',
      't5x.train',
      '--gin_file=tiny.gin',
      f"--gin.MODEL_DIR='{model_dir}'",
      *args,
  ]


def run_script(model_dir, *args):
  _, _, module, *arguments = command(model_dir, *args)
  return scripts.run(module, *arguments)


def losses(model_dir):
  """The loss of each step, exactly as written; the last writing counts."""
  found = {}
  for line in (model_dir / 'train-metrics.jsonl').read_text().splitlines():
    try:
      values = json.loads(line)
    except ValueError:  # the line in which the process was killed
      continue
    if 'loss' in values:
      found[values['step']] = values['loss']
  return found


LONG = (
    '--gin.TRAIN_STEPS=200',
    '--gin.utils.SaveCheckpointConfig.period=20',
    '--gin.utils.SaveCheckpointConfig.keep=3',
)


def kill_while_saving(model_dir, process, first_step):
  """Sends SIGKILL in the middle of a save; returns whether it was in time."""
  deadline = time.monotonic() + 90
  while process.poll() is None and time.monotonic() < deadline:
    for path in model_dir.glob('checkpoint_*.orbax-checkpoint-tmp*'):
      if int(path.name.split('.')[0].split('_')[1]) >= first_step:
        process.send_signal(signal.SIGKILL)
        return process.wait() == -signal.SIGKILL
    time.sleep(0.0005)
  return False


def test_a_run_killed_while_saving_goes_on_with_the_same_losses(tmp_path):
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  settings = {'cwd': HERE, 'env': environment(), 'stderr': subprocess.PIPE}
  with (
      subprocess.Popen(command(whole, *LONG), **settings) as unbroken,
      subprocess.Popen(command(broken, *LONG), **settings) as killed,
  ):
    assert kill_while_saving(broken, killed, 100), killed.stderr.read()
    _, stderr = unbroken.communicate(timeout=90)
    assert unbroken.returncode == 0, stderr
  assert len(losses(broken)) < 200

  again = run_script(broken, *LONG)

  assert again.returncode == 0, again.stderr
  assert 'Resuming the run' in again.stderr
  assert set(losses(whole)) == set(range(1, 201))
  assert losses(broken) == losses(whole)
  steps = sorted(int(p.name.split('_')[1]) for p in broken.glob('checkpoint_*'))
  assert steps == [160, 180, 200]
  assert not list(broken.glob('*tmp*'))
  assert (broken / 'config.gin').exists()


def test_dry_run_describes_the_run_and_touches_nothing(tmp_path):
  result = run_script(
      tmp_path / 'run',
      '--dry_run',
      # Its files are missing, and a dry run does not look for them.
      "--gin.MIXTURE_OR_TASK_NAME='tiny_missing_file_task'",
  )
  assert result.returncode == 0, result.stderr
  assert not (tmp_path / 'run').exists()
  rows = [line.split() for line in result.stdout.splitlines()]
  assert ['data', '1', 'x', 'model', '1:'] in [row[:5] for row in rows]
  assert ['image', '(8,', '2,', '2,', '3)', 'uint8', '0.00'] in rows
  assert ['blocks.0', '56', '0', '0.00'] in rows
  assert ['total', '64', '0', '0.00'] in rows
  assert 'train_script.train.stats_period = 1' in result.stdout


def test_a_missing_gin_file_is_told_at_once_with_the_paths_tried(tmp_path):
  result = run_script(tmp_path, '--gin_file=nowhere.gin')
  assert result.returncode == 1
  assert "error: Gin file 'nowhere.gin' not found" in result.stderr
  assert str(HERE.parent.parent / 'nowhere.gin') in result.stderr
  assert 'Traceback' not in result.stderr


def test_user_errors_are_short_and_name_the_mend(tmp_path):
  result = run_script(tmp_path, "--gin.MIXTURE_OR_TASK_NAME='tiny_tsk'")
  assert result.returncode == 1
  error = result.stderr[result.stderr.index('error: ') :]
  assert "'tiny_tsk'" in error
  assert 'nearest: tiny_task' in error
  assert 'MIXTURE_OR_TASK_MODULE' in error
  assert 'Traceback' not in result.stderr
  assert len(error.splitlines()) < 6


def test_verbosity_shows_the_traceback(tmp_path):
  result = run_script(tmp_path, '--gin_file=nowhere.gin', '--verbosity=1')
  assert result.returncode == 1
  assert 'Traceback' in result.stderr
  assert "Gin file 'nowhere.gin' not found" in result.stderr
