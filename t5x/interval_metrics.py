"""Metrics of many steps, merged on the device."""

from collections.abc import Sequence
import functools
from typing import Any

import jax

from t5x import gradients

# Steps merged by one call. A call costs the host as much as some small steps
# take, whatever it adds.
_GROUP = 8

# Jitted once for all trainers: intervals merge the same metrics every step.
_merge_two = jax.jit(gradients.merge_metrics)


@jax.jit
def _merge_group(updates: Sequence[gradients.MetricMap]) -> gradients.MetricMap:
  return functools.reduce(gradients.merge_metrics, updates)


class IntervalMetrics:
  """Merges metrics step by step, in order; it never waits for a device.

  Sums are the same bits however many steps share a call.
  """

  def __init__(self):
    # What is merged already comes first.
    self._waiting: list[gradients.MetricMap] = []

  def add(self, update: gradients.MetricMap) -> None:
    """Takes the metrics of the next step."""
    self._waiting.append(update)
    if len(self._waiting) > _GROUP:
      self._waiting = [_merge_group(self._waiting)]

  def result(self) -> Any:
    """Returns the metrics of all steps; None if there was none."""
    if not self._waiting:
      return None
    return functools.reduce(_merge_two, self._waiting)
