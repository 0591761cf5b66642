"""Which stored array becomes which leaf of a train state, and errors if none."""

from collections.abc import Callable, Mapping, Sequence
import difflib
from typing import Any

from flax import traverse_util

from t5x import stored_state

# A state dict, or a function from paths to fresh values.
Fallback = (
    Mapping[str, Any]
    | Callable[[Sequence[stored_state.Path]], Mapping[stored_state.Path, Any]]
)

_SHOWN = 6


def nest(leaves: Mapping[stored_state.Path, Any]) -> dict[str, Any]:
  """Returns nested dicts for leaves by path."""
  return traverse_util.unflatten_dict(dict(leaves))


def match(
    stored: Mapping[str, Any],
    target: Mapping[str, Any],
    fallback: Fallback | None,
    where: str,
) -> dict[stored_state.Path, Any]:
  """Finds a stored array, or a fallback, for every leaf of the target.

  Stored arrays that the target does not know are dropped.

  Args:
    stored: the checkpoint's tree after the transformation functions.
    target: the state dict of the train state.
    fallback: a state dict of fresh values, or a function from the missing
      paths to (some of) their fresh values, or None.
    where: the checkpoint's path, for messages.

  Returns:
    The leaves by path of the target.

  Raises:
    ValueError: if leaves are missing or have other shapes; it names the first.
  """
  have = stored_state.flatten(stored)
  want = stored_state.flatten(target)
  missing = [path for path in want if path not in have]
  fresh = {}
  if missing and fallback is not None:
    fresh = (
        fallback(missing)
        if callable(fallback)
        else stored_state.flatten(fallback)
    )
    missing = [path for path in missing if path not in fresh]
  if missing:
    extra = [path for path in have if path not in want]
    raise ValueError(_missing_message(where, missing, extra))
  leaves = {p: have[p] if p in have else fresh[p] for p in want}
  wrong = [
      f'{_name(path)}: checkpoint {tuple(leaf.shape)}, '
      f'model {tuple(want[path].shape)}'
      for path, leaf in leaves.items()
      if tuple(leaf.shape) != tuple(want[path].shape)
  ]
  if wrong:
    raise ValueError(
        f'Checkpoint {where} holds {len(wrong)} arrays of another shape than '
        f'the model:\n  {_list(wrong)}\nUse the configuration the checkpoint '
        'was made with, or map these names away with '
        'RestoreCheckpointConfig.assignment_map and fallback_to_scratch.'
    )
  return leaves


def check_same_names(
    stored: Mapping[str, Any], target: Mapping[str, Any], where: str
) -> None:
  """Refuses to resume from a checkpoint of another model or optimizer.

  Args:
    stored: the checkpoint's tree.
    target: the state dict of the train state.
    where: the checkpoint's path, for the message.

  Raises:
    ValueError: naming the first differing names or shapes.
  """
  have = {p: leaf.shape for p, leaf in stored_state.flatten(stored).items()}
  want = {p: leaf.shape for p, leaf in stored_state.flatten(target).items()}
  missing = [_name(path) for path in want if path not in have]
  extra = [_name(path) for path in have if path not in want]
  shapes = [
      f'{_name(p)}: checkpoint {tuple(have[p])}, model {tuple(want[p])}'
      for p in want
      if p in have and tuple(have[p]) != tuple(want[p])
  ]
  if not (missing or extra or shapes):
    return
  parts = [f'MODEL_DIR holds another model: {where} does not fit this run.']
  if missing:
    parts.append(f'Only in this run ({len(missing)}):\n  {_list(missing)}')
  if extra:
    parts.append(f'Only in the checkpoint ({len(extra)}):\n  {_list(extra)}')
  if shapes:
    parts.append(f'Other shapes ({len(shapes)}):\n  {_list(shapes)}')
  parts.append(
      'Choose another MODEL_DIR, or go on with the configuration in its '
      'config.gin.'
  )
  raise ValueError('\n'.join(parts))


def _missing_message(
    where: str,
    missing: Sequence[stored_state.Path],
    extra: Sequence[stored_state.Path],
) -> str:
  names, known = list(map(_name, missing)), list(map(_name, extra))
  lines = []
  for name in names[:_SHOWN]:
    near = difflib.get_close_matches(name, known[:2000], n=1, cutoff=0.6)
    lines.append(name + (f' (checkpoint has {near[0]})' if near else ''))
  if len(names) > _SHOWN:
    lines.append('…')
  text = (
      f'Checkpoint {where} lacks {len(names)} of the names the model needs:\n  '
      + '\n  '.join(lines)
  )
  if known:
    text += (
        f'\nIt holds {len(known)} names the model does not know:\n  '
        f'{_list(known)}'
    )
  return text + (
      '\nMap names with RestoreCheckpointConfig.assignment_map, and start the '
      'rest fresh with fallback_to_scratch=True.'
  )


def _name(path: stored_state.Path) -> str:
  return '/'.join(path)


def _list(names: Sequence[str]) -> str:
  shown = list(names[:_SHOWN]) + (['…'] if len(names) > _SHOWN else [])
  return '\n  '.join(shown)
