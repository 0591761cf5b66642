"""Which checkpoints of a run stay: last k, best by a metric, every n, pinned.

The rules are a union: a checkpoint stays if any of them wants it. Both layouts
prune by the same policy, made of Orbax's own where those exist.
"""

from collections.abc import Sequence
import dataclasses
import datetime
from typing import Any

import orbax.checkpoint as ocp

from t5x import best_checkpoints

_policies = ocp.checkpoint_managers


@dataclasses.dataclass(frozen=True)
class _Checkpoint:
  """What a policy may ask of a checkpoint."""

  step: int
  metrics: Any = None
  time: datetime.datetime = datetime.datetime.min


def get_policy(
    directory: str,
    *,
    keep: int | None,
    force_keep_period: int | None = None,
    metric_name_to_monitor: str | None = None,
    metric_mode: str = 'max',
    keep_checkpoints_without_metrics: bool = True,
) -> Any:
  """Returns the Orbax preservation policy of a run.

  Args:
    directory: the run's directory.
    keep: how many to keep, None or 0 for all.
    force_keep_period: multiples of it always stay; None or 0 for none.
    metric_name_to_monitor: `run/tag` of a TensorBoard scalar; `keep` then
      counts the best by it, and the last one stays as well.
    metric_mode: 'max' or 'min' is better.
    keep_checkpoints_without_metrics: whether those without the scalar stay.

  Raises:
    ValueError: for another mode.
  """
  rules = [best_checkpoints.PinnedCheckpoints(directory)]
  if metric_name_to_monitor:
    rules.append(
        best_checkpoints.BestCheckpoints(
            directory,
            metric_name_to_monitor,
            metric_mode,
            keep or None,
            keep_checkpoints_without_metrics,
        )
    )
  else:
    rules.append(_policies.LatestN(keep or None))
  if force_keep_period:
    rules.append(_policies.EveryNSteps(force_keep_period))
  return _policies.AnyPreservationPolicy(rules)


def get_doomed(policy: Any, steps: Sequence[int]) -> list[int]:
  """Returns the steps that a policy gives up.

  Args:
    policy: of `get_policy`.
    steps: the steps that are saved, ascending.
  """
  if not steps:
    return []
  stays = policy.should_preserve(
      [_Checkpoint(step) for step in steps],
      context=ocp.checkpoint_managers.PreservationContext(),
  )
  return [step for step, stay in zip(steps, stays) if not stay]
