import functools

import jax
import numpy as np
import pytest
import run_kwargs
import tiny_regression
import tiny_task

from t5x import loop
from t5x import optimizers
from t5x import step_guard
from t5x import trainer as trainer_lib


def _trainer(guard=None, **kwargs):
  model = tiny_regression.Regression(tiny_regression.optimizer())
  return tiny_regression.trainer(model, guard=guard, **kwargs)


def _bad(batch, value=np.nan):
  x = batch['x'].copy()
  x[3] = value
  return {**batch, 'x': x}


def _assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize('num_microbatches', [None, 2])
def test_a_bad_batch_is_skipped_as_if_it_had_not_been(num_microbatches, caplog):
  good = list(tiny_regression.batches(4))
  plain = _trainer(num_microbatches=num_microbatches)
  plain.train(iter(good), 4).result()
  guarded = _trainer(
      step_guard.StepGuard(id_features=('image_id', 'missing')),
      num_microbatches=num_microbatches,
  )
  ids = np.arange(100, 108)
  mixed = [*good[:2], _bad(good[0]), _bad(good[1], np.inf), *good[2:]]
  mixed = [{**batch, 'image_id': ids + i} for i, batch in enumerate(mixed)]
  values = guarded.train(iter(mixed), 6).result()
  _assert_same(plain.train_state.params, guarded.train_state.params)
  _assert_same(plain.train_state.param_states, guarded.train_state.param_states)
  # Checkpoints and schedules count batches.
  assert int(guarded.train_state.step) == 6
  assert values['guard/skipped'].value == 2
  assert values['guard/skipped_total'].value == 2
  assert values['guard/skipped_in_a_row'].value == 0
  assert np.isfinite(values['guard/gradient_norm'].value)
  warnings = [m for m in caplog.messages if 'is skipped' in m]
  assert [m[:18] for m in warnings] == [
      'Step 2 is skipped:',
      'Step 3 is skipped:',
  ]
  assert 'loss nan' in warnings[0]
  assert f'image_id here: {(ids + 2).tolist()}.' in warnings[0]
  assert 'missing' not in warnings[0]
  assert warnings[1].endswith('Skipped so far: 2, 2 in a row.')
  assert guarded._model.num_traces == 1


def test_the_guard_changes_no_good_step():
  plain, guarded = _trainer(), _trainer(step_guard.StepGuard())
  for trainer in (plain, guarded):
    trainer.compile_train(next(tiny_regression.batches(1)))
    trainer.train(tiny_regression.batches(5), 5).result()
  _assert_same(plain.train_state.params, guarded.train_state.params)
  assert (
      'guard/skipped' not in plain.train(tiny_regression.batches(1), 1).result()
  )
  assert plain.train_state.guard_memory is None
  assert set(plain.train_state.state_dict()) == {'target', 'state'}


@pytest.mark.parametrize('field', ['loss_factor', 'norm_factor'])
def test_a_spike_over_the_running_median_is_skipped(field, caplog):
  guard = step_guard.StepGuard(window=8, min_steps=3, **{field: 20.0})
  trainer = _trainer(guard)
  (batch,) = tiny_regression.batches(1)
  spike = {**batch, 'y': batch['y'] + 100}
  # Two steps are no median yet.
  trainer.train(iter([batch, spike, batch]), 3).result()
  assert not any('skipped' in m for m in caplog.messages)
  before = jax.device_get(trainer.train_state.params)
  values = trainer.train(iter([spike]), 1).result()
  assert values['guard/skipped'].value == 1
  _assert_same(before, trainer.train_state.params)
  name = {'loss_factor': 'loss', 'norm_factor': 'gradient_norm'}[field]
  history = np.asarray(trainer.train_state.guard_memory.history)
  row = history[0 if name == 'loss' else 1]
  np.testing.assert_allclose(
      values[f'guard/{name}_limit'].value, 20 * np.median(row[:3]), rtol=1e-6
  )
  # It is not part of the next median, and the run goes on.
  assert not row[3:].any()
  values = trainer.train(iter([batch]), 1).result()
  assert values['guard/skipped'].value == 0


def test_too_many_bad_steps_in_a_row_end_the_run_with_its_state_whole():
  good, bad = list(tiny_regression.batches(1)), None
  bad = _bad(good[0])
  trainer = _trainer(step_guard.StepGuard(max_in_a_row=2))
  trainer.train(iter([*good, bad, bad, *good, bad, bad]), 6).result()
  before = jax.device_get(trainer.train_state.params)
  message = 'Step 6 is skipped: .* 3 in a row.*max_in_a_row=2 allows no more'
  # It is heard of a few steps later, which are skipped as well.
  with pytest.raises(step_guard.BadStepError, match=message):
    trainer.train(iter([bad] * 30), 30)
  assert int(trainer.train_state.step) < 6 + 30
  _assert_same(before, trainer.train_state.params)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'max_in_a_row': -1}, 'max_in_a_row must be 0 or more, got -1'),
        ({'window': 4, 'min_steps': 5}, 'min_steps=5 and window=4'),
        ({'loss_factor': 0.5}, 'loss_factor must be above 1'),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    step_guard.StepGuard(**settings)


@pytest.mark.parametrize(
    ('window', 'history', 'num_kept'),
    [(4, [5, 6, 3, 4], 6), (3, [4, 5, 6], 3), (5, [3, 4, 5, 6, 0], 4)],
)
def test_a_memory_fits_another_window(window, history, num_kept):
  # A ring of four with the six steps 1 … 6.
  values = np.array([[5, 6, 3, 4]] * 2, np.float32)
  memory = step_guard.GuardMemory(values, np.int32(6), np.int32(2), np.int32(1))
  guard = step_guard.StepGuard(window=window, min_steps=1)
  resumed = guard.resume(memory)
  np.testing.assert_array_equal(resumed.history, [history] * 2)
  assert int(resumed.num_taken) == num_kept
  assert (int(resumed.num_skipped), int(resumed.in_a_row)) == (2, 1)


class _Breaks(tiny_task.TinyModel):
  """Its loss is `factor` times as large for a batch with a certain example."""

  factor = np.nan

  def loss_fn(self, params, batch, dropout_rng):
    loss, metrics = super().loss_fn(params, batch, dropout_rng)
    breaks = (batch['x'] == self.example).all(axis=-1).any()
    return loss * jax.numpy.where(breaks, self.factor, 1.0), metrics


def _run_kwargs(model_dir, guard, breaks_at, factor=np.nan, **overrides):
  """A run in which the batch of one step breaks."""
  model = _Breaks(optimizers.adamw(0.01))
  model.factor = factor

  def get_dataset(*args, **kwargs):
    dataset = loop.datasets.get_dataset(*args, **kwargs)
    (batch,) = dataset.skip(breaks_at).take(1).as_numpy_iterator()
    model.example = batch['x'][0]
    return dataset

  return run_kwargs.run_kwargs(
      model_dir,
      model=model,
      train_dataset_cfg=run_kwargs.dataset_cfg(shuffle=False),
      get_dataset_fn=get_dataset,
      trainer_cls=functools.partial(
          trainer_lib.Trainer,
          learning_rate_fn=lambda step: 0.01,
          num_microbatches=None,
          guard=guard,
      ),
      **overrides,
  )


def test_a_run_that_ends_keeps_its_checkpoints_and_names_the_batch(tmp_path):
  kwargs = _run_kwargs(
      tmp_path,
      step_guard.StepGuard(max_in_a_row=0),
      breaks_at=2,
      save={'period': 2},
  )
  with pytest.raises(step_guard.BadStepError, match='Step 2 is skipped: loss'):
    loop.train(**kwargs)
  assert {p.name for p in tmp_path.glob('checkpoint_*')} == {
      'checkpoint_0',
      'checkpoint_2',
  }
  # Allowed to skip one, the same run goes on from there.
  kwargs['trainer_cls'].keywords['guard'] = step_guard.StepGuard()
  step, _ = loop.train(**kwargs)
  assert step == 4


class _Crash(Exception):
  pass


class _Crashes(trainer_lib.Trainer):
  """Does not train the third step."""

  def train(self, batch_iter, num_steps, start_step=None):
    if start_step == 2:
      raise _Crash
    return super().train(batch_iter, num_steps, start_step)


@pytest.mark.parametrize(
    'saves',
    [
        'orbax',
        pytest.param('legacy', marks=pytest.mark.slow),
        pytest.param('local', marks=pytest.mark.slow),
    ],
)
def test_the_guard_of_a_resumed_run_decides_as_that_of_an_unbroken_one(
    tmp_path, saves
):
  guard = step_guard.StepGuard(window=8, min_steps=3, norm_factor=20.0)
  save = {'period': 2}
  if saves == 'local':
    disk = str(tmp_path / 'disk')
    save = {'period': 6, 'local_period': 2, 'local_directory': disk}

  def train(name, **overrides):
    kwargs = _run_kwargs(
        tmp_path / name,
        guard,
        breaks_at=4,
        factor=1000.0,
        save=save,
        total_steps=6,
        stats_period=2,
        use_orbax=saves != 'legacy',
    )
    return loop.train(**{**kwargs, **overrides})[1]

  unbroken = train('unbroken')
  # A guard that began anew at step 2 would have no median at step 4.
  assert int(unbroken.guard_memory.num_skipped) == 1
  crashing = functools.partial(
      _Crashes,
      learning_rate_fn=lambda step: 0.01,
      num_microbatches=None,
      guard=guard,
  )
  with pytest.raises(_Crash):
    train('resumed', trainer_cls=crashing)
  resumed = train('resumed')
  _assert_same(unbroken.guard_memory, resumed.guard_memory)
  _assert_same(unbroken.params, resumed.params)


def test_a_guard_may_come_and_go(tmp_path):
  kwargs = _run_kwargs(tmp_path, None, breaks_at=9, total_steps=1)
  for total_steps, guard in enumerate(
      [None, step_guard.StepGuard(window=4, min_steps=1), None], start=1
  ):
    kwargs['trainer_cls'].keywords['guard'] = guard
    _, state = loop.train(**{**kwargs, 'total_steps': total_steps})
    assert (state.guard_memory is None) == (guard is None)
    if guard:
      assert int(state.guard_memory.num_taken) == 1
