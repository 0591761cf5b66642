"""The manager of a run that saves in T5X's legacy layout (`use_orbax=False`)."""

from collections.abc import Sequence
import os
from typing import Any

import jax.numpy as jnp
import numpy as np

from t5x import multihost
from t5x import restore_report
from t5x import state_matching


class LegacyCheckpointManager:
  """Puts a run's configs behind the interface of the Orbax manager."""

  def __init__(
      self,
      *,
      save_cfg: Any = None,
      restore_cfg: Any = None,
      train_state_shape: Any,
      partitioner: Any,
      ds_iter: Any = None,
      model_dir: str | None = None,
  ):
    """Makes the checkpointer of either config.

    With a `save_cfg`, what a killed run left half written is removed.

    Args:
      save_cfg: how the run saves, or None to save nothing.
      restore_cfg: what it restores, or None.
      train_state_shape: a train state of shapes.
      partitioner: gives mesh and mesh axes.
      ds_iter: the dataset iterator, used if either side saves or restores its
        state.
      model_dir: the directory of the checkpoints.

    Raises:
      ValueError: without any config.
    """
    if save_cfg is None and restore_cfg is None:
      raise ValueError('Either `save_cfg` or `restore_cfg` is required.')
    self._save_cfg = save_cfg
    kwargs = {}
    if save_cfg:
      kwargs['save_dtype'] = (
          jnp.dtype(save_cfg.dtype) if save_cfg.dtype else None
      )
      # What is None here may be set by a partial of the class, or by gin.
      for name in ('keep', 'keep_dataset_checkpoints'):
        if getattr(save_cfg, name) is not None:
          kwargs[name] = getattr(save_cfg, name)
    if restore_cfg:
      kwargs['restore_dtype'] = (
          jnp.dtype(restore_cfg.dtype) if restore_cfg.dtype else None
      )
    uses_dataset = (save_cfg and save_cfg.save_dataset) or (
        restore_cfg and restore_cfg.restore_dataset
    )
    self._checkpointer = (save_cfg or restore_cfg).checkpointer_cls(
        train_state=train_state_shape,
        partitioner=partitioner,
        checkpoints_dir=model_dir,
        dataset_iterator=ds_iter if uses_dataset else None,
        **kwargs,
    )
    if save_cfg:
      self._checkpointer.remove_unfinished()

  @property
  def restore_report(self) -> restore_report.RestoreReport | None:
    """What the last restored state is made of."""
    return self._checkpointer.restore_report

  def all_steps(self) -> list[int]:
    """Returns the steps that are saved, ascending."""
    return self._checkpointer.all_steps()

  def latest_step(self) -> int | None:
    """Returns the last of `all_steps`, None without any."""
    return self._checkpointer.latest_step()

  def should_save(self, step: int) -> bool:
    """Tells whether an unforced save at `step` would be written."""
    if self._save_cfg is None:
      return False
    period = self._save_cfg.period
    is_due = bool(period) and step % period == 0
    return is_due or step in (self._save_cfg.checkpoint_steps or ())

  def save(
      self,
      train_state: Any,
      state_transformation_fns: Sequence[Any] = (),
      force: bool = True,
  ) -> bool:
    """Saves a train state under its own step, in the foreground.

    Args:
      train_state: the state.
      state_transformation_fns: `(state, infos) -> (state, infos)`, applied in
        order to the state dict before it is written.
      force: whether to save whatever period and steps say.

    Returns:
      Whether it was saved; False also if the step is there already.

    Raises:
      ValueError: if the manager has no `save_cfg`.
    """
    if self._save_cfg is None:
      raise ValueError('This manager only restores: it has no `save_cfg`.')
    step = int(multihost.get_local_data(train_state.step))
    if not force and not self.should_save(step):
      return False
    return self._checkpointer.save(train_state, state_transformation_fns)

  def restore(
      self,
      paths: int | str | os.PathLike | Sequence[str],
      restore_cfg: Any = None,
      fallback_state: state_matching.Fallback | None = None,
      *,
      state_transformation_fns: Sequence[Any] | None = None,
      restore_dataset: bool = True,
  ) -> Any:
    """Restores one checkpoint, or several.

    Args:
      paths: a step of this run, a checkpoint of any layout, or several paths.
      restore_cfg: lends its transformation functions if none are given.
      fallback_state: as for `Checkpointer.restore`.
      state_transformation_fns: as for `Checkpointer.restore`.
      restore_dataset: whether the dataset iterator moves as well.

    Returns:
      A train state, or a list of them.
    """
    fns = state_transformation_fns
    if fns is None:
      fns = restore_cfg.state_transformation_fns if restore_cfg else ()

    def restore_one(path: Any) -> Any:
      is_step = isinstance(path, (int, np.integer))
      return self._checkpointer.restore(
          **({'step': int(path)} if is_step else {'path': os.fspath(path)}),
          state_transformation_fns=fns,
          fallback_state=fallback_state,
          restore_dataset=restore_dataset,
      )

    if isinstance(paths, (int, np.integer, str, os.PathLike)):
      return restore_one(paths)
    return [restore_one(path) for path in paths]

  def wait_until_finished(self) -> None:
    """Returns at once: saves happen in the foreground."""

  def is_saving_in_progress(self) -> bool:
    """Tells that no save goes on in the background."""
    return False

  def recover(self) -> None:
    """Removes what a save that failed has left."""
    self._checkpointer.remove_unfinished()

  def close(self) -> None:
    """Does nothing: there is nothing to free."""
