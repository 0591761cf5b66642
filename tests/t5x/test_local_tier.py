"""Saves on local disks: written often, taken only if all have them whole."""

import errno
import pathlib
import time

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest
from run_kwargs import run_kwargs
from test_run_loop import find
import tiny_task

from t5x import checkpoint_config
from t5x import checkpoints
from t5x import local_parts
from t5x import loop
from t5x import optimizers
from t5x import step_plan
from t5x import trainer


@st.composite
def grids(draw):
  """A shape, where each dimension is cut, and a part of it."""
  shape = draw(st.lists(st.integers(1, 6), min_size=0, max_size=3))
  cuts = [draw(st.sets(st.integers(1, size))) for size in shape]
  wanted = []
  for size in shape:
    start = draw(st.integers(0, size - 1))
    wanted.append((start, draw(st.integers(start + 1, size))))
  return tuple(shape), cuts, tuple(wanted)


def split(array, cuts):
  """The parts of an array that is cut along each dimension."""
  parts = [()]
  for size, places in zip(array.shape, cuts):
    edges = sorted({0, size, *places})
    parts = [(*p, edge) for p in parts for edge in zip(edges, edges[1:])]
  return [
      local_parts.Part(
          'w', array.shape, p, array[tuple(slice(*edge) for edge in p)]
      )
      for p in parts
  ]


@given(grids())
@settings(max_examples=60, deadline=None)
def test_any_part_is_put_together_from_any_cuts(grid):
  shape, cuts, wanted = grid
  array = np.arange(np.prod(shape, dtype=int)).reshape(shape)
  got = local_parts.assemble(split(array, cuts), wanted)
  np.testing.assert_array_equal(
      got, array[tuple(slice(*edge) for edge in wanted)]
  )


def test_a_missing_part_is_told(tmp_path):
  parts = split(np.arange(6).reshape(3, 2), [{1}, set()])
  path = str(tmp_path / 'state.npz')
  local_parts.write(path, parts[1:], {'session': 7})
  assert local_parts.read_about(path) == {'session': 7}
  stored = local_parts.read(path)['w']
  np.testing.assert_array_equal(stored[0].value, [[2, 3], [4, 5]])
  with pytest.raises(ValueError, match='w: 4 of the 6 numbers'):
    local_parts.assemble(stored, ((0, 3), (0, 2)))


def test_local_saves_are_due_between_the_durable_ones():
  plan = step_plan.StepPlan.create(
      first=3, total_steps=15, save_period=6, stats_period=4, local_period=2
  )
  assert list(plan.unit_ends()) == [9, 15]
  assert list(plan.stretches(3, 9)) == [5, 7, 9]
  assert [s for s in range(3, 16) if plan.saves_locally_at(s)] == [5, 7, 11, 13]


def test_configs_tell_what_is_missing():
  for bad, message in (
      ({'local_period': 3}, 'come together'),
      ({'local_directory': '/x'}, 'come together'),
      ({'local_period': 3, 'local_directory': 'gs://x'}, 'on the machine'),
      ({'local_period': 3, 'local_directory': '/x'}, 'durable saves'),
      (
          {
              'period': 9,
              'local_period': 3,
              'local_directory': '/x',
              'local_keep': 0,
          },
          'at least 1',
      ),
  ):
    with pytest.raises(ValueError, match=message):
      checkpoint_config.SaveCheckpointConfig(**bad)


class Crash(Exception):
  pass


def crashing(step, durable):
  class Crashes(trainer.Trainer):

    def train(self, batch_iter, num_steps, start_step=None):
      if start_step >= step:
        raise Crash
      # Local saves note which durable one there was: let that be the same
      # however fast the steps are.
      while start_step > 5 and not durable.exists():
        time.sleep(0.01)
      return super().train(batch_iter, num_steps, start_step)

  return lambda **kwargs: Crashes(
      **kwargs, learning_rate_fn=lambda _: 0.01, num_microbatches=None
  )


class Run:
  """A run of ten steps: durable every fifth, local every second one."""

  def __init__(self, directory):
    self.model_dir = directory / 'run'
    self.disk = directory / 'disk'
    self.settings = {
        'save': {
            'period': 5,
            'local_period': 2,
            'local_directory': str(self.disk),
        },
        'stats_period': 1,
        'total_steps': 10,
    }

  def train(self, crash_at=None, **overrides):
    kwargs = run_kwargs(self.model_dir, **{**self.settings, **overrides})
    if crash_at is None:
      return loop.train(**kwargs)
    kwargs['trainer_cls'] = crashing(crash_at, self.model_dir / 'checkpoint_5')
    with pytest.raises(Crash):
      loop.train(**kwargs)

  def losses(self):
    return find(self.model_dir / 'train-metrics.jsonl', 'loss')

  def saves(self):
    return sorted(path.name for path in self.disk.glob('*/process_0/*'))

  def started_at(self):
    scalars = find(
        self.model_dir / 'train-metrics.jsonl', 'timing/init_or_restore_seconds'
    )
    return list(scalars)[-1]


@pytest.fixture(scope='module')
def losses(tmp_path_factory):
  run = Run(tmp_path_factory.mktemp('whole'))
  run.train()
  assert run.saves() == ['step_8']
  return run.losses()


def test_a_killed_run_goes_on_from_the_local_save(tmp_path, losses):
  run = Run(tmp_path)
  run.train(crash_at=8)
  assert run.saves() == ['step_8']
  assert checkpoints.all_steps(str(run.model_dir)) == [0, 5]
  run.train()
  assert run.started_at() == 8
  assert run.losses() == losses
  # What was local only became durable at once.
  assert checkpoints.all_steps(str(run.model_dir)) == [0, 5, 8, 10]


def damage(path: pathlib.Path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 255
  path.write_bytes(content)


def test_a_damaged_local_save_means_the_durable_one(tmp_path, losses):
  run = Run(tmp_path)
  run.train(crash_at=8)
  (file,) = run.disk.glob('*/process_0/step_8/state.npz')
  damage(file)
  (file.parent.parent / 'step_9.tmp').mkdir()
  run.train(crash_at=6)
  assert run.started_at() == 5
  # Of the history that ended at 8 nothing is left, nor what was half written.
  assert run.saves() == []
  run.train()
  assert run.losses() == losses


def test_a_disk_that_is_gone_means_the_durable_one(tmp_path, losses):
  run = Run(tmp_path)
  run.train(crash_at=8)
  run.disk.rename(tmp_path / 'gone')
  run.train()
  assert run.started_at() == 5
  assert run.losses() == losses


def test_a_full_disk_ends_the_run_with_its_name(tmp_path, monkeypatch, losses):
  run = Run(tmp_path)
  write = local_parts.write

  def full(path, parts, about):
    if path.endswith('step_6.tmp/state.npz'):
      raise OSError(errno.ENOSPC, 'No space left on device')
    write(path, parts, about)

  with monkeypatch.context() as patched:
    patched.setattr(local_parts, 'write', full)
    with pytest.raises(OSError, match=f'{run.disk}.*No space(.|\n)*None'):
      run.train()
  run.train()
  assert run.losses() == losses


def test_a_run_that_was_set_back_does_not_jump_forward(tmp_path):
  run = Run(tmp_path)
  run.train(crash_at=8)
  (run.model_dir / 'checkpoint_5').rename(tmp_path / 'elsewhere')
  run.train(crash_at=1)
  assert run.started_at() == 0
  assert run.saves() == []


def test_another_optimizer_does_not_take_the_local_save(tmp_path):
  run = Run(tmp_path)
  run.train(crash_at=8)

  model = tiny_task.TinyModel(optimizers.sgd(0.01))
  with pytest.raises(ValueError, match='MODEL_DIR holds another model'):
    run.train(model=model)
