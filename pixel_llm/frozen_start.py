"""A run's start must hold what the run freezes.

What a checkpoint lacks starts at random. For what trains that is a choice, for
what is frozen it never is: a recipe that takes SAM's mask decoder as it is
would go through all its steps with a random one.
"""

from collections.abc import Mapping, Sequence
import re
from typing import Any

from pixel_llm import layer_layout
from t5x import state_utils


def require_frozen(
    stored: Mapping[str, Any],
    target: Mapping[str, Any],
    frozen: Sequence[str],
    *,
    is_resuming: bool = False,
) -> Mapping[str, Any]:
  """Refuses a checkpoint without parameters that are frozen.

  The last of the `state_transformation_fns` of `RestoreCheckpointConfig`, after
  all that renames or leaves out.

  Args:
    stored: state dict of the checkpoint, under the run's names.
    target: state dict of the run.
    frozen: as `ParamGroupOptimizer` takes it.
    is_resuming: True checks nothing: the checkpoint is the run's own.

  Returns:
    The checkpoint, unchanged.

  Raises:
    ValueError: naming the parts that are missing.
  """
  if is_resuming:
    return stored
  have = state_utils.flatten_state_dict(stored.get('target', {}))
  missing = [
      name
      for name, layers in layer_layout.layer_names(target['target']).items()
      if name not in have
      and any(re.search(pattern, one) for pattern in frozen for one in layers)
  ]
  if missing:
    parts = sorted({name.split('/')[0] for name in missing})
    raise ValueError(
        f'The checkpoint of INITIAL_CHECKPOINT_PATH lacks {len(missing)} frozen'
        f' parameters of {parts}, such as {missing[0]!r}: they would stay as'
        ' they are drawn. Add them with python -m'
        ' pixel_llm.pretrained.import_weights, drop them from'
        ' INITIAL_CHECKPOINT_SKIPS if it leaves them out, or let them train:'
        f' FROZEN is {tuple(frozen)}.'
    )
  return stored
