"""T5X's own checkpointers: the layout of before Orbax, one class a policy.

They save in the foreground, into a directory of another name that is renamed
at the end, and prune by the same rules as the Orbax manager. Restoring reads
every layout.
"""

from collections.abc import Sequence
import os
from typing import Any

from absl import logging
from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from t5x import checkpoint_dirs
from t5x import checkpoint_utils
from t5x import dataset_item
from t5x import legacy_writer
from t5x import multihost
from t5x import restore_report
from t5x import retention
from t5x import state_matching
from t5x import state_restoring
from t5x import state_saving

_UNFINISHED = '.tmp'


class Checkpointer:
  """Saves and restores train states in T5X's legacy layout.

  Attributes:
    checkpoints_dir: where the `checkpoint_<step>` directories lie.
    keep: how many checkpoints to keep, None for all.
    restore_dtype: dtype to which restored parameters are cast, None for the
      stored one.
    restore_report: what the last restored state is made of.
  """

  def __init__(
      self,
      train_state: Any,
      partitioner: Any,
      checkpoints_dir: str,
      dataset_iterator: Any = None,
      *,
      keep: int | None = None,
      save_dtype: Any = np.float32,
      restore_dtype: Any = None,
      keep_dataset_checkpoints: int | None = None,
  ):
    """Describes a run's checkpoints; nothing is read or written.

    Args:
      train_state: a train state of arrays or shapes: names and structure.
      partitioner: gives the mesh and the mesh axes of the state.
      checkpoints_dir: where the `checkpoint_<step>` directories lie.
      dataset_iterator: an iterator with `save` and `restore`, or None.
      keep: how many checkpoints to keep, None for all.
      save_dtype: dtype to which saved parameters are cast, None for theirs.
      restore_dtype: dtype to which restored parameters are cast, None for the
        stored one.
      keep_dataset_checkpoints: how many of the kept ones keep the state of the
        input pipeline, None for all.
    """
    self.checkpoints_dir = checkpoint_dirs.absolute(checkpoints_dir)
    self.keep = keep
    self.restore_dtype = _dtype(restore_dtype)
    self.restore_report: restore_report.RestoreReport | None = None
    self._train_state = train_state
    self._partitioner = partitioner
    self._dataset_iterator = dataset_iterator
    self._save_dtype = _dtype(save_dtype)
    self._keep_dataset_checkpoints = keep_dataset_checkpoints
    layout = partitioner.get_data_layout() if dataset_iterator else None
    self._should_write_dataset_ckpt = bool(
        layout and layout.is_first_host_in_replica_set
    )
    self._dataset_filename = (
        dataset_item.get_filename(layout.shard_id, layout.num_shards)
        if layout
        else ''
    )

  def all_steps(self) -> list[int]:
    """Returns the steps that are saved, ascending."""
    return checkpoint_dirs.all_steps(self.checkpoints_dir)

  def latest_step(self) -> int | None:
    """Returns the last of `all_steps`, None without any."""
    return checkpoint_dirs.latest_step(self.checkpoints_dir)

  def save(
      self,
      train_state: Any,
      state_transformation_fns: Sequence[Any] = (),
      *,
      concurrent_gb: int = 128,
  ) -> bool:
    """Saves a train state under its own step, and prunes.

    Args:
      train_state: the state, the same on every process.
      state_transformation_fns: `(state, infos) -> (state, infos)`, applied in
        order to the state dict before it is written.
      concurrent_gb: how much to hold on the host at once, in 2**30 bytes.

    Returns:
      Whether it was saved; False if the step is there already.

    Raises:
      RuntimeError: on all processes, if writing failed on another one.
    """
    step = int(multihost.get_local_data(train_state.step))
    final = checkpoint_dirs.get_checkpoint_dir(self.checkpoints_dir, step)
    # What process 0 sees counts, as the others may see a moment before.
    if multihost.broadcast_verdict(step in self.all_steps()):
      logging.info('Checkpoint of step %d exists already.', step)
      return False
    logging.info('Saving step %d in the legacy layout.', step)
    # Where nothing can be renamed, the file that is written last is the mark.
    is_remote = '://' in final
    directory = final if is_remote else final + _UNFINISHED
    with multihost.all_or_none('making room for a checkpoint'):
      if jax.process_index() == 0:
        path = epath.Path(directory)
        if path.exists():
          path.rmtree()
        path.mkdir(parents=True)
    with multihost.all_or_none('writing a checkpoint'):
      leaves, infos = state_saving.get_leaves(
          train_state.state_dict(),
          self._partitioner.get_mesh_axes(self._train_state).state_dict(),
          state_transformation_fns,
          self._save_dtype,
      )
      axes = {path: info.mesh_axes for path, info in infos.items()}
      content = legacy_writer.write_arrays(
          directory, leaves, axes, concurrent_gb * 2**30
      )
      if self._should_write_dataset_ckpt:
        self._dataset_iterator.save(
            epath.Path(os.path.join(directory, self._dataset_filename))
        )
    with multihost.all_or_none('completing a checkpoint'):
      if jax.process_index() == 0:
        legacy_writer.write_file(directory, content)
        if not is_remote:
          epath.Path(directory).rename(final)
        self._prune()
    return True

  def restore(
      self,
      step: int | None = None,
      path: str | None = None,
      state_transformation_fns: Sequence[Any] = (),
      fallback_state: state_matching.Fallback | None = None,
      lazy_parameters: bool = False,
      *,
      restore_dataset: bool = True,
  ) -> Any:
    """Restores the train state of a step, or of any checkpoint.

    Args:
      step: a step of this run; None for the last.
      path: a checkpoint of any layout, in place of a step.
      state_transformation_fns: `(stored, target) -> stored`, applied in order
        to the tree of stored arrays before anything is read.
      fallback_state: a state dict for leaves that the checkpoint lacks, or a
        function from their paths to their values.
      lazy_parameters: whether arrays stay `LazyArray`s, read on `get()`.
      restore_dataset: whether the iterator given to the constructor moves to
        where it stood.

    Raises:
      FileNotFoundError: if there is no such checkpoint, or it has no iterator
        state for this data shard.
      ValueError: if leaves are missing or have other shapes, or both a step
        and a path are given.
    """
    if step is not None and path is not None:
      raise ValueError(
          f'Give a step or a path to restore, not both: {step}, {path!r}.'
      )
    if path is None:
      step = self.latest_step() if step is None else step
      if step is None:
        raise FileNotFoundError(f'No checkpoint in {self.checkpoints_dir}.')
      path = checkpoint_dirs.get_checkpoint_dir(self.checkpoints_dir, step)
    path = checkpoint_dirs.absolute(path)
    if self._dataset_iterator is not None and restore_dataset:
      state_restoring.restore_dataset(
          path, self._dataset_iterator, self._dataset_filename
      )
    state, self.restore_report = state_restoring.restore(
        path,
        self._train_state,
        self._partitioner,
        restore_dtype=self.restore_dtype,
        fallback_state=fallback_state,
        state_transformation_fns=state_transformation_fns,
        lazy_parameters=lazy_parameters,
    )
    return state

  def _policy(self) -> Any:
    """Returns which checkpoints stay."""
    return retention.get_policy(self.checkpoints_dir, keep=self.keep)

  def _prune(self) -> None:
    steps = self.all_steps()
    doomed = retention.get_doomed(self._policy(), steps)
    for step in doomed:
      checkpoint_utils.remove_checkpoint_dir(
          checkpoint_dirs.get_checkpoint_dir(self.checkpoints_dir, step)
      )
    if self._keep_dataset_checkpoints is None:
      return
    kept = [step for step in steps if step not in doomed]
    for step in kept[: -self._keep_dataset_checkpoints or None]:
      checkpoint_utils.remove_dataset_checkpoint(
          checkpoint_dirs.get_checkpoint_dir(self.checkpoints_dir, step),
          dataset_item.PREFIX,
      )

  def remove_unfinished(self) -> None:
    """Removes what a killed run left half written; for the one that saves."""
    if jax.process_index() != 0:
      return
    prefix = checkpoint_dirs.get_checkpoint_prefix()
    pattern = f'{prefix}*{_UNFINISHED}'
    for path in epath.Path(self.checkpoints_dir).glob(pattern):
      path.rmtree()


class SaveBestCheckpointer(Checkpointer):
  """Keeps the best checkpoints by a TensorBoard scalar, and the last one.

  Attributes:
    metric_name_to_monitor: `run/tag` of the scalar.
    metric_mode: 'max' or 'min' is better.
    keep_checkpoints_without_metrics: whether checkpoints without it stay.
    force_keep_period: checkpoints of its multiples are never pruned.
  """

  def __init__(
      self,
      train_state: Any,
      partitioner: Any,
      checkpoints_dir: str,
      dataset_iterator: Any = None,
      *,
      keep: int | None = None,
      save_dtype: Any = np.float32,
      restore_dtype: Any = None,
      keep_dataset_checkpoints: int | None = None,
      metric_name_to_monitor: str = 'train/accuracy',
      metric_mode: str = 'max',
      keep_checkpoints_without_metrics: bool = True,
      force_keep_period: int | None = None,
  ):
    """Describes a run's checkpoints; see the attributes and `Checkpointer`.

    Raises:
      ValueError: if `metric_mode` is neither 'max' nor 'min'.
    """
    super().__init__(
        train_state,
        partitioner,
        checkpoints_dir,
        dataset_iterator,
        keep=keep,
        save_dtype=save_dtype,
        restore_dtype=restore_dtype,
        keep_dataset_checkpoints=keep_dataset_checkpoints,
    )
    self.metric_name_to_monitor = metric_name_to_monitor
    self.metric_mode = metric_mode
    self.keep_checkpoints_without_metrics = keep_checkpoints_without_metrics
    self.force_keep_period = force_keep_period
    self._policy()  # refuses a wrong mode before anything is saved

  def _policy(self) -> Any:
    return retention.get_policy(
        self.checkpoints_dir,
        keep=self.keep,
        force_keep_period=self.force_keep_period,
        metric_name_to_monitor=self.metric_name_to_monitor,
        metric_mode=self.metric_mode,
        keep_checkpoints_without_metrics=self.keep_checkpoints_without_metrics,
    )


def _dtype(dtype: Any) -> Any:
  return None if dtype is None else jnp.dtype(dtype)
