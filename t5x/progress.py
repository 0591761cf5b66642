"""How a run tells a person where it is: a bar on a terminal, else log lines.

The numbers come from summaries that the trainer computes anyway; showing them
never makes the loop wait for the device.
"""

from collections.abc import Mapping
import concurrent.futures
import os
import sys
import time
from typing import Any, Protocol

from absl import logging
import jax
import numpy as np
import tqdm


class SummaryFuture(Protocol):
  """The metrics of one stretch of steps, some time later."""

  def result(self) -> Mapping[str, Any]:
    """Waits for the metrics and returns them by name."""
    ...


class Progress:
  """Shows step, loss, examples a second and time left on process 0."""

  def __init__(self, start_step: int, total_steps: int, batch_size: int):
    """Opens the bar on a terminal.

    Args:
      start_step: the step the run starts or resumes at.
      total_steps: the step it ends at.
      batch_size: examples of one step, all processes together.
    """
    self._batch_size = batch_size
    self._total_steps = total_steps
    self._start_step = start_step
    self._start_time = time.monotonic()
    # One waiter: a summary ends after the device finished its steps, and the
    # loop must go on dispatching meanwhile.
    self._waiter = (
        concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix='progress')
        if jax.process_index() == 0
        else None
    )
    self._bar = None
    if self._waiter and sys.stderr.isatty():
      self._bar = tqdm.tqdm(
          total=total_steps,
          initial=start_step,
          unit='step',
          file=sys.stderr,
          **_bar_size(),
      )

  def start(self) -> None:
    """Starts the clock: what came before (compilation) is no training."""
    self._start_time = time.monotonic()

  def advance(self, step: int, summary: SummaryFuture) -> None:
    """Shows that `step` is reached as soon as its summary is there."""
    if self._waiter:
      self._waiter.submit(self._show, step, summary)

  def close(self) -> None:
    """Waits for what is still to be shown and ends the bar."""
    if self._waiter:
      self._waiter.shutdown()
    if self._bar is not None:
      self._bar.close()

  def _show(self, step: int, summary: SummaryFuture) -> None:
    try:
      loss = loss_of(summary.result())
    except Exception as error:
      # The loop meets the same error when it reads the summary.
      logging.warning('No progress for step %d: %s', step, error)
      return
    seconds = time.monotonic() - self._start_time
    done = max(1, step - self._start_step)
    rate = self._batch_size * done / max(seconds, 1e-9)
    shown = '' if loss is None else f'loss {loss:.4g}, '
    if self._bar is not None:
      self._bar.set_postfix_str(f'{shown}{rate:.4g} examples/s', refresh=False)
      self._bar.update(step - self._bar.n)
    else:
      left = seconds / done * (self._total_steps - step)
      logging.info(
          'Step %d of %d: %s%.4g examples/s, %s left.',
          step,
          self._total_steps,
          shown,
          rate,
          format_seconds(left),
      )


def _bar_size() -> dict[str, Any]:
  """Follows the terminal's size; some containers report one of 0 x 0."""
  if os.get_terminal_size(sys.stderr.fileno()).lines:
    return {'dynamic_ncols': True}
  return {'ncols': 80, 'nrows': 24}


def loss_of(summary: Mapping[str, Any]) -> float | None:
  """Returns the loss in a summary of CLU values or numbers, None if absent."""
  value = summary.get('loss')
  value = getattr(value, 'value', value)
  return None if value is None else float(np.asarray(value))


def format_seconds(seconds: float) -> str:
  """Returns hours, minutes and seconds, such as `1:02:03`."""
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02d}:{seconds:02d}'
