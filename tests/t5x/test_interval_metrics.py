"""Metrics of many steps, merged on the device."""

import functools

import clu.metrics
import jax
import numpy as np
import pytest

from t5x import gradients
from t5x import interval_metrics
from t5x import metrics as metrics_lib


def _updates(count):
  values = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
  return [
      {
          'loss': metrics_lib.AveragePerStep.from_model_output(row),
          'mean': clu.metrics.Average.from_model_output(row),
          'seconds': metrics_lib.Time(),
      }
      for row in values
  ]


@pytest.mark.parametrize('count', [1, 2, 8, 9, 10, 17, 30])
def test_steps_merge_to_the_same_bits_as_one_by_one(count):
  merged = interval_metrics.IntervalMetrics()
  for update in _updates(count):
    merged.add(update)
  expected = functools.reduce(jax.jit(gradients.merge_metrics), _updates(count))
  jax.tree.map(np.testing.assert_array_equal, merged.result(), expected)
  assert merged.result()['loss'].steps == count


def test_no_step_has_no_metrics():
  assert interval_metrics.IntervalMetrics().result() is None
