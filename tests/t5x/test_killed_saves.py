"""The script killed in the middle of saves of the other two kinds."""

import signal
import subprocess
import time

import pytest
import scripts
from scripts import HERE

from t5x import checkpoints

LEGACY = (
    '--gin.TRAIN_STEPS=200',
    '--gin.train_script.train.use_orbax=False',
    '--gin.utils.SaveCheckpointConfig.period=20',
)


def local(disk):
  return (
      '--gin.TRAIN_STEPS=200',
      '--gin.utils.SaveCheckpointConfig.period=50',
      '--gin.utils.SaveCheckpointConfig.local_period=5',
      f"--gin.utils.SaveCheckpointConfig.local_directory='{disk}'",
  )


def command(model_dir, *args):
  return scripts.train_command('tiny.gin', model_dir, *args)


def losses(model_dir):
  logged = scripts.logged(model_dir)
  return {step: values['loss'] for step, values in logged.items()}


def kill_at(pattern, directory, process, first_step):
  """Sends SIGKILL once something half written of that step is seen."""
  deadline = time.monotonic() + 240
  while process.poll() is None and time.monotonic() < deadline:
    for path in directory.glob(pattern):
      if int(path.name.split('.')[0].split('_')[1]) >= first_step:
        process.send_signal(signal.SIGKILL)
        return process.wait() == -signal.SIGKILL
    time.sleep(0.0005)
  return False


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['legacy', 'local'])
def test_a_run_killed_while_saving_goes_on_with_the_same_losses(tmp_path, kind):
  whole, broken, disk = (tmp_path / x for x in ('whole', 'broken', 'disk'))
  arguments = LEGACY if kind == 'legacy' else local(disk)
  watched = (
      (broken, 'checkpoint_*.tmp')
      if kind == 'legacy'
      else (disk, 'broken-*/process_0/step_*.tmp')
  )
  settings = {
      'cwd': HERE,
      'env': scripts.environment(),
      'stderr': subprocess.PIPE,
  }
  for first_step in (40, 100, 160):
    with subprocess.Popen(command(broken, *arguments), **settings) as process:
      directory, pattern = watched
      assert kill_at(
          pattern, directory, process, first_step
      ), process.stderr.read()
    assert checkpoints.latest_step(str(broken)) < 200
  for model_dir in (broken, whole):
    subprocess.run(command(model_dir, *arguments), check=True, **settings)
  assert set(losses(whole)) == set(range(1, 201))
  assert losses(broken) == losses(whole)
  directory, pattern = watched
  assert not list(directory.glob(pattern))
