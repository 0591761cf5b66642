"""Names of checkpoint directories: `checkpoint_<step>` under the run's."""

import os
import re

from etils import epath

from t5x import checkpoint_utils

_PREFIX = 'checkpoint_'
_STEP_DIR = re.compile(rf'{_PREFIX}(\d+)')


def absolute(path: str | os.PathLike[str]) -> str:
  """Returns the absolute form of a local path; `gs://…` stays as it is.

  Orbax takes no path that depends on the working directory.
  """
  path = os.fspath(path)
  return path if '://' in path else os.path.abspath(path)


def get_checkpoint_prefix() -> str:
  """Returns how the name of a checkpoint directory starts."""
  return _PREFIX


def get_checkpoint_dir(checkpoints_dir: str, step: int) -> str:
  """Returns the directory of the checkpoint of a step."""
  return os.path.join(checkpoints_dir, f'{_PREFIX}{step}')


def get_step_from_checkpoint_dir(checkpoint_dir: str) -> tuple[str, int]:
  """Splits `…/checkpoint_<step>` into its parent and the step.

  Raises:
    ValueError: if the last part of the path has another form.
  """
  # Not `normpath`, which takes `gs://` for a local path.
  parent, name = os.path.split(os.fspath(checkpoint_dir).rstrip('/'))
  match = _STEP_DIR.fullmatch(name)
  if not match:
    raise ValueError(
        f'{checkpoint_dir!r} is no checkpoint directory: its name should be '
        f'{_PREFIX}<step>.'
    )
  return parent, int(match[1])


def all_steps(checkpoints_dir: str) -> list[int]:
  """Returns the steps of all complete checkpoints, ascending.

  An unfinished save has another name until it is complete, so it never counts;
  on remote storage, which cannot rename, it lacks Orbax's mark or the legacy
  layout's file.
  """
  path = epath.Path(checkpoints_dir)
  if not path.is_dir():
    return []
  marks = _marks_of_completeness(os.fspath(path))
  steps = []
  for child in path.iterdir():
    match = _STEP_DIR.fullmatch(child.name)
    if match and (not marks or any((child / m).exists() for m in marks)):
      steps.append(int(match[1]))
  return sorted(steps)


def _marks_of_completeness(path: str) -> tuple[str, ...]:
  """Returns the files one of which a complete checkpoint has; () needs none."""
  if '://' not in path:
    return ()  # renamed at the end
  orbax_mark = 'commit_success.txt'
  if not path.startswith('gs://'):
    orbax_mark = '_CHECKPOINT_METADATA'
  return orbax_mark, 'checkpoint'


def latest_step(checkpoints_dir: str) -> int | None:
  """Returns the step of the last complete checkpoint, None without any."""
  steps = all_steps(checkpoints_dir)
  return steps[-1] if steps else None


def find_checkpoint(path: str, step: int | None = None) -> str:
  """Returns the checkpoint that a path (and maybe a step) means.

  Args:
    path: a run's directory, a checkpoint directory, or a legacy file.
    step: the step to look for in a run's directory; None takes the last.

  Returns:
    The checkpoint's directory, or the file `checkpoint` of a legacy one.

  Raises:
    FileNotFoundError: if there is none.
  """
  path = absolute(path)
  if step is not None:
    path = get_checkpoint_dir(path, step)
  elif (last := latest_step(path)) is not None:
    path = get_checkpoint_dir(path, last)
  kind = checkpoint_utils.detect_checkpoint_type(path)
  file = os.path.join(path, 'checkpoint')
  if kind is checkpoint_utils.CheckpointTypes.T5X and epath.Path(file).exists():
    return file
  return path
