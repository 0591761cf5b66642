"""The training script as a process: runs, resumes, describes, and complains."""

import scripts
from scripts import HERE


def run_script(model_dir, *args):
  return scripts.run(
      't5x.train',
      '--gin_file=tiny.gin',
      f"--gin.MODEL_DIR='{model_dir}'",
      *args,
  )


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
  assert 'data 1, model 1'.split() in [row[-4:] for row in rows]
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
