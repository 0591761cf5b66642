"""Metrics on their way to disk: timed, finished, and written in the background.

All work of a `MetricsManager` runs in one thread of its own, in order, so that
the training loop never waits for a device or a disk.
"""

from collections.abc import Callable, Mapping
import concurrent.futures
import functools
import os
import time
from typing import Any

from clu import asynclib
import clu.values
import jax

from t5x import metrics as metrics_lib

METRICS_FILE_SUFFIX = '-metrics.jsonl'


def _block_until_done(tree: Any) -> None:
  """Waits until the arrays are computed; donated ones are done with."""
  for leaf in jax.tree.leaves(tree):
    if not isinstance(leaf, jax.Array):
      continue
    try:
      leaf.block_until_ready()
    except RuntimeError as error:
      # A later step may take over the buffer while we wait for it. The runtime
      # knows before the array does, so `is_deleted` alone comes too late.
      if not leaf.is_deleted() and 'donated' not in str(error):
        raise


class _DurationTimer:
  """Measures from the end of one device computation to that of another."""

  def __init__(self, pool: asynclib.Pool, clock: Callable[[], float]):
    self._pool, self._clock = pool, clock
    self._start_future: concurrent.futures.Future | None = None

  def _now_after(self, block_on: Any) -> float:
    _block_until_done(block_on)
    return self._clock()

  def start(self, block_on: Any) -> None:
    """Starts when `block_on` is computed."""
    self._start_future = self._pool(self._now_after)(block_on)

  def stop(self, block_on: Any) -> concurrent.futures.Future:
    """Returns the seconds until `block_on` is computed, as a future."""
    if self._start_future is None:
      raise ValueError('The timer was not started: call start_duration_timer.')
    start, self._start_future = self._start_future, None

    def duration() -> float:
      return self._now_after(block_on) - start.result()

    future: Any = self._pool(duration)()
    return future


class MetricsManager:
  """Writes the metrics of one kind (training, or one evaluation task).

  Host 0 writes TensorBoard events into `<summary_dir>/<name>/` and JSON lines
  to `<summary_dir>/<name>-metrics.jsonl`, as SeqIO names its own; all hosts
  compute the values. A remote directory (`gs://…`) gets no JSON lines, as such
  stores cannot append.

  Attributes:
    summary_dir: the directory of this kind, None without output.
    interval_scalars: `(seconds, num_steps) -> scalars`, written with the
      metrics of an interval; None for none.
    position_scalars: `() -> scalars` of where the data stand, likewise.
  """

  def __init__(
      self,
      name: str,
      summary_dir: str | None = None,
      clock: Callable[[], float] = time.time,
  ):
    """Opens the writers.

    Args:
      name: sub-directory of `summary_dir`, such as `training_eval/mytask`.
      summary_dir: the run's directory, None for no output.
      clock: tells the time in seconds.
    """
    self._name = name
    self.summary_dir = os.path.join(summary_dir, name) if summary_dir else None
    self.interval_scalars: (
        Callable[[float, int], Mapping[str, float]] | None
    ) = None
    self.position_scalars: Callable[[], Mapping[str, float]] | None = None
    self._writes = bool(summary_dir) and jax.process_index() == 0
    self._pool = asynclib.Pool(thread_name_prefix=name, max_workers=1)
    self._duration_timer = _DurationTimer(self._pool, clock)
    if self._writes:
      self.summary_writer  # noqa: B018 - makes the directory and the files.

  @functools.cached_property
  def summary_writer(self):
    """CLU's writer; it writes nothing where this host has no output."""
    # Imported here: CLU's writers import TensorFlow.
    from clu import metric_writers

    if not self._writes:
      return metric_writers.MultiWriter([])
    writers = [metric_writers.SummaryWriter(self.summary_dir)]
    if self.summary_dir and '://' not in self.summary_dir:
      from t5x import json_lines_writer

      path = self.summary_dir + METRICS_FILE_SUFFIX
      writers.append(json_lines_writer.JsonLinesWriter(path))
    return metric_writers.AsyncMultiWriter(writers)

  def add_writer(self, writer: Any) -> None:
    """Writes to one more CLU writer from now on, where this host writes."""
    if not self._writes:
      return
    from clu import metric_writers

    self.summary_writer = metric_writers.MultiWriter(
        [self.summary_writer, metric_writers.AsyncWriter(writer)]
    )

  def start_duration_timer(self, block_on: Any = ()) -> None:
    """Starts the interval when `block_on` is computed, without waiting."""
    self._duration_timer.start(block_on)

  def write_scalar(self, key: str, val: Any, step: int) -> None:
    """Writes one scalar in the background; see `write_scalars`."""
    self.write_scalars(step, {key: val})

  def write_scalars(
      self,
      step: int,
      scalars: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
  ) -> None:
    """Writes scalars in the background.

    Args:
      step: the training step.
      scalars: numbers, device arrays, or functions that return one and are
        called in the background, by name; or one function that returns all.
    """
    # Now: the state that holds the step may be donated to the next step.
    step = int(step)

    def write() -> None:
      values = {
          name: float(value() if callable(value) else value)
          for name, value in (
              scalars() if callable(scalars) else scalars
          ).items()
      }
      if self._writes:
        self.summary_writer.write_scalars(step, values)

    self._pool(write)()

  def write_metrics_summary(
      self, metrics: Mapping[str, Any], step: int, num_steps: int
  ) -> concurrent.futures.Future:
    """Ends the interval, computes its metrics and writes them.

    Args:
      metrics: CLU metrics by name, merged over the interval.
      step: the training step at the end of the interval.
      num_steps: steps of the interval.

    Returns:
      The future of the values (`clu.values.Value`) by name.
    """
    duration = self._duration_timer.stop(block_on=metrics)
    step = int(step)
    # Read now: the stream moves on while the device still works.
    position = dict(self.position_scalars()) if self.position_scalars else {}

    def summarize() -> dict[str, clu.values.Value]:
      host_metrics = jax.device_get(dict(metrics))
      finished = metrics_lib.set_step_metrics_num_steps(
          metrics_lib.set_time_metrics_duration(
              host_metrics, duration.result()
          ),
          num_steps,
      )
      values = {
          name: metric.compute_value() for name, metric in finished.items()
      }
      if self._writes:
        from clu import metric_writers

        metric_writers.write_values(self.summary_writer, step, values)
        scalars = dict(position)
        if self.interval_scalars is not None:
          scalars |= self.interval_scalars(duration.result(), num_steps)
        if scalars:
          self.summary_writer.write_scalars(step, scalars)
      return values

    future: Any = self._pool(summarize)()
    return future

  def flush(self) -> None:
    """Waits until everything is on disk; raises errors of the background."""
    try:
      self._pool.join()
    finally:
      if self._writes:
        self.summary_writer.flush()

  def close(self) -> None:
    """Flushes and closes the files."""
    try:
      self._pool.close()
    finally:
      if self._writes:
        self.summary_writer.close()
