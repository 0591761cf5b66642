"""From restore configs to paths and train states."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import inspect
import os
from typing import Any

from absl import logging
from etils import epath
import jax

from t5x import checkpoint_config
from t5x import checkpoint_dirs
from t5x import checkpoint_utils
from t5x import state_matching

RestoreCheckpointConfig = checkpoint_config.RestoreCheckpointConfig


def get_first_valid_restore_config_and_paths(
    restore_cfgs: Sequence[RestoreCheckpointConfig],
) -> tuple[RestoreCheckpointConfig | None, Sequence[str]]:
  """Returns the first config that has checkpoints, and their paths.

  Args:
    restore_cfgs: configs in order of preference.

  Returns:
    The config and its paths; (None, ()) if none has any.

  Raises:
    ValueError: if a path of mode 'latest' or 'all' is no directory, or is a
      checkpoint itself.
  """
  for cfg in restore_cfgs:
    paths = []
    for path in map(checkpoint_dirs.absolute, cfg.paths):
      if cfg.mode == 'specific':
        paths.append(path)
        continue
      if not epath.Path(path).is_dir():
        raise ValueError(
            f'RestoreCheckpointConfig.path {path!r} is no directory, which '
            f'mode {cfg.mode!r} needs. For one checkpoint, set '
            "mode = 'specific'."
        )
      steps = checkpoint_dirs.all_steps(path)
      if not steps:
        _check_no_checkpoint_itself(path, cfg.mode)
        logging.warning('No checkpoint in %s: nothing restored.', path)
      if cfg.mode == 'latest':
        steps = steps[-1:]
      paths += [checkpoint_dirs.get_checkpoint_dir(path, s) for s in steps]
    if paths:
      return cfg, paths
  return None, ()


def _check_no_checkpoint_itself(path: str, mode: str) -> None:
  """Refuses a checkpoint in place of the directory that holds it.

  Raises:
    ValueError: saying which mode it needs.
  """
  try:
    checkpoint_utils.detect_checkpoint_type(path)
  except FileNotFoundError:
    return
  raise ValueError(
      f'RestoreCheckpointConfig.path {path!r} is one checkpoint, but mode '
      f"{mode!r} looks for checkpoints in a directory. Set mode = 'specific', "
      f'or path = {os.path.dirname(path)!r}.'
  )


def get_fallback_state(
    restore_cfg: RestoreCheckpointConfig,
    init_fn: Callable[[jax.Array], Any],
    init_rng: jax.Array | None,
) -> dict[str, Any] | None:
  """Returns a fresh state dict for what the checkpoint lacks.

  Args:
    restore_cfg: tells whether anything (`fallback_to_scratch`) or the
      optimizer's state (not `strict`) may start fresh.
    init_fn: rng -> train state.
    init_rng: for `init_fn`.

  Returns:
    The state dict, without the parameters if only the optimizer's state may
    be missing; None if nothing may.

  Raises:
    ValueError: if the rng is missing, or falling back without any
      transformation function, which is most likely a mistake.
  """
  if not may_start_fresh(restore_cfg, init_rng):
    return None
  state = dict(init_fn(init_rng).state_dict())
  if not restore_cfg.fallback_to_scratch:
    state.pop('target')
  return state


def may_start_fresh(
    restore_cfg: RestoreCheckpointConfig, init_rng: jax.Array | None
) -> bool:
  """Tells whether anything that the checkpoint lacks may start fresh.

  Raises:
    ValueError: as `get_fallback_state`.
  """
  if not restore_cfg.fallback_to_scratch and restore_cfg.strict:
    return False
  if restore_cfg.fallback_to_scratch and not (
      restore_cfg.state_transformation_fns
  ):
    raise ValueError(
        'RestoreCheckpointConfig.fallback_to_scratch needs '
        'state_transformation_fns or an assignment_map: without any, the '
        'checkpoint should hold everything.'
    )
  if init_rng is None:
    raise ValueError('Starting what is missing fresh needs an `init_rng`.')
  return True


def restore(
    checkpoint_manager: Any,
    paths: str | Sequence[str],
    restore_cfg: RestoreCheckpointConfig,
    fallback_state: state_matching.Fallback | None = None,
) -> Any:
  """Restores one path, or a list of them, as a config says.

  Args:
    checkpoint_manager: of either layout.
    paths: a checkpoint, or several.
    restore_cfg: gives the transformation functions.
    fallback_state: for what a checkpoint lacks.

  Returns:
    A train state, or a list of them.
  """

  def restore_one(path: str) -> Any:
    return checkpoint_manager.restore(
        path,
        fallback_state=fallback_state,
        state_transformation_fns=restore_cfg.state_transformation_fns,
        restore_dataset=restore_cfg.restore_dataset,
    )

  if isinstance(paths, str):
    return restore_one(paths)
  return [restore_one(path) for path in paths]


def resuming(
    cfg: RestoreCheckpointConfig | None,
    save_cfg: checkpoint_config.SaveCheckpointConfig | None,
    model_dir: str,
) -> RestoreCheckpointConfig:
  """Returns the config that goes on with the last checkpoint of `model_dir`.

  The run's own restore config lends its transformation functions, which are
  told that the run is resuming.

  Args:
    cfg: the run's restore config, or None.
    save_cfg: how the run saves, or None.
    model_dir: the run's directory.
  """
  save_cfg = save_cfg or checkpoint_config.SaveCheckpointConfig()
  fns = [
      functools.partial(fn, is_resuming=True)
      for fn in (cfg.state_transformation_fns if cfg else ())
      if _takes(fn, 'is_resuming')
  ]
  return dataclasses.replace(
      cfg or RestoreCheckpointConfig(path=model_dir),
      path=model_dir,
      mode='latest',
      dtype=None,
      assignment_map=None,
      strict=True,
      fallback_to_scratch=False,
      restore_dataset=save_cfg.save_dataset,
      state_transformation_fns=fns,
      checkpoint_manager_cls=save_cfg.checkpoint_manager_cls,
  )


def _takes(fn: Callable[..., Any], name: str) -> bool:
  parameters = inspect.signature(fn).parameters.values()
  return any(
      p.name == name or p.kind is inspect.Parameter.VAR_KEYWORD
      for p in parameters
  )
