"""Which checkpoints outlive pruning: pinned ones, and the best by a metric."""

from collections.abc import Iterable, Sequence
import dataclasses
import os
from typing import Any

from etils import epath
from tensorboard.backend.event_processing import event_accumulator
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
    metric_name: `run/tag`, such as `inference_eval/my_task/eval/bleu`; the run
      is the longest leading part that is a directory.
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
    ranked = sorted(metrics, key=lambda step: (sign * metrics[step], step))
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
    metric_name: `run/tag`.
    steps: the steps asked for.
  """
  parts = metric_name.split('/')
  for split in range(len(parts) - 1, -1, -1):
    run = os.path.join(directory, *parts[:split])
    if epath.Path(run).is_dir():
      break
  tag = '/'.join(parts[split:])
  # 0 keeps every event; the default is a sample.
  events = event_accumulator.EventAccumulator(
      run, size_guidance={'scalars': 0, 'tensors': 0}
  )
  events.Reload()
  found = {}
  if tag in events.Tags()['scalars']:
    found = {event.step: event.value for event in events.Scalars(tag)}
  elif tag in events.Tags()['tensors']:
    found = {
        event.step: tensor_util.make_ndarray(event.tensor_proto).item()
        for event in events.Tensors(tag)
    }
  return {step: float(found[step]) for step in steps if step in found}
