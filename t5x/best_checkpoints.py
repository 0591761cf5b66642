"""Which checkpoints outlive pruning: pinned ones, and the best by a metric."""

from collections.abc import Iterable, Sequence
import dataclasses
import functools
import math
import os
from typing import Any

from absl import logging
from etils import epath
from tensorboard.backend.event_processing import directory_watcher
from tensorboard.backend.event_processing import event_file_loader
from tensorboard.backend.event_processing import io_wrapper
from tensorboard.util import tensor_util

from t5x import checkpoint_utils


@dataclasses.dataclass(frozen=True)
class PinnedCheckpoints:
  """Orbax preservation policy: keeps directories that hold a pin."""

  directory: str

  def should_preserve(
      self, checkpoints: Sequence[Any], *, context: Any
  ) -> list[bool]:
    """Tells for each checkpoint whether it stays."""
    del context
    return [
        checkpoint_utils.is_pinned_checkpoint(
            os.path.join(self.directory, f'checkpoint_{info.step}')
        )
        for info in checkpoints
    ]


@dataclasses.dataclass(frozen=True)
class BestCheckpoints:
  """Orbax preservation policy: the best by a TensorBoard scalar, and the last.

  Attributes:
    directory: the run's directory, which holds the TensorBoard runs.
    metric_name: `run/tag`, such as `train/loss` or `inference_eval/task/bleu`;
      the run is the longest leading part that is a directory.
    mode: 'max' or 'min'.
    keep: how many of the best to keep, None for all.
    keep_without_metrics: whether a checkpoint without the scalar stays.
  """

  directory: str
  metric_name: str
  mode: str
  keep: int | None
  keep_without_metrics: bool

  def __post_init__(self):
    if self.mode not in ('max', 'min'):
      raise ValueError(
          f"metric_mode must be 'max' or 'min', got {self.mode!r}."
      )

  def should_preserve(
      self, checkpoints: Sequence[Any], *, context: Any
  ) -> list[bool]:
    """Tells for each checkpoint whether it stays."""
    del context
    steps = [info.step for info in checkpoints]
    metrics = read_metrics(self.directory, self.metric_name, steps)
    sign = 1 if self.mode == 'max' else -1

    def rank(step: int) -> tuple[float, int]:
      value = sign * metrics[step]
      # A loss that is no number is worse than any.
      return (-math.inf if math.isnan(value) else value, step)

    ranked = sorted(metrics, key=rank)
    best = set(ranked if self.keep is None else ranked[-self.keep :])
    return [
        step in best
        or step == steps[-1]
        or (self.keep_without_metrics and step not in metrics)
        for step in steps
    ]


def read_metrics(
    directory: str, metric_name: str, steps: Iterable[int]
) -> dict[int, float]:
  """Returns the scalar at each of the steps that has one.

  Args:
    directory: the directory under which the TensorBoard runs lie.
    metric_name: `run/tag`; SeqIO puts `eval/` before its tags, which may be
      left out.
    steps: the steps asked for.
  """
  parts = metric_name.split('/')
  for split in range(len(parts) - 1, -1, -1):
    run = os.path.join(directory, *parts[:split])
    if epath.Path(run).is_dir():
      break
  found = _get_reader(run, '/'.join(parts[split:])).read()
  return {step: found[step] for step in steps if step in found}


@functools.lru_cache(maxsize=16)
def _get_reader(run: str, tag: str) -> '_ScalarReader':
  """Returns the reader that remembers what it has read before."""
  return _ScalarReader(run, tag)


class _ScalarReader:
  """Follows one scalar of a TensorBoard run, reading each event once."""

  def __init__(self, run: str, tag: str):
    self._run, self._tag = run, tag
    self._events = directory_watcher.DirectoryWatcher(
        run,
        event_file_loader.EventFileLoader,
        io_wrapper.IsTensorFlowEventsFile,
    )
    self._values: dict[int, float] = {}
    self._other_tags: set[str] = set()

  def read(self) -> dict[int, float]:
    """Returns the values so far by step; the last writing of a step counts."""
    wanted = (self._tag, f'eval/{self._tag}')
    for event in self._events.Load():
      for value in event.summary.value:
        if value.tag in wanted:
          number = tensor_util.make_ndarray(value.tensor).item()
          self._values[event.step] = float(number)
        else:
          self._other_tags.add(value.tag)
    if self._other_tags and not self._values:
      logging.warning(
          'No scalar %r in %s to choose the best checkpoints by; it has %s.',
          self._tag,
          self._run,
          ', '.join(sorted(self._other_tags)),
      )
    return self._values
