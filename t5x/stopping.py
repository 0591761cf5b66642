"""Actions that look at metrics and may end a run early."""

from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging
import jax

from t5x import multihost

MODES = ('TRAIN', 'TRAIN_EVAL', 'INFER_EVAL')
ActionMap = Mapping[str, Sequence[Any]]

# The task under which TRAIN actions find the metrics.
TRAIN_TASK = 'train'


def check_actions(actions: ActionMap | None, concurrent_metrics: bool) -> None:
  """Checks the modes, and that metrics come in time for them.

  Args:
    actions: mode -> actions, or None.
    concurrent_metrics: whether metrics are computed beside the training.

  Raises:
    ValueError: for an unknown mode, or one that needs metrics at once.
  """
  for mode in actions or ():
    if mode not in MODES:
      raise ValueError(
          f'Unknown action mode {mode!r}. Known: {", ".join(MODES)}.'
      )
    if concurrent_metrics and mode in ('TRAIN', 'INFER_EVAL'):
      raise ValueError(
          f'Actions of mode {mode} need their metrics at once: set '
          'train.concurrent_metrics = False.'
      )


def run_actions(
    mode: str,
    actions: ActionMap | None,
    train_state: Any,
    metrics_by_task: Mapping[str, Any],
) -> bool:
  """Runs the actions of a mode on process 0 and tells everyone the verdict.

  Args:
    mode: one of `MODES`.
    actions: mode -> actions, or None.
    train_state: handed to each action.
    metrics_by_task: task -> metric name -> value.

  Returns:
    Whether to stop.
  """
  if not actions or not actions.get(mode):
    return False
  stop = False
  if jax.process_index() == 0:
    for action in actions[mode]:
      # Every action runs: some keep count of what they have seen.
      if action.run(train_state, metrics_by_task=metrics_by_task):
        logging.info('%s asks to stop training.', type(action).__name__)
        stop = True
  return multihost.broadcast_verdict(stop)
