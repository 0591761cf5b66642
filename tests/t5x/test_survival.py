"""Runs that are killed and asked to stop, as processes: nothing is lost."""

import signal
import subprocess
import time

import numbered_task
import scripts

from t5x import checkpoints
from t5x import exit_status


def start(model_dir, *args, pause=0.0):
  return subprocess.Popen(
      scripts.train_command('numbered.gin', model_dir, *args),
      cwd=scripts.HERE,
      env={**scripts.environment(), 'TINY_PAUSE': str(pause)},
      stderr=subprocess.PIPE,
      text=True,
  )


def signal_at(model_dir, pattern, first_step, process, number):
  """Sends a signal once a file of that step is seen; tells whether it was."""
  deadline = time.monotonic() + 90
  while process.poll() is None and time.monotonic() < deadline:
    for path in model_dir.glob(pattern):
      if int(path.name.split('.')[0].split('_')[1]) >= first_step:
        process.send_signal(number)
        return True
    time.sleep(0.0005)
  return False


def test_a_run_killed_and_asked_to_stop_goes_on_with_the_same_losses(tmp_path):
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  unfinished = 'checkpoint_*.orbax-checkpoint-tmp*'
  with start(whole) as unbroken, start(broken) as killed:
    assert signal_at(broken, unfinished, 100, killed, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    _, stderr = unbroken.communicate(timeout=90)
    assert unbroken.returncode == 0, stderr
  assert len(numbered_task.curves(broken)) < 200

  with start(broken, pause=0.002) as asked:
    assert signal_at(broken, 'checkpoint_*', 120, asked, signal.SIGTERM)
    asked.send_signal(signal.SIGTERM)
    _, stderr = asked.communicate(timeout=90)
    assert asked.returncode == exit_status.AGAIN, stderr
  assert 'Resuming the run' in stderr
  last = max(numbered_task.curves(broken))
  assert f'after step {last}, which is saved' in stderr
  assert checkpoints.latest_step(str(broken)) == last < 200

  with start(broken) as again:
    _, stderr = again.communicate(timeout=90)
    assert again.returncode == 0, stderr
  expected = numbered_task.curves(whole)
  assert set(expected) == set(range(1, 201))
  assert numbered_task.are_epochs(expected, batch_size=8)
  assert numbered_task.curves(broken) == expected
  assert checkpoints.latest_step(str(broken)) == 200
  assert not list(broken.glob('*tmp*'))
  assert (broken / 'config.gin').exists()
