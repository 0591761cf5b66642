"""Where the wall clock of a run went, from the start of its process to its end.

The ledger is a clock that is always in one category (`CATEGORIES`), the one in
which the thread of the training loop spends its time; so the categories sum to
the total, and what nobody claimed stands in `other`. It costs two readings of
the clock a change and never waits for a device.

Steps run while the host goes on, so the host's time alone would be misleading:
`step_watch` finds out in the background when a step was done, and moves the
seconds in which the device worked while the host waited for input to `step`,
and those in which it had nothing to do to `idle`.

Host 0 writes the sums as scalars `ledger/…` and, with one entry a start of the
run, into `ledger.json`. A run that was killed and goes on adds to both.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import json
import os
import threading
import time
from typing import Any

from absl import logging
from etils import epath
import jax

# Category -> what the host does, or waits for, meanwhile.
CATEGORIES: Mapping[str, str] = {
    'startup': 'from the start of the process: imports, gin, devices',
    'data': 'opening data sets; inference data are read here',
    'init': 'tracing the model, and initializing or restoring its state',
    'compile': 'tracing and compiling steps ahead, counting their FLOPs',
    'input': 'waiting for a batch while the device has nothing to do',
    'step': 'training steps in the hands of the device',
    'idle': 'device without work between two steps, other than for input',
    'checkpoint': 'what saving keeps the loop from: copies, writing curves',
    'checkpoint_wait': 'waiting for a save that goes on in the background',
    'evaluation': 'evaluations, the compilation of decoding included',
    'profile': 'starting, stopping and writing a profile',
    'closing': 'writing what is left and closing files',
    'other': 'everything else: not explained',
}

# Every scalar of the ledger and of `throughput`, in `train/`.
SCALARS: Mapping[str, str] = {
    **{
        f'ledger/{name}_seconds': meaning
        for name, meaning in CATEGORIES.items()
    },
    'ledger/total_seconds': 'wall clock of all starts of the run',
    'ledger/explained': 'share of it in other categories than `other`',
    'timing/step_seconds': 'a step of the interval, waits for input included',
    'timing/examples_per_second': 'examples of all devices together',
    'timing/model_flops_per_step': (
        'matrix work of a step on all devices, nothing recomputed counted'
    ),
    'timing/tflops_per_second_per_device': 'the same by time and device, 1e12',
    'timing/mfu': "share of the devices' peak; only where that is published",
}

LEDGER_FILE = 'ledger.json'

# Seconds between two points of the ledger, at least.
REPORT_PERIOD = 10.0


def process_start() -> float:
  """Returns the Unix time at which this process started.

  Linux tells it (proc(5): `starttime`, in clock ticks since boot). Elsewhere
  it is the time of this call.
  """
  now = time.time()
  try:
    with open('/proc/self/stat', encoding='ascii', errors='replace') as stat:
      # The second field is the program's name, in brackets, blanks and all.
      ticks = int(stat.read().rsplit(')', 1)[1].split()[19])
    uptime = time.clock_gettime(time.CLOCK_BOOTTIME)
  except (OSError, AttributeError):
    return now
  return now - max(0.0, uptime - ticks / os.sysconf('SC_CLK_TCK'))


class Ledger:
  """Counts the seconds of one start of a run, by category."""

  def __init__(
      self,
      start_time: float | None = None,
      clock: Callable[[], float] = time.monotonic,
  ):
    """Starts in the category `startup`.

    Args:
      start_time: Unix time at which it began, None for now.
      clock: tells seconds, from any zero.
    """
    now = time.time()
    self._began = now if start_time is None else min(start_time, now)
    self._clock = clock
    self._lock = threading.Lock()
    self._seconds = dict.fromkeys(CATEGORIES, 0.0)
    self._seconds['startup'] = now - self._began
    self._category, self._since = 'startup', clock()
    self._path: epath.Path | None = None
    self._earlier: list[dict[str, Any]] = []
    self._first_step = self._last_step = 0
    self._last_report = -REPORT_PERIOD

  # ---- Counting ------------------------------------------------------------

  def enter(self, category: str) -> str:
    """Counts for `category` from now on; returns the one before.

    Args:
      category: one of `CATEGORIES`.
    """
    with self._lock:
      now = self._clock()
      self._seconds[self._category] += now - self._since
      before, self._category, self._since = self._category, category, now
    return before

  @contextlib.contextmanager
  def spend(self, category: str) -> Iterator[None]:
    """Counts for `category` in a block, and for the one before after it."""
    before = self.enter(category)
    try:
      yield
    finally:
      self.enter(before)

  def move(self, source: str, target: str, seconds: float) -> None:
    """Corrects what was counted: `seconds` belong to another category."""
    with self._lock:
      self._seconds[source] -= seconds
      self._seconds[target] += seconds

  def current(self) -> tuple[str, float]:
    """Returns the category, and the seconds since it was entered."""
    with self._lock:
      return self._category, self._clock() - self._since

  def seconds(self) -> dict[str, float]:
    """Returns the seconds of this start by category, up to now."""
    with self._lock:
      seconds = dict(self._seconds)
      seconds[self._category] += self._clock() - self._since
    return seconds

  def totals(self) -> dict[str, float]:
    """Returns the seconds of all starts of the run by category, up to now."""
    seconds = self.seconds()
    for entry in self._earlier:
      for name, value in entry['seconds'].items():
        seconds[name] = seconds.get(name, 0.0) + value
    return seconds

  # ---- Writing -------------------------------------------------------------

  def open(self, model_dir: str, first_step: int) -> None:
    """Goes on with the ledger of a run's directory, on host 0.

    Args:
      model_dir: the run's directory.
      first_step: the step at which this start begins.

    Raises:
      ValueError: if its `ledger.json` is not one of ours.
    """
    self._first_step = self._last_step = first_step
    if jax.process_index() != 0:
      return
    self._path = epath.Path(model_dir) / LEDGER_FILE
    if self._path.exists():
      self._earlier = _read_starts(self._path)
    self._write(None)

  def report(self, step: int, curves: Any, force: bool = False) -> None:
    """Writes scalars and file in the background, unless it just did.

    Args:
      step: the training step.
      curves: the metrics manager of training.
      force: whether to write whatever was written before.
    """
    if not force and self._clock() - self._last_report < REPORT_PERIOD:
      return
    self._last_report = self._clock()

    def write() -> dict[str, float]:
      self._last_step = step
      self._write(None)
      return _scalars(self.totals())

    curves.write_scalars(step, write)

  def __enter__(self) -> 'Ledger':
    return self

  def __exit__(self, kind: type[BaseException] | None, *_) -> None:
    """Writes the file for the last time, and the summary into the log."""
    self._write('finished' if kind is None else kind.__name__)
    if jax.process_index() == 0:
      logging.info('%s', summary(self.totals()))

  def _write(self, ended_by: str | None) -> None:
    if self._path is None:
      return
    entry = {
        'began': self._began,
        'first_step': self._first_step,
        'last_step': self._last_step,
        'ended_by': ended_by,
        'seconds': self.seconds(),
    }
    totals = self.totals()
    content = {
        'total_seconds': sum(totals.values()),
        'explained': explained(totals),
        'seconds': totals,
        'starts': [*self._earlier, entry],
    }
    # A killed run leaves the file as it was, never half of a new one.
    draft = self._path.with_name(f'{LEDGER_FILE}.tmp')
    draft.write_text(json.dumps(content, indent=2) + '\n')
    draft.replace(self._path)


def explained(seconds: Mapping[str, float]) -> float:
  """Returns the share of the seconds that is not in `other`."""
  total = sum(seconds.values())
  return 1.0 - seconds['other'] / total if total else 1.0


def summary(seconds: Mapping[str, float]) -> str:
  """Returns a table of categories, seconds and shares, the largest first."""
  total = sum(seconds.values())
  rows = [f'Wall clock: {total:.1f} s, {explained(seconds):.2%} explained.']
  for name, value in sorted(seconds.items(), key=lambda item: -item[1]):
    share = value / total if total else 0.0
    rows.append(
        f'  {name:16}{value:12.1f} s {share:7.2%}  {CATEGORIES.get(name, "")}'
    )
  return '\n'.join(rows)


def _scalars(seconds: Mapping[str, float]) -> dict[str, float]:
  return {
      **{f'ledger/{name}_seconds': value for name, value in seconds.items()},
      'ledger/total_seconds': sum(seconds.values()),
      'ledger/explained': explained(seconds),
  }


def _read_starts(path: epath.Path) -> list[dict[str, Any]]:
  try:
    starts = json.loads(path.read_text())['starts']
    for entry in starts:
      entry['seconds'] = {k: float(v) for k, v in entry['seconds'].items()}
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(
        f'{path} is not the ledger of a run ({error!r}). Move it away; the run'
        ' then starts a new one.'
    ) from error
  return starts
