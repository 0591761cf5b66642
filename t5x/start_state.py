"""Where a training run starts: resumed, restored, or from scratch."""

import dataclasses
from typing import Any

from absl import logging
import jax

from t5x import checkpoint_config
from t5x import checkpoint_dirs
from t5x import checkpoint_reader
from t5x import multihost
from t5x import restore_report
from t5x import restoring
from t5x import state_matching
from t5x import step_guard


def check_checkpoint_cfg(cfg: checkpoint_config.CheckpointConfig) -> None:
  """Refuses what a training run cannot start from.

  Raises:
    ValueError: for more than one starting point.
  """
  if cfg.restore is None:
    return
  if cfg.restore.mode == 'all':
    raise ValueError(
        "RestoreCheckpointConfig.mode 'all' is for evaluation; training starts "
        "from one checkpoint: use 'specific' or 'latest'."
    )
  path = cfg.restore.path
  if path and not isinstance(path, str):
    raise ValueError(
        'Training starts from one checkpoint: RestoreCheckpointConfig.path '
        f'must be a string, None or [], got {path!r}.'
    )


def get_likely_step(
    cfg: checkpoint_config.CheckpointConfig, model_dir: str
) -> int:
  """Tells the step a run will start at, from the names of directories alone.

  A plan that cannot hold is thus refused before anything large is read.

  Args:
    cfg: the run's checkpoints; transformation functions may change the step.
    model_dir: the run's directory; its last checkpoint comes first.

  Raises:
    ValueError: if the restore config's path is no place of checkpoints.
  """
  step = checkpoint_dirs.latest_step(model_dir)
  if step is not None:
    return step
  if cfg.restore is None or cfg.restore.state_transformation_fns:
    return 0
  _, paths = restoring.get_first_valid_restore_config_and_paths([cfg.restore])
  if not paths:
    return 0
  try:
    return checkpoint_dirs.get_step_from_checkpoint_dir(paths[0])[1]
  except ValueError:  # a file or a directory of another name
    return 0


def check_same_model(
    train_state_shape: Any,
    cfg: checkpoint_config.CheckpointConfig,
    model_dir: str,
) -> None:
  """Refuses to resume in a directory that holds another model.

  Looks at names and shapes only, so it costs nothing.

  Args:
    train_state_shape: the train state of this run, as shapes.
    cfg: the run's checkpoints; with transformation functions on saving, any
      names may be right.
    model_dir: the run's directory.

  Raises:
    ValueError: naming the first differing names or shapes.
  """
  step = checkpoint_dirs.latest_step(model_dir)
  if step is None or (cfg.save and cfg.save.state_transformation_fns):
    return
  path = checkpoint_dirs.get_checkpoint_dir(model_dir, step)
  stored = checkpoint_reader.read_tree(path)
  # A guard may come and go.
  stored.pop(step_guard.STORED, None)
  state_matching.check_same_names(
      stored,
      train_state_shape.state_dict(),
      path,
  )


def get_start_state(
    initializer: Any,
    cfg: checkpoint_config.CheckpointConfig,
    model_dir: str,
    train_iter: Any,
    init_rng: jax.Array,
    local_tier: Any = None,
) -> Any:
  """Returns the train state to go on from, and moves the data there.

  A run that resumes also gets what its guard remembered.

  A run that starts from another one's checkpoint gets a table of what came
  from there (`restored.txt`).

  Args:
    initializer: makes train states.
    cfg: the run's checkpoints.
    model_dir: the run's directory; its last checkpoint comes first.
    train_iter: moved to where it stood, if that was saved.
    init_rng: for what starts fresh.
    local_tier: saves on local disks, or None; newer ones come first of all.
  """
  # A file system may show a directory to one host before the others.
  step = multihost.broadcast_step(checkpoint_dirs.latest_step(model_dir))
  if local_tier is not None:
    state = local_tier.restore_newest(step)
    if state is not None:
      return state
  if step is None:
    state = initializer.from_checkpoint_or_scratch(
        [cfg.restore] if cfg.restore else [],
        init_rng=init_rng,
        ds_iter=train_iter,
    )
    report = getattr(initializer, 'restore_report', None)
    if report is not None:
      restore_report.write(report, model_dir)
    return state
  logging.info('Resuming the run in %s at step %d.', model_dir, step)
  resume_cfg = dataclasses.replace(
      restoring.resuming(cfg.restore, cfg.save, model_dir),
      path=checkpoint_dirs.get_checkpoint_dir(model_dir, step),
      mode='specific',
  )
  state = initializer.from_checkpoint(
      [resume_cfg], init_rng=init_rng, ds_iter=train_iter
  )
  # Saved parameters may have been cast; training goes on in the model's dtype.
  shape = initializer.global_train_state_shape
  state = jax.tree.map(lambda x, s: x.astype(s.dtype), state, shape)
  memory = step_guard.GuardMemory.from_stored(
      checkpoint_reader.read_tree(resume_cfg.path)
  )
  return state if memory is None else state.replace(guard_memory=memory)
