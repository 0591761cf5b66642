"""Checkpoints of a run in `checkpoint_<step>` directories, through Orbax.

Each holds the item `state` (target, optimizer state, step) and, on request,
`dataset` (where the input pipeline stands, a file a data shard). Orbax writes
in the background into a directory of another name and renames it at the end,
so a job may be killed at any moment and leaves only whole checkpoints.
"""

from collections.abc import Mapping, Sequence
import contextlib
import functools
import os
from typing import Any

from absl import logging
from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from t5x import checkpoint_dirs
from t5x import checkpoint_reader
from t5x import checkpoint_utils
from t5x import dataset_item
from t5x import multihost
from t5x import restore_report
from t5x import retention
from t5x import state_matching
from t5x import state_restoring
from t5x import state_saving

STATE_ITEM = checkpoint_reader.STATE_ITEM
DATASET_ITEM = dataset_item.ITEM


class _Manager(ocp.CheckpointManager):
  """Orbax's manager, which leaves the notice of preemption to the loop.

  It would ask JAX's service from a thread of its own, for the step that was
  saved; the service takes that for the step at hand, and could then make
  processes stop after different steps.
  """

  def reached_preemption(self, step: int) -> bool:
    """Tells that there is none."""
    del step
    return False


class _Writers:
  """What a handler of Orbax's has left to write in the background.

  Orbax stops waiting at the first that fails, while others still make files.
  """

  def __init__(self, handler: ocp.AsyncCheckpointHandler):
    """Looks at all saves of a handler."""
    self._futures: Sequence[ocp.future.Future] = ()
    self._save = handler.async_save
    # Orbax knows handlers by their very class, so there is no subclass.
    handler.async_save = self._noted

  async def _noted(self, *args, **kwargs) -> Any:
    self._futures = ()
    self._futures = await self._save(*args, **kwargs) or ()
    return self._futures

  def wait(self) -> None:
    """Waits until nothing of the last save is being written."""
    for future in self._futures:
      # What went wrong was told as the failure of the save.
      with contextlib.suppress(Exception):
        future.result()


class OrbaxCheckpointManagerInterface:
  """Saves and restores train states of one run."""

  def __init__(
      self,
      directory: str,
      train_state: Any,
      partitioner: Any,
      dataset_iterator: Any = None,
      save_dtype: Any = None,
      restore_dtype: Any = None,
      keep: int | None = None,
      period: int | None = 1,
      checkpoint_steps: Sequence[int] | None = None,
      keep_dataset_checkpoints: int | None = None,
      force_keep_period: int | None = None,
      metric_name_to_monitor: str | None = None,
      metric_mode: str = 'max',
      keep_checkpoints_without_metrics: bool = True,
      read_only: bool = False,
  ):
    """Opens (and creates) the directory.

    Args:
      directory: where the `checkpoint_<step>` directories lie.
      train_state: a train state of arrays or shapes: names and structure.
      partitioner: gives the mesh and the mesh axes of the state.
      dataset_iterator: an iterator with `save` and `restore`, or None.
      save_dtype: dtype to which saved parameters are cast, None for theirs.
      restore_dtype: dtype to which restored parameters are cast, None for the
        stored one; those that the state keeps in half precision stay so.
      keep: how many checkpoints to keep, None for all.
      period: steps between saves when `save` is not forced.
      checkpoint_steps: more steps at which to save when not forced.
      keep_dataset_checkpoints: how many of the kept ones keep the state of the
        input pipeline, None for all.
      force_keep_period: checkpoints of its multiples are never pruned.
      metric_name_to_monitor: `run/tag` of a TensorBoard scalar; `keep` then
        counts the best by it, and the last one stays as well.
      metric_mode: 'max' or 'min' is better.
      keep_checkpoints_without_metrics: whether checkpoints without that scalar
        stay.
      read_only: whether nothing is ever written, created or cleaned up.
    """
    self._directory = checkpoint_dirs.absolute(directory)
    self._train_state = train_state
    self._partitioner = partitioner
    self._dataset_iterator = dataset_iterator
    self._save_dtype = None if save_dtype is None else jnp.dtype(save_dtype)
    self._restore_dtype = (
        None if restore_dtype is None else jnp.dtype(restore_dtype)
    )
    self._keep_dataset_checkpoints = keep_dataset_checkpoints
    # Of the last `restore`.
    self.restore_report: restore_report.RestoreReport | None = None
    layout = partitioner.get_data_layout() if dataset_iterator else None
    self._should_write_dataset_ckpt = bool(
        layout and layout.is_first_host_in_replica_set
    )
    self._dataset_filename = (
        dataset_item.get_filename(layout.shard_id, layout.num_shards)
        if layout
        else ''
    )
    self._get_options = functools.partial(
        ocp.CheckpointManagerOptions,
        save_interval_steps=0 if read_only else period or 1,
        save_on_steps=tuple(checkpoint_steps or ()),
        preservation_policy=retention.get_policy(
            self._directory,
            keep=keep,
            force_keep_period=force_keep_period,
            metric_name_to_monitor=metric_name_to_monitor,
            metric_mode=metric_mode,
            keep_checkpoints_without_metrics=keep_checkpoints_without_metrics,
        ),
        step_prefix=checkpoint_dirs.get_checkpoint_prefix().rstrip('_'),
        create=not read_only,
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
    )
    # The policy decides. Orbax refuses these beside one, yet readers of the
    # options expect them.
    self._read_options = {
        'max_to_keep': keep,
        'keep_period': force_keep_period,
        'best_mode': metric_mode,
        'keep_checkpoints_without_metrics': keep_checkpoints_without_metrics,
    }
    self._manager = self._open()

  def _open(self) -> ocp.CheckpointManager:
    """Opens Orbax's manager, which removes what is half written."""
    options = self._get_options()
    state_handler = ocp.PyTreeCheckpointHandler()
    self._writers = _Writers(state_handler)
    manager = _Manager(
        self._directory,
        options=options,
        item_handlers={
            STATE_ITEM: state_handler,
            DATASET_ITEM: dataset_item.DatasetCheckpointHandler(),
        },
    )
    for name, value in self._read_options.items():
      setattr(options, name, value)
    return manager

  @functools.cached_property
  def _mesh_axes(self) -> Mapping[str, Any]:
    # Kept, as the loop waits for a save until its arrays are handed over.
    return self._partitioner.get_mesh_axes(self._train_state).state_dict()

  def all_steps(self) -> list[int]:
    """Returns the steps that are saved or being saved, ascending."""
    return sorted(self._manager.all_steps())

  def latest_step(self) -> int | None:
    """Returns the last of `all_steps`, None without any."""
    return self._manager.latest_step()

  def should_save(self, step: int) -> bool:
    """Tells whether an unforced save at `step` would be written."""
    return self._manager.should_save(step)

  def save(
      self,
      train_state: Any,
      state_transformation_fns: Sequence[Any] = (),
      force: bool = True,
  ) -> bool:
    """Saves a train state under its own step, in the background.

    Args:
      train_state: the state; it may be donated as soon as this returns.
      state_transformation_fns: `(state, infos) -> (state, infos)`, applied in
        order to the state dict before it is written.
      force: whether to save whatever period and steps say.

    Returns:
      Whether a save was started; False also if the step is there already.
    """
    step = int(multihost.get_local_data(train_state.step))
    if step in self._manager.all_steps():
      logging.info('Checkpoint of step %d exists already.', step)
      return False
    if not force and not self._manager.should_save(step):
      return False
    leaves, _ = state_saving.get_leaves(
        train_state.state_dict(),
        self._mesh_axes,
        state_transformation_fns,
        self._save_dtype,
    )
    items = {
        STATE_ITEM: ocp.args.PyTreeSave(state_matching.nest(leaves)),
    }
    if self._dataset_iterator is not None:
      items[DATASET_ITEM] = dataset_item.DatasetSave(
          self._dataset_iterator if self._should_write_dataset_ckpt else None,
          self._dataset_filename,
      )
    saved = self._manager.save(
        step, args=ocp.args.Composite(**items), force=True
    )
    self._prune_dataset_checkpoints()
    return saved

  def restore(
      self,
      step: int | str | os.PathLike,
      fallback_state: state_matching.Fallback | None = None,
      state_transformation_fns: Sequence[Any] = (),
      restore_dataset: bool = True,
  ) -> Any:
    """Restores the train state of a step, or of any checkpoint directory.

    Args:
      step: a step of this run, or the path of a checkpoint of any layout.
      fallback_state: a state dict for leaves that the checkpoint lacks, or a
        function from their paths to their values.
      state_transformation_fns: `(stored, target) -> stored`, applied in order
        to the tree of stored arrays before anything is read.
      restore_dataset: whether the iterator given to the constructor moves to
        where it stood.

    Returns:
      A train state like the constructor's, sharded over the mesh.

    Raises:
      FileNotFoundError: if there is no such checkpoint, or it has no iterator
        state for this data shard.
      ValueError: if leaves are missing or have other shapes.
    """
    if isinstance(step, (int, np.integer)):
      path = checkpoint_dirs.get_checkpoint_dir(self._directory, int(step))
    else:
      path = checkpoint_dirs.absolute(step)
    if self._dataset_iterator is not None and restore_dataset:
      state_restoring.restore_dataset(
          path, self._dataset_iterator, self._dataset_filename
      )
    state, self.restore_report = state_restoring.restore(
        path,
        self._train_state,
        self._partitioner,
        restore_dtype=self._restore_dtype,
        fallback_state=fallback_state,
        state_transformation_fns=state_transformation_fns,
    )
    return state

  def wait_until_finished(self) -> None:
    """Waits for background saves; raises what went wrong in them."""
    self._manager.wait_until_finished()

  def is_saving_in_progress(self) -> bool:
    """Tells whether a save goes on in the background."""
    return self._manager.is_saving_in_progress()

  def recover(self) -> None:
    """Makes the next save possible after one failed; removes what is left.

    Orbax's manager keeps the errors of its threads, and so makes room for
    another one. All processes must call this together.
    """
    try:
      self._manager.close()
    except Exception as error:
      logging.warning('Closing after a failed save: %s', error)
    self._writers.wait()
    multihost.sync_global_devices('orbax_manager:recover')
    self._manager = self._open()

  def close(self) -> None:
    """Finishes background saves and frees the manager."""
    self._manager.close()

  def _prune_dataset_checkpoints(self) -> None:
    """Drops the iterator state of all but the last few checkpoints."""
    if self._keep_dataset_checkpoints is None or jax.process_index() != 0:
      return
    for step in self.all_steps()[: -self._keep_dataset_checkpoints or None]:
      path = checkpoint_dirs.get_checkpoint_dir(self._directory, step)
      if not checkpoint_utils.is_pinned_checkpoint(path):
        item = epath.Path(path) / DATASET_ITEM
        if item.exists():
          item.rmtree()
