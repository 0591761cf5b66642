"""Runs of several processes, killed and asked to stop at seeded moments."""

import random
import signal
import time

import numbered_task
import numpy as np
import processes
import pytest

from t5x import checkpoints
from t5x import exit_status

TOTAL = 200
# What is left of a run that lost a process: JAX's abort, or our own status.
LOST = (-signal.SIGABRT, exit_status.STUCK)


def pod(count, model_dir, logs, pause=0.004, devices=1):
  command = [
      '-m',
      't5x.train',
      '--gin_file=numbered.gin',
      f"--gin.MODEL_DIR='{model_dir}'",
      f'--gin.TRAIN_STEPS={TOTAL}',
      '--gin.utils.SaveCheckpointConfig.period=10',
  ]
  if devices > 1:
    # All devices of all processes along the axis of the data.
    command += [
        f'--gin.partitioning.PjitPartitioner.{name}={value}'
        for name, value in (
            ('num_partitions', 1),
            ('ici_mesh_shape', (1, count * devices, 1)),
            ('dcn_mesh_shape', (1, 1, 1)),
        )
    ]
  if count > 1:
    command += [*processes.FLAGS, '--heartbeat_timeout=10']
  env = {'TINY_PAUSE': str(pause)}
  return processes.Pod(count, command, logs, devices=devices, env=env)


def last_step(model_dir):
  if not (model_dir / 'train-metrics.jsonl').exists():
    return 0
  return max(numbered_task.curves(model_dir), default=0)


def num_points(model_dir):
  """How many points all starts of a run have written."""
  curves = model_dir / 'train-metrics.jsonl'
  return curves.read_text().count('"loss"') if curves.exists() else 0


def wait_for_points(started, model_dir, number):
  end = time.monotonic() + 120
  while num_points(model_dir) < number:
    assert time.monotonic() < end, started.tails()
    assert all(p.poll() is None for p in started.processes), started.tails()
    time.sleep(0.02)


def test_a_notice_to_one_stops_all_and_a_death_ends_all(tmp_path):
  run = tmp_path / 'run'
  with pod(2, run, tmp_path / 'asked') as started:
    wait_for_points(started, run, 12)
    started.kill(1, signal.SIGTERM)
    assert started.wait(90) == [exit_status.AGAIN] * 2, started.tails()
    ends = [started.err(i).splitlines()[-1] for i in range(2)]
  step = checkpoints.latest_step(str(run))
  assert step == last_step(run) < TOTAL
  assert all(f'after step {step}, which is saved' in end for end in ends)

  with pod(2, run, tmp_path / 'killed') as started:
    wait_for_points(started, run, step + 2)
    started.kill(1)
    # The heartbeat's ten seconds, and some for a loaded machine.
    survivor, killed = started.wait(60)
    assert killed == -signal.SIGKILL
    assert survivor in LOST, started.tails()
  assert checkpoints.latest_step(str(run)) >= step


@pytest.mark.slow
@pytest.mark.parametrize(('count', 'kills'), [(1, 8), (2, 8), (4, 4)])
def test_kills_at_random_leave_the_losses_alone(tmp_path, count, kills):
  draw = random.Random(count)
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  for kill in range(kills):
    number = draw.choice([signal.SIGKILL, signal.SIGTERM])
    victims = draw.choice([[draw.randrange(count)], range(count)])
    before = num_points(broken)
    with pod(count, broken, tmp_path / f'kill-{kill}') as started:
      wait_for_points(started, broken, before + draw.randint(1, 18))
      time.sleep(draw.random() * 0.1)
      for victim in victims:
        started.kill(victim, number)
      statuses = started.wait(120)
    for index, status in enumerate(statuses):
      if number == signal.SIGTERM:
        allowed = (exit_status.AGAIN,)
      elif index in victims:
        allowed = (-signal.SIGKILL,)
      else:
        allowed = LOST
      assert status in allowed, f'{kill} {number} {statuses}\n{started.tails()}'
  for model_dir in (broken, whole):
    with pod(count, model_dir, tmp_path / f'end-{model_dir.name}', 0) as ending:
      ending.check()
  expected = numbered_task.curves(whole)
  assert set(expected) == set(range(1, TOTAL + 1))
  assert numbered_task.are_epochs(expected, batch_size=8)
  assert numbered_task.curves(broken) == expected
  assert not list(broken.glob('*tmp*'))


@pytest.mark.slow
def test_another_number_of_processes_goes_on_with_the_same_batches(tmp_path):
  """Eight devices, held by 1, then 2, 4 and again 1 process.

  Processes add their gradients in another order than one does.
  """
  whole, moved = tmp_path / 'whole', tmp_path / 'moved'
  with pod(1, whole, tmp_path / 'logs-whole', 0, devices=8) as ending:
    ending.check()
  for number, count in enumerate((1, 2, 4)):
    before = num_points(moved)
    logs = tmp_path / f'logs-{number}'
    with pod(count, moved, logs, devices=8 // count) as started:
      wait_for_points(started, moved, before + 15)
      # A notice on an even turn, sudden death on an odd one.
      name = signal.SIGKILL if number % 2 else signal.SIGTERM
      for index in range(count):
        started.kill(index, name)
      started.wait(120)
  with pod(1, moved, tmp_path / 'logs-end', 0, devices=8) as ending:
    ending.check()
  expected = numbered_task.curves(whole)
  assert set(expected) == set(range(1, TOTAL + 1))
  assert numbered_task.are_epochs(expected, batch_size=8)
  found = numbered_task.curves(moved)
  losses, seen = zip(*(found[step] for step in expected))
  assert list(seen) == [seen for _, seen in expected.values()]
  np.testing.assert_allclose(
      losses, [loss for loss, _ in expected.values()], rtol=1e-5
  )
