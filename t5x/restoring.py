"""From restore configs to paths, managers and train states."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import inspect
import os
from typing import Any

from absl import logging
from etils import epath
import jax
import jax.numpy as jnp

from t5x import checkpoint_config
from t5x import checkpoint_dirs
from t5x import checkpoint_utils
from t5x import legacy_checkpointer
from t5x import legacy_manager
from t5x import state_matching

_BEST_SETTINGS = (
    'metric_name_to_monitor',
    'metric_mode',
    'keep_checkpoints_without_metrics',
    'force_keep_period',
)
# Where a config has none of these, the manager's class may still bring one.
_SAVE_SETTINGS = (
    'keep',
    'period',
    'checkpoint_steps',
    'keep_dataset_checkpoints',
)

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


def create_orbax_checkpoint_manager(
    *,
    save_cfg: checkpoint_config.SaveCheckpointConfig | None = None,
    restore_cfg: RestoreCheckpointConfig | None = None,
    train_state: Any,
    partitioner: Any,
    ds_iter: Any = None,
    model_dir: str | None = None,
) -> Any:
  """Creates the manager that both configs name.

  Args:
    save_cfg: how the run saves, or None.
    restore_cfg: what it restores, or None.
    train_state: a train state of arrays or shapes.
    partitioner: gives mesh and mesh axes.
    ds_iter: the dataset iterator, handed on if either side saves or restores
      its state.
    model_dir: the directory of the checkpoints.

  Raises:
    ValueError: if the configs name different managers.
  """
  managers = [
      cfg.checkpoint_manager_cls for cfg in (save_cfg, restore_cfg) if cfg
  ]
  if not managers:
    raise ValueError('Either `save_cfg` or `restore_cfg` is required.')
  names = list(dict.fromkeys(_name(manager) for manager in managers))
  if len(names) == 2:
    raise ValueError(
        'save and restore name different checkpoint_manager_cls: '
        f'{names[0]} and {names[1]}.'
    )
  kwargs = {}
  if save_cfg:
    kwargs['save_dtype'] = jnp.dtype(save_cfg.dtype) if save_cfg.dtype else None
    settings = {name: getattr(save_cfg, name) for name in _SAVE_SETTINGS}
    settings = {k: v for k, v in settings.items() if v is not None}
    kwargs.update(
        _best_settings(
            save_cfg.checkpointer_cls, train_state, partitioner, model_dir
        )
    )
    kwargs.update(settings)
  if restore_cfg:
    kwargs['restore_dtype'] = (
        jnp.dtype(restore_cfg.dtype) if restore_cfg.dtype else None
    )
  uses_dataset = (save_cfg and save_cfg.save_dataset) or (
      restore_cfg and restore_cfg.restore_dataset
  )
  if not save_cfg:
    # The directory may belong to a running job: leave it as it is.
    kwargs['read_only'] = True
  return managers[0](
      directory=model_dir,
      train_state=train_state,
      partitioner=partitioner,
      dataset_iterator=ds_iter if uses_dataset else None,
      **kwargs,
  )


def create_checkpoint_manager(
    *,
    use_orbax: bool = True,
    save_cfg: checkpoint_config.SaveCheckpointConfig | None = None,
    restore_cfg: RestoreCheckpointConfig | None = None,
    train_state: Any,
    partitioner: Any,
    ds_iter: Any = None,
    model_dir: str | None = None,
) -> Any:
  """Creates the manager of either layout.

  Args:
    use_orbax: False saves in T5X's legacy layout; both read both.
    save_cfg: how the run saves, or None.
    restore_cfg: what it restores, or None.
    train_state: a train state of arrays or shapes.
    partitioner: gives mesh and mesh axes.
    ds_iter: the dataset iterator.
    model_dir: the directory of the checkpoints.
  """
  if use_orbax:
    return create_orbax_checkpoint_manager(
        save_cfg=save_cfg,
        restore_cfg=restore_cfg,
        train_state=train_state,
        partitioner=partitioner,
        ds_iter=ds_iter,
        model_dir=model_dir,
    )
  return legacy_manager.LegacyCheckpointManager(
      save_cfg=save_cfg,
      restore_cfg=restore_cfg,
      train_state_shape=train_state,
      partitioner=partitioner,
      ds_iter=ds_iter,
      model_dir=model_dir,
  )


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


def _base(manager_cls: Any) -> Any:
  while isinstance(manager_cls, functools.partial):
    manager_cls = manager_cls.func
  return manager_cls


def _name(manager_cls: Any) -> str:
  """Names a class, the same with its settings from gin and without."""
  base = _base(manager_cls)
  return f'{base.__module__}.{base.__qualname__}'


def _best_settings(
    checkpointer_cls: Any, train_state: Any, partitioner: Any, model_dir: Any
) -> dict[str, Any]:
  """Returns the pruning settings of a best-metric checkpointer's class.

  They may stand in a partial, in a subclass or in gin. A checkpointer of the
  class knows them all, and making one touches nothing.
  """
  base = _base(checkpointer_cls)
  if not (
      inspect.isclass(base)
      and issubclass(base, legacy_checkpointer.SaveBestCheckpointer)
  ):
    return {}
  checkpointer = checkpointer_cls(
      train_state=train_state,
      partitioner=partitioner,
      checkpoints_dir=model_dir,
  )
  names = _BEST_SETTINGS
  if checkpointer.keep is not None:
    names = (*names, 'keep')
  return {name: getattr(checkpointer, name) for name in names}
