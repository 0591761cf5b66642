import clu.values
import numpy as np
import pytest

from t5x import trainer as trainer_lib


@pytest.mark.parametrize(
    ('mode', 'values', 'atol', 'rtol', 'stops'),
    [
        ('max', [1, 1, 1], 0.0, 0.0, True),
        ('max', [1, 0.9, 0.8], 0.0, 0.0, True),
        ('max', [1, 1.09, 1.18], 0.1, 0.0, True),
        ('max', [1, 1.2, 1.4], 0.1, 0.0, False),
        ('max', [1, 1.2, 1.4], 0.1, 0.08, False),
        ('max', [1, 1.2, 1.4], 0.0, 0.2, True),
        ('min', [1, 1, 1], 0.0, 0.0, True),
        ('min', [1, 0.9, 0.71], 0.2, 0.0, True),
        ('min', [1, 0.8, 0.6], 0.15, 0.0, False),
        ('min', [1, 0.8, 0.6], 0.0, 0.3, True),
        ('min', [1, 0.8, 0.7, 0.6], 0.15, 0.0, True),
        ('min', [1, 1], 0.0, 0.0, False),
    ],
)
@pytest.mark.parametrize('kind', [clu.values.Scalar, float])
def test_early_stopping(mode, values, atol, rtol, stops, kind):
  action = trainer_lib.EarlyStoppingAction(
      ('task', 'metric'), mode=mode, patience=3, atol=atol, rtol=rtol
  )
  for value in values:
    stopped = action.run(None, {'task': {'metric': kind(value)}})
  assert stopped is stops


def test_early_stopping_passes_over_unknown_names_and_kinds():
  action = trainer_lib.EarlyStoppingAction(('task', 'metric'), 'min', 2)
  for metrics in (
      {'other': {}},
      {'task': {'loss': 1.0}},
      {'task': {'metric': 3}},
  ):
    assert not any(action.run(None, metrics) for _ in range(3))


def test_early_stopping_refuses_unknown_modes():
  with pytest.raises(ValueError, match="'min' or 'max'"):
    trainer_lib.EarlyStoppingAction(('task', 'metric'), 'least')


@pytest.mark.parametrize(
    ('value', 'stops'), [(1.0, False), (np.nan, True), (np.inf, True)]
)
def test_terminate_on_nan(value, stops):
  action = trainer_lib.TerminateOnNanAction(task='task')
  scalar = clu.values.Scalar(value)
  assert action.run(None, {'task': {'loss': scalar}}) is stops
  assert not action.run(None, {'task': {'loss': value}})
  assert not action.run(None, {'other': {'loss': scalar}})
