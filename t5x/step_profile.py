"""Profiles some steps of a run with `jax.profiler`, on host 0.

The traces lie in `<model_dir>/profile/plugins/profile/<time>/`, as TensorBoard's
profile plugin and XProf read them.
"""

from collections.abc import Sequence
import os
import re

from absl import logging
import jax

from t5x import ledger as ledger_lib
from t5x import progress as progress_lib

PROFILE_DIR = 'profile'


def parse(text: str) -> tuple[int, int]:
  """Reads `first:end`, such as `10:13` for the three steps after step 10.

  Raises:
    ValueError: for anything else.
  """
  match = re.fullmatch(r'(\d+):(\d+)', text.strip())
  if match is None:
    raise ValueError(
        f'--profile_steps={text} must be FIRST:END, such as 10:13.'
    )
  return check((int(match[1]), int(match[2])))


def check(steps: Sequence[int]) -> tuple[int, int]:
  """Returns (first, end).

  Raises:
    ValueError: unless 0 <= first < end.
  """
  if len(steps) != 2 or not 0 <= steps[0] < steps[1]:
    raise ValueError(
        f'train.profile_steps = {steps!r} must be (first, end) with 0 <= first'
        ' < end: steps are counted from 0, and `end` is the first one that is'
        ' not profiled.'
    )
  return int(steps[0]), int(steps[1])


class StepProfile:
  """Starts and stops one trace, between stretches of the loop."""

  def __init__(
      self,
      model_dir: str,
      steps: tuple[int, int] | None,
      ledger: ledger_lib.Ledger,
  ):
    """Plans a trace.

    Args:
      model_dir: the run's directory.
      steps: (first, end) as of `check`, None for no trace.
      ledger: counts what tracing itself costs.
    """
    self._directory = os.path.join(model_dir, PROFILE_DIR)
    self._steps = steps if jax.process_index() == 0 else None
    self._ledger = ledger
    self._is_on = False

  def start(self, step: int) -> None:
    """Starts the trace if the next step is in its range."""
    if self._is_on or self._steps is None:
      return
    first, end = self._steps
    if first <= step < end:
      with self._ledger.spend('profile'):
        jax.profiler.start_trace(self._directory)
      self._is_on = True

  def stop(self, step: int, summary: progress_lib.SummaryFuture) -> None:
    """Ends the trace if the next step is out of its range.

    Args:
      step: the step that was just dispatched.
      summary: its metrics; the trace ends when they are computed.
    """
    if self._is_on and self._steps is not None and step >= self._steps[1]:
      with self._ledger.spend('step'):
        summary.result()
      self.close()

  def close(self) -> None:
    """Ends the trace if it is still on."""
    if not self._is_on:
      return
    self._is_on = False
    with self._ledger.spend('profile'):
      jax.profiler.stop_trace()
    logging.info('The profile is in %s.', self._directory)
