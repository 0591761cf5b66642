"""Ends a run that has come to a standstill, instead of letting it hang.

A process that dies is told to the others by JAX, within its heartbeat timeout,
and that ends them. What JAX cannot see is a process that lives and does not get
on: an input pipeline that waits for ever, a deadlock, a collective that the
others never join. A thread looks at the ledger, which knows what the loop does
since when, and at the steps in the hands of the device; past a limit it writes
what every thread was doing and ends the process with a status of its own.
"""

from collections.abc import Callable, Sequence
import dataclasses
import faulthandler
import os
import sys
import threading
from typing import Any

from absl import logging
import jax

from t5x import exit_status
from t5x import ledger as ledger_lib
from t5x import step_watch


@dataclasses.dataclass(frozen=True)
class StuckLimits:
  """Seconds after which a run counts as stuck; None waits for ever.

  Attributes:
    read: for one read of the input pipeline while a step waits for it; past it
      the files are named, and the run goes on waiting.
    step: for a batch and its step.
    save: for what a save keeps the loop from, and for closing files.
    compile: for one compilation.
    evaluation: for a whole evaluation.
    error: for leaving after an error, if there are other processes: they may be
      waited for in vain.
  """

  read: float | None = 60.0
  step: float | None = 1800.0
  save: float | None = 3600.0
  compile: float | None = 7200.0
  evaluation: float | None = 21600.0
  error: float | None = 60.0

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if value is not None and value <= 0:
        raise ValueError(
            f'StuckLimits.{field.name} must be positive, got {value}; None '
            'waits for ever.'
        )


DEFAULT_LIMITS = StuckLimits()

# Category of the ledger -> the limit that holds for it. What comes before the
# training has limits of its own.
_LIMIT_OF = {
    'input': 'step',
    'step': 'step',
    'other': 'step',
    'checkpoint': 'save',
    'checkpoint_wait': 'save',
    'profile': 'save',
    'closing': 'save',
    'compile': 'compile',
    'evaluation': 'evaluation',
}


class Watchdog:
  """Watches one run from the start of its training to its end."""

  def __init__(
      self,
      limits: StuckLimits,
      ledger: ledger_lib.Ledger,
      watch: step_watch.StepWatch,
      period: float = 1.0,
      leave: Callable[[int], Any] = os._exit,
      reads: Callable[[], Sequence[tuple[str, float]]] = list,
  ):
    """Starts the thread.

    Args:
      limits: what counts as stuck.
      ledger: knows what the loop does.
      watch: knows what the device does.
      period: seconds between two looks.
      leave: ends the process.
      reads: tells what the input pipeline is reading, and since how many
        seconds.
    """
    self._limits, self._ledger, self._watch = limits, ledger, watch
    self._period, self._leave, self._reads = period, leave, reads
    self._named: set[str] = set()
    self._error: BaseException | None = None
    self._closed = threading.Event()
    self._thread = threading.Thread(
        target=self._run, name='watchdog', daemon=True
    )
    self._thread.start()

  def closing(self, kind: Any, error: BaseException | None, *_) -> None:
    """Notes, as an `__exit__`, that the run ends, and whether by an error.

    The error is told at once: the rest of the way out may take a while.
    """
    del kind
    if error is not None and jax.process_count() > 1:
      logging.error('Process %d fails: %s', jax.process_index(), error)
      self._error = error

  def close(self) -> None:
    """Ends the thread."""
    self._closed.set()
    self._thread.join()

  def stuck(self) -> str | None:
    """Says what takes longer than it may, None if nothing does."""
    category, seconds = self._ledger.current()
    name = _LIMIT_OF.get(category)
    if category == 'closing' and self._error is not None:
      name = 'error'
    on_device = self._watch.seconds_on_device()
    if category in ('input', 'step') and on_device > seconds:
      category, seconds = 'step', on_device
    limit = getattr(self._limits, name) if name else None
    if limit is None or seconds <= limit:
      return None
    text = (
        f'Process {jax.process_index()} is stuck: {seconds:.0f} s in '
        f'`{category}` ({ledger_lib.CATEGORIES[category]}), more than '
        f'train.stuck_limits.{name} = {limit:g}.'
    )
    if self._error is not None:
      return f'{text} It was on its way out, after: {self._error}'
    if category == 'input':
      text += ''.join(f' It waits for {read}.' for read in self.slow_reads())
    return (
        f'{text} Below is what every thread does. Nothing saved is lost: the '
        'same command goes on from the last checkpoint. Raise the limit if '
        'this is how long it takes.'
    )

  def slow_reads(self) -> list[str]:
    """Returns what the input pipeline waits for longer than it may."""
    limit = self._limits.read
    if limit is None or self._ledger.current()[0] != 'input':
      return []
    return [read for read, seconds in self._reads() if seconds > limit]

  def warn(self) -> None:
    """Names each slow read once."""
    slow = set(self.slow_reads())
    for read in sorted(slow - self._named):
      sys.stderr.write(
          f'warning: Process {jax.process_index()} has waited more than '
          f'train.stuck_limits.read = {self._limits.read:g} s for {read}.\n'
      )
      sys.stderr.flush()
    self._named = slow

  def _run(self) -> None:
    while not self._closed.wait(self._period):
      self.warn()
      text = self.stuck()
      if text is not None:
        # Not through the log, whose locks a stuck thread may hold.
        sys.stderr.write(f'error: {text}\n')
        sys.stderr.flush()
        faulthandler.dump_traceback(all_threads=True)
        self._leave(exit_status.STUCK)
        return
