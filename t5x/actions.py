"""Actions: what looks at a run's metrics and may stop it."""

import abc
import collections
from collections.abc import Mapping, Sequence
import enum
import math
from typing import Any

from absl import logging
import clu.values

MetricsByTask = Mapping[str, Mapping[str, Any]]


class ActionMode(enum.Enum):
  """When an action runs: after training, after either kind of evaluation."""

  TRAIN = 1
  TRAIN_EVAL = 2
  INFER_EVAL = 3


class BaseAction(abc.ABC):
  """Interface of an action."""

  @abc.abstractmethod
  def run(self, train_state: Any, metrics_by_task: MetricsByTask) -> bool:
    """Looks at the metrics of one interval.

    Args:
      train_state: the state at the end of the interval.
      metrics_by_task: metric values by task and name.

    Returns:
      True to stop the training.
    """


ActionMapType = Mapping[ActionMode, Sequence[BaseAction]]


def _lookup(
    action: BaseAction, metrics_by_task: MetricsByTask, task: str, metric: str
) -> Any:
  """Returns a value, or None after a warning if task or metric is unknown."""
  if task not in metrics_by_task:
    logging.warning(
        '%s: no task %r; there are %s.',
        type(action).__name__,
        task,
        sorted(metrics_by_task),
    )
    return None
  if metric not in metrics_by_task[task]:
    logging.warning(
        '%s: task %r has no metric %r; it has %s.',
        type(action).__name__,
        task,
        metric,
        sorted(metrics_by_task[task]),
    )
    return None
  return metrics_by_task[task][metric]


class EarlyStoppingAction(BaseAction):
  """Stops when a metric has not improved over several intervals.

  It stops after `patience` values in a row of which none gains more than
  `atol + rtol · |previous|` over the one before.
  """

  def __init__(
      self,
      metric: tuple[str, str],
      mode: str,
      patience: int = 3,
      atol: float = 0.0,
      rtol: float = 0.0,
  ):
    """Checks the settings.

    Args:
      metric: (task, name).
      mode: `min` if smaller is better, `max` if larger is.
      patience: number of values to compare, at least 2.
      atol: absolute gain that does not yet count.
      rtol: gain relative to the previous value that does not yet count.

    Raises:
      ValueError: for an unknown mode, or too little patience.
    """
    if mode not in ('min', 'max'):
      raise ValueError(f"mode must be 'min' or 'max', got {mode!r}.")
    if patience < 2:
      raise ValueError(
          f'patience must be at least 2 (values to compare), got {patience}.'
      )
    self._task, self._metric = metric
    self._sign = 1 if mode == 'max' else -1
    self._atol, self._rtol = atol, rtol
    self._patience = patience
    self._history = collections.deque(maxlen=patience)

  def run(self, train_state: Any, metrics_by_task: MetricsByTask) -> bool:
    """Remembers the value and tells whether to stop."""
    value = _lookup(self, metrics_by_task, self._task, self._metric)
    if isinstance(value, clu.values.Scalar):
      value = value.value
    elif not isinstance(value, float):
      if value is not None:
        logging.warning(
            'EarlyStoppingAction: %s/%s is a %s, not a Scalar or float.',
            self._task,
            self._metric,
            type(value).__name__,
        )
      return False
    self._history.append(float(value))
    if len(self._history) < self._patience:
      return False
    values = list(self._history)
    gained = any(
        self._sign * (new - old) > self._atol + self._rtol * abs(old)
        for old, new in zip(values, values[1:])
    )
    if not gained:
      logging.warning(
          'EarlyStoppingAction: %s/%s has not improved over %s.',
          self._task,
          self._metric,
          values,
      )
    return not gained


class TerminateOnNanAction(BaseAction):
  """Stops when a metric is NaN or infinite."""

  def __init__(self, task: str, metric: str = 'loss'):
    self._task, self._metric = task, metric

  def run(self, train_state: Any, metrics_by_task: MetricsByTask) -> bool:
    """Tells whether the value is NaN or infinite."""
    value = _lookup(self, metrics_by_task, self._task, self._metric)
    if not isinstance(value, clu.values.Scalar):
      if value is not None:
        logging.warning(
            'TerminateOnNanAction: %s/%s is a %s, not a Scalar.',
            self._task,
            self._metric,
            type(value).__name__,
        )
      return False
    if math.isfinite(float(value.value)):
      return False
    logging.warning(
        'TerminateOnNanAction: %s/%s is %s.',
        self._task,
        self._metric,
        value.value,
    )
    return True
