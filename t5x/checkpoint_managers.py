"""Makes the checkpoint manager that a run's configs name."""

import functools
import inspect
from typing import Any

import jax.numpy as jnp

from t5x import checkpoint_config
from t5x import legacy_checkpointer
from t5x import legacy_manager

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


def create_orbax_checkpoint_manager(
    *,
    save_cfg: checkpoint_config.SaveCheckpointConfig | None = None,
    restore_cfg: checkpoint_config.RestoreCheckpointConfig | None = None,
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
    restore_cfg: checkpoint_config.RestoreCheckpointConfig | None = None,
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
