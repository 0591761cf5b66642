import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x import metrics


def test_sum_adds_over_all_axes_and_merges():
  total = metrics.Sum.from_model_output([[1, 2], [2, 3], [3, 4]])
  assert total.compute() == 15
  assert total.merge(metrics.Sum(2.0)).compute() == 17


def test_average_per_step_divides_by_steps_not_by_examples():
  metric = metrics.AveragePerStep.from_model_output([10.0, 20.0])
  assert metric.compute() == 30
  assert metric.merge(metric).compute() == 30
  assert metric.replace_steps(4).compute() == 7.5
  assert metrics.AveragePerStep(total=6.0, steps=3).compute() == 2


def test_rates_need_duration_and_steps():
  rate = metrics.TimeRate.from_model_output(np.array([3.0]))
  assert rate.merge(rate).replace_duration(2.0).compute() == 3
  steps = metrics.StepsPerTime()
  for metric in (rate, steps, metrics.Time()):
    with pytest.raises(ValueError, match='is not set'):
      metric.compute()
  with pytest.raises(ValueError, match='steps is not set'):
    steps.replace_duration(2.0).compute()
  done = steps.merge(steps).replace_steps(5).replace_duration(2.0)
  assert done.compute() == 2.5
  assert metrics.Time().replace_duration(4.0).compute() == 4


def test_dict_functions_touch_only_the_metrics_meant():
  before = metrics.create_metrics_dict(
      {
          'sum': 3.0,
          'time': metrics.Time(),
          'steps': metrics.AveragePerStep(total=4.0),
          'both': metrics.StepsPerTime(),
      }
  )
  after = metrics.set_step_metrics_num_steps(
      metrics.set_time_metrics_duration(before, 2.0), 4
  )
  values = {name: float(m.compute()) for name, m in after.items()}
  assert values == {'sum': 3, 'time': 2, 'steps': 1, 'both': 2}
  assert before['time'].duration is None


def test_metrics_pass_through_jit_and_become_zeros_from_shapes():
  @jax.jit
  def step(x):
    return {
        'loss': metrics.AveragePerStep.from_model_output(x),
        'time': metrics.Time(),
    }

  assert step(jnp.ones(3))['loss'].compute() == 3
  shapes = jax.eval_shape(step, jnp.ones(3))
  zero = metrics.shape_obj_to_defined_obj(shapes['loss'])
  assert metrics.is_metric_obj(zero)
  assert zero.total == 0
  assert not metrics.is_metric_obj(3.0)
