import json

import clu.metrics
import clu.values
import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_regression

from t5x import metrics as metrics_lib
from t5x import trainer as trainer_lib


def _trainer(frozen=True, dropout_rate=0.0, **kwargs):
  model = tiny_regression.Regression(
      tiny_regression.optimizer(frozen), dropout_rate
  )
  return tiny_regression.trainer(model, **kwargs)


def _losses(trainer, num_steps=3):
  batches = tiny_regression.batches(num_steps)
  return [
      float(trainer.train(batches, 1).result()['loss'].value)
      for _ in range(num_steps)
  ]


@pytest.fixture
def clock(monkeypatch):
  """A clock that ticks once a call."""
  ticks = iter(range(1000))
  monkeypatch.setattr(trainer_lib, '_time', lambda: float(next(ticks)))
  return ticks


def test_training_lowers_the_loss_and_keeps_frozen_parameters_bit_for_bit():
  trainer = _trainer()
  before = jax.device_get(trainer.train_state.params)
  (batch,) = tiny_regression.batches(1)
  first = trainer.train(iter([batch]), 1).result()['loss'].value
  trainer.train(iter([batch] * 30), 30).result()
  last = trainer.train(iter([batch]), 1).result()['loss'].value
  assert last < 0.5 * first
  after = jax.device_get(trainer.train_state.params)
  frozen = tiny_regression.FROZEN
  assert np.array_equal(before[frozen]['kernel'], after[frozen]['kernel'])
  assert not np.array_equal(before['head']['kernel'], after['head']['kernel'])
  assert int(trainer.train_state.step) == 32
  trainer.close()


@pytest.mark.parametrize('num_microbatches', [2, 4])
def test_training_is_the_same_with_microbatches(num_microbatches):
  whole, parts = _trainer(), _trainer(num_microbatches=num_microbatches)
  np.testing.assert_allclose(_losses(whole), _losses(parts), rtol=1e-5)
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
      whole.train_state.params,
      parts.train_state.params,
  )


def test_same_seed_gives_the_same_bits():
  first, second = _trainer(dropout_rate=0.5), _trainer(dropout_rate=0.5)
  assert _losses(first) == _losses(second)
  jax.tree.map(
      np.testing.assert_array_equal,
      first.train_state.params,
      second.train_state.params,
  )


def test_random_key_of_a_step_depends_on_the_step_only():
  straight, stepwise = _trainer(dropout_rate=0.5), _trainer(dropout_rate=0.5)
  batches = list(tiny_regression.batches(4))
  straight.train(iter(batches), 4)
  for batch in batches:
    stepwise.train(iter([batch]), 1)
  jax.tree.map(
      np.testing.assert_array_equal,
      straight.train_state.params,
      stepwise.train_state.params,
  )
  np.testing.assert_array_equal(
      straight._get_step_rng(7), jax.random.fold_in(jax.random.PRNGKey(1), 7)
  )


def test_step_is_traced_once():
  trainer = _trainer()
  trainer.train(tiny_regression.batches(5), 5).result()
  assert trainer._model.num_traces == 1


def test_compiled_ahead_step_is_used_and_traced_once():
  trainer = _trainer()
  batches = tiny_regression.batches(3)
  trainer.compile_train(next(batches))
  trainer._partitioned_train_step = None
  trainer.train(batches, 2).result()
  assert trainer._model.num_traces == 1


def test_evaluation_compiles_once_per_shape():
  trainer = _trainer(eval_names=['a', 'b', 'c'])
  small, large = tiny_regression.batches(1, 4), tiny_regression.batches(1, 8)
  small, large = next(small), next(large)
  trainer.compile_eval({'a': small, 'b': small, 'c': large})
  compiled = trainer._compiled_eval_steps
  assert compiled['a'] is compiled['b'] is not compiled['c']
  trainer._partitioned_eval_step = None
  values = trainer.eval({'a': iter([small, small]), 'c': iter([large])})
  assert set(values) == {'a', 'c'}
  trainer.close()


def test_evaluation_averages_over_its_batches():
  trainer = _trainer(eval_names=['task'])
  batches = list(tiny_regression.batches(2))
  losses = [
      float(trainer._model.eval_fn(trainer.train_state.params, batch)[0])
      for batch in batches
  ]
  values = trainer.eval({'task': iter(batches)})['task']
  np.testing.assert_allclose(values['loss'].value, np.mean(losses), rtol=1e-6)
  np.testing.assert_allclose(
      values['mean_error'].value, np.sum(losses) / 16, rtol=1e-6
  )


def test_evaluation_without_batches_or_of_unknown_task_is_an_error():
  trainer = _trainer(eval_names=['validation'])
  with pytest.raises(ValueError, match='has no batch'):
    trainer.eval({'validation': iter([])})
  with pytest.raises(ValueError, match=r"nearest: \['validation'\]"):
    trainer.eval({'validaton': iter([])})


def test_interval_reports_times_and_steps(clock):
  del clock
  trainer = _trainer()  # 0: start of the trainer.
  values = trainer.train(tiny_regression.batches(6), 6).result()
  # 1: start of the interval, 2: uptime, 3: its end.
  assert values['timing/seconds'].value == 2
  assert values['timing/steps_per_second'].value == 3


def test_metrics_reach_tensorboard_and_json_lines(tmp_path, clock):
  from tensorboard.backend.event_processing import event_accumulator
  from tensorboard.util import tensor_util

  del clock
  trainer = _trainer(summary_dir=str(tmp_path), eval_names=['task'])
  batch = next(tiny_regression.batches(1))
  trainer.compile_train(batch)
  values = trainer.train(tiny_regression.batches(2), 2).result()
  trainer.eval({'task': tiny_regression.batches(1)})
  trainer.close()
  lines = [
      json.loads(line)
      for line in (tmp_path / 'train-metrics.jsonl').read_text().splitlines()
  ]
  assert lines[0] == {'step': 0, 'timing/compilation_seconds': 1.0}
  assert lines[1]['timing/uptime'] > 0
  assert lines[2]['step'] == 2
  assert lines[2]['loss'] == pytest.approx(float(values['loss'].value))
  events = event_accumulator.EventAccumulator(str(tmp_path / 'train'))
  events.Reload()
  (event,) = events.Tensors('loss')
  assert event.step == 2
  value = tensor_util.make_ndarray(event.tensor_proto)
  assert float(value) == pytest.approx(lines[2]['loss'])
  assert (tmp_path / 'training_eval/task-metrics.jsonl').exists()


def test_other_hosts_write_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  manager = trainer_lib.MetricsManager('eval', str(tmp_path))
  assert manager.summary_dir == str(tmp_path / 'eval')
  manager.write_scalar('loss', 1.0, 1)
  manager.flush()
  manager.close()
  assert not (tmp_path / 'eval').exists()


def test_summary_sets_steps_and_duration_and_keeps_text(clock):
  del clock

  @flax.struct.dataclass
  class Note(clu.metrics.Metric):

    def compute_value(self):
      return clu.values.Text('note')

  manager = trainer_lib.MetricsManager('eval')
  manager.start_duration_timer()
  summary = manager.write_metrics_summary(
      {
          'loss': metrics_lib.Sum(40.0),
          'accuracy': metrics_lib.AveragePerStep.from_model_output(20.0),
          'rate': metrics_lib.StepsPerTime(),
          'text': Note(),
      },
      step=4,
      num_steps=2,
  )
  assert summary.result() == {
      'loss': clu.values.Scalar(40.0),
      'accuracy': clu.values.Scalar(10.0),
      'rate': clu.values.Scalar(2.0),
      'text': clu.values.Text('note'),
  }
  manager.close()


def test_timer_accepts_donated_arrays_and_needs_a_start():
  manager = trainer_lib.MetricsManager('train')
  x = jnp.zeros(1)
  manager.start_duration_timer(block_on=x)
  manager._duration_timer._start_future.result()
  x.delete()
  manager.start_duration_timer(block_on=x)
  manager._duration_timer._start_future.result()
  manager.write_metrics_summary({}, 0, 1).result()
  with pytest.raises(ValueError, match='not started'):
    manager.write_metrics_summary({}, 0, 1)
  manager.close()


def test_timer_accepts_arrays_that_are_donated_while_it_waits():
  manager = trainer_lib.MetricsManager('train')
  step = jax.jit(lambda x: x @ x, donate_argnums=0)
  x = jnp.eye(256)
  for _ in range(200):
    x = step(x)
    manager.start_duration_timer(block_on=x)
  manager.write_metrics_summary({}, 0, 1).result()
  manager.close()


def test_training_needs_a_step():
  with pytest.raises(ValueError, match='num_steps'):
    _trainer().train(iter([]), 0)
