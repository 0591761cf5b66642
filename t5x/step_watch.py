"""Tells the ledger what the device did while the host went on.

A step is dispatched and the host asks for the next batch at once; whether that
wait costs anything depends on when the step is done. A thread of its own waits
for each step's metrics, in order, and knows. Per step the loop reads the clock
and hands over one record; it never waits.

    host    |next batch|call|      next batch       |call|
    device             [ step 1      ]              [ step 2
    ledger    input      step          input          step

The seconds between the end of step 1 and the moment the host asked for the
next batch, if it was late in asking, are `idle`.
"""

from collections.abc import Callable, Iterator
import dataclasses
import queue
import threading
import time
from typing import Any

from absl import logging
import jax

from t5x import ledger as ledger_lib


@dataclasses.dataclass(frozen=True)
class _Step:
  """A dispatched step.

  Attributes:
    since: when the host was done with the step before, or began to train.
    asked: when the host asked for the batch.
    given: when it got it.
    output: arrays that are computed when the step is; nobody donates them.
  """

  since: float
  asked: float
  given: float
  output: Any


class StepWatch:
  """Splits the time of the loop into `input`, `step` and `idle`."""

  def __init__(
      self,
      ledger: ledger_lib.Ledger,
      clock: Callable[[], float] = time.monotonic,
  ):
    """Starts the thread.

    Args:
      ledger: counts `step` while the loop trains and `input` while it asks for
        a batch, and is corrected.
      clock: tells seconds.
    """
    self._ledger, self._clock = ledger, clock
    self._since = self._asked = self._given = clock()
    # When the thread began to wait for a step; None while it waits for none.
    self._waits_since: float | None = None
    self._steps: queue.SimpleQueue[_Step | None] = queue.SimpleQueue()
    self._thread = threading.Thread(
        target=self._watch, name='step-watch', daemon=True
    )
    self._thread.start()

  def begin(self) -> None:
    """Notes that the loop begins to train."""
    self._since = self._asked = self._given = self._clock()

  def batches(self, iterator: Iterator[Any]) -> '_WatchedIterator':
    """Returns the iterator, with its waits counted as `input`."""
    return _WatchedIterator(iterator, self)

  def next_batch(self, iterator: Iterator[Any]) -> Any:
    """Takes a batch."""
    self._asked = self._clock()
    before = self._ledger.enter('input')
    try:
      return next(iterator)
    finally:
      self._ledger.enter(before)
      self._given = self._clock()

  def step_started(self, output: Any) -> None:
    """Notes that a step was dispatched.

    Args:
      output: arrays that are computed when the step is; nobody donates them.
    """
    self._steps.put(_Step(self._since, self._asked, self._given, output))
    self._since = self._clock()

  def seconds_on_device(self) -> float:
    """Returns how long the oldest step that is not done has been waited for."""
    since = self._waits_since
    return 0.0 if since is None else self._clock() - since

  def close(self) -> None:
    """Waits until the last step is accounted for."""
    self._steps.put(None)
    self._thread.join()

  def _watch(self) -> None:
    # When the step before was done; before the first, the device is free.
    done = 0.0
    while (step := self._steps.get()) is not None:
      hidden = min(max(done, step.asked), step.given) - step.asked
      idle = max(0.0, step.asked - max(step.since, done))
      self._ledger.move('input', 'step', hidden)
      self._ledger.move('step', 'idle', idle)
      self._waits_since = self._clock()
      try:
        jax.block_until_ready(jax.tree.leaves(step.output)[:1])
      except Exception as error:
        # The loop meets the same error when it reads the metrics.
        logging.warning('A step failed on the device: %s', error)
      self._waits_since, done = None, self._clock()
      # Its buffers must not outlive it while the queue is empty.
      del step


class _WatchedIterator:
  """The training stream, as the loop's trainer sees it."""

  def __init__(self, iterator: Iterator[Any], watch: StepWatch):
    self._iterator, self._watch = iterator, watch

  def __iter__(self) -> '_WatchedIterator':
    return self

  def __next__(self) -> Any:
    return self._watch.next_batch(self._iterator)

  def __getattr__(self, name: str) -> Any:
    return getattr(self._iterator, name)
