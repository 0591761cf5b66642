"""Metrics of a training interval, on top of CLU's.

A metric holds sums and counts and is merged over steps and microbatches. What
only the host knows (the number of steps, the seconds they took) is filled in
when the interval ends: `replace_steps`, `replace_duration`.
"""

from collections.abc import Mapping, MutableMapping
from typing import Any, TypeVar

from clu import metrics as clu_metrics
import flax
import jax
import jax.numpy as jnp

Scalar = int | float | jax.Array
M = TypeVar('M', bound='Time')
S = TypeVar('S', bound='Step')


def is_metric_obj(obj: Any) -> bool:
  """Tells whether an object is a CLU metric."""
  return isinstance(obj, clu_metrics.Metric)


def _unset(metric: Any, field: str, method: str) -> ValueError:
  return ValueError(
      f'{type(metric).__name__}.{field} is not set; call {method} before'
      ' compute().'
  )


@flax.struct.dataclass
class Sum(clu_metrics.Metric):
  """The sum over all examples of all steps."""

  total: Scalar

  @classmethod
  def from_model_output(cls, values: Any, **_) -> 'Sum':
    """Sums an array of any rank."""
    return cls(total=jnp.sum(jnp.asarray(values)))

  def merge(self, other: 'Sum') -> 'Sum':
    """Adds another sum."""
    return type(self)(total=self.total + other.total)

  def compute(self) -> Scalar:
    """Returns the sum."""
    return self.total


@flax.struct.dataclass
class Step(clu_metrics.Metric):
  """A metric that needs the number of training steps.

  Attributes:
    steps: number of steps; None until `replace_steps`.
  """

  steps: Scalar | None = None

  def replace_steps(self: S, steps: Scalar) -> S:
    """Sets the number of steps of the interval."""
    return self.replace(steps=steps)

  def _checked_steps(self) -> Scalar:
    if self.steps is None:
      raise _unset(self, 'steps', 'replace_steps')
    return self.steps


@flax.struct.dataclass
class AveragePerStep(Step):
  """A sum over examples, averaged over steps (not over examples).

  Attributes:
    steps: 1 for one update; merging adds them.
    total: the sum.
  """

  steps: Scalar | None = 1
  total: Scalar = 0

  @classmethod
  def from_model_output(
      cls, values: Any, steps: Scalar = 1, **_
  ) -> 'AveragePerStep':
    """Sums an array of any rank."""
    return cls(steps=steps, total=jnp.sum(jnp.asarray(values)))

  def merge(self, other: 'AveragePerStep') -> 'AveragePerStep':
    """Adds another interval."""
    return type(self)(
        steps=self._checked_steps() + other._checked_steps(),
        total=self.total + other.total,
    )

  def compute(self) -> Scalar:
    """Returns the sum of one step, on average."""
    return self.total / self._checked_steps()


@flax.struct.dataclass
class Time(clu_metrics.Metric):
  """The seconds of the interval.

  Attributes:
    duration: None until `replace_duration`.
  """

  duration: Scalar | None = None

  @classmethod
  def from_model_output(cls, **_) -> 'Time':
    """Returns a metric without a duration."""
    return cls()

  def merge(self: M, other: M) -> M:
    """Joins two steps of one interval; the duration is set at its end."""
    return self

  def replace_duration(self: M, duration: Scalar) -> M:
    """Sets the seconds of the interval."""
    return self.replace(duration=duration)

  def _checked_duration(self) -> Scalar:
    if self.duration is None:
      raise _unset(self, 'duration', 'replace_duration')
    return self.duration

  def compute(self) -> Scalar:
    """Returns the seconds."""
    return self._checked_duration()


@flax.struct.dataclass
class TimeRate(Time):
  """A sum per second.

  Attributes:
    numerator: the sum.
  """

  numerator: Scalar = 0

  @classmethod
  def from_model_output(cls, numerator: Any, **_) -> 'TimeRate':
    """Returns the rate of a sum."""
    return cls(numerator=jnp.sum(jnp.asarray(numerator)))

  def merge(self, other: 'TimeRate') -> 'TimeRate':
    """Adds another sum."""
    return self.replace(numerator=self.numerator + other.numerator)

  def compute(self) -> Scalar:
    """Returns the sum per second."""
    return self.numerator / self._checked_duration()


@flax.struct.dataclass
class StepsPerTime(Step, Time):
  """Training steps per second."""

  steps: Scalar | None = None
  duration: Scalar | None = None

  def merge(self, other: 'StepsPerTime') -> 'StepsPerTime':
    """Joins two steps; the number is set at the end of the interval."""
    return self

  def compute(self) -> Scalar:
    """Returns the steps per second."""
    return self._checked_steps() / self._checked_duration()


def create_metrics_dict(
    float_metrics_dict: Mapping[str, Any],
) -> dict[str, clu_metrics.Metric]:
  """Turns numbers into sums; metrics stay as they are."""
  return {
      name: value if is_metric_obj(value) else Sum(value)
      for name, value in float_metrics_dict.items()
  }


def shape_obj_to_defined_obj(obj: clu_metrics.Metric) -> clu_metrics.Metric:
  """Replaces the shapes in a metric (from `jax.eval_shape`) by zeros."""
  return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), obj)


def set_time_metrics_duration(
    metrics: MutableMapping[str, Any], duration: Scalar
) -> dict[str, Any]:
  """Sets the seconds of the interval in every metric that needs them."""
  return {
      name: m.replace_duration(duration) if isinstance(m, Time) else m
      for name, m in metrics.items()
  }


def set_step_metrics_num_steps(
    metrics: MutableMapping[str, Any], num_steps: Scalar
) -> dict[str, Any]:
  """Sets the number of steps in every metric that needs it."""
  return {
      name: m.replace_steps(num_steps) if isinstance(m, Step) else m
      for name, m in metrics.items()
  }
