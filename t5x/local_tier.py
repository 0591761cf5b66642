"""Frequent saves on the machines' own disks, in front of the durable ones.

Every process writes its own part of the state, and where its data stand, to a
local directory: no network, no other process. A run that starts looks first
whether all processes still have a whole save of one step that is newer than the
durable checkpoint; all take it, or none does. A machine that lost its disk, or
another mesh that needs parts from elsewhere, thus means the durable checkpoint.

Orbax's `experimental.emergency` manager has the same purpose; it needs at least
two slices that each hold the whole state, and keeps no dataset iterator.
"""

from collections.abc import Mapping
import concurrent.futures
import hashlib
import os
import re
import shutil
from typing import Any

from absl import logging
from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np

from t5x import checkpoint_dirs
from t5x import dataset_item
from t5x import local_parts
from t5x import multihost
from t5x import save_failures
from t5x import step_guard
from t5x import stored_state

_STEP_DIR = re.compile(r'step_(\d+)')
_STATE_FILE = 'state.npz'
_UNFINISHED = '.tmp'
# How many saves a process tells the others of.
_MOST_TOLD = 16
# It is replicated, so that every process has its arrays whole.
_GUARD = step_guard.STORED + '/'
# Stands for a durable checkpoint that is not complete yet.
_NO_STEP = 2**31 - 1


class LocalTier:
  """The local saves of this process."""

  def __init__(
      self,
      directory: str,
      model_dir: str,
      train_state: Any,
      partitioner: Any,
      dataset_iterator: Any = None,
      keep: int = 1,
  ):
    """Opens (and creates) this process's directory.

    Args:
      directory: on this machine's disk; runs share it, each has its own part.
      model_dir: the run's directory, whose path tells runs apart.
      train_state: a train state of shapes.
      partitioner: gives the mesh and the mesh axes of the state.
      dataset_iterator: saved and restored as well, unless None.
      keep: how many saves to keep.
    """
    self._model_dir = model_dir = checkpoint_dirs.absolute(model_dir)
    digest = hashlib.sha256(model_dir.encode()).hexdigest()[:12]
    self.directory = os.path.join(
        os.path.abspath(directory),
        f'{os.path.basename(model_dir)}-{digest}',
        f'process_{jax.process_index()}',
    )
    self._train_state = train_state
    self._partitioner = partitioner
    self._dataset_iterator = dataset_iterator
    self._keep = keep
    layout = partitioner.get_data_layout()
    # Other processes may read the same shard, but not from this disk.
    self._dataset_filename = dataset_item.get_filename(
        layout.shard_id, layout.num_shards
    )
    # Saves of one step by two different starts of a run do not fit together.
    self._session = multihost.shared_time_seed()
    self._writer = concurrent.futures.ThreadPoolExecutor(1)
    self._pending: concurrent.futures.Future[None] | None = None
    os.makedirs(self.directory, exist_ok=True)
    for name in os.listdir(self.directory):
      if name.endswith(_UNFINISHED):
        shutil.rmtree(os.path.join(self.directory, name))

  def all_steps(self) -> list[int]:
    """Returns the steps this process has saves of, ascending."""
    matches = map(_STEP_DIR.fullmatch, os.listdir(self.directory))
    return sorted(int(match[1]) for match in matches if match)

  def save(self, train_state: Any) -> bool:
    """Copies this process's part of a state and writes it in the background.

    Args:
      train_state: the state; it may be donated as soon as this returns.

    Returns:
      Whether a save was started; False if the step is there already.

    Raises:
      SaveError: if the save before could not be written.
    """
    step = int(multihost.get_local_data(train_state.step))
    self.wait_until_finished()
    final = self._step_dir(step)
    if os.path.isdir(final):
      return False
    parts = [
        part
        for path, leaf in stored_state.flatten(train_state.state_dict()).items()
        for part in local_parts.get_parts('/'.join(path), leaf)
    ]
    unfinished = final + _UNFINISHED
    os.mkdir(unfinished)
    if self._dataset_iterator is not None:
      # At once, as the iterator moves on.
      self._dataset_iterator.save(
          epath.Path(unfinished) / self._dataset_filename
      )

    def write() -> None:
      about = {'session': self._session, 'durable_step': self._durable_step()}
      local_parts.write(os.path.join(unfinished, _STATE_FILE), parts, about)
      os.rename(unfinished, final)
      for old in self.all_steps()[: -self._keep]:
        shutil.rmtree(self._step_dir(old))

    self._pending = self._writer.submit(write)
    return True

  def restore_newest(self, newer_than: int | None) -> Any | None:
    """Restores the newest save that every process has whole.

    Moves the dataset iterator too. All processes must call this together.
    Saves after the step that the run goes on from are removed: another history
    is about to be written. Without a durable checkpoint, or where those that
    were there are gone, someone wanted to start anew or further back.

    Args:
      newer_than: the step of the durable checkpoint, None without any.

    Returns:
      The train state, sharded over the mesh; None if the durable tier is at
      least as new, or some process misses a part.
    """
    newer_than = -1 if newer_than is None else newer_than
    state = None
    for step in self._common_steps(newer_than):
      if step <= newer_than:
        break
      state = self._restore_together(step)
      if state is not None:
        newer_than = step
        break
    for step in self.all_steps():
      if step > newer_than:
        shutil.rmtree(self._step_dir(step))
    return state

  def wait_until_finished(self) -> None:
    """Waits for the save in the background; raises what went wrong in it."""
    if self._pending is not None:
      pending, self._pending = self._pending, None
      try:
        pending.result()
      except OSError as error:
        raise save_failures.SaveError(
            error.errno,
            f'A local save in {self.directory} could not be written: {error}. '
            'Durable checkpoints are as they were. Make room, or set '
            'SaveCheckpointConfig.local_period and local_directory to None.',
        ) from error

  def close(self) -> None:
    """Finishes the save in the background and ends its thread."""
    try:
      self.wait_until_finished()
    finally:
      self._writer.shutdown()

  def _step_dir(self, step: int) -> str:
    return os.path.join(self.directory, f'step_{step}')

  def _durable_step(self) -> int:
    """Returns the durable checkpoint there is; only process 0 looks."""
    if jax.process_index():
      return 0
    step = checkpoint_dirs.latest_step(self._model_dir)
    return _NO_STEP if step is None else step

  def _common_steps(self, durable_step: int) -> list[int]:
    """Returns the steps all processes have from one session, newest first.

    Args:
      durable_step: the last one now; saves that knew a later one do not count.
    """
    told = np.full((_MOST_TOLD, 2), -1, np.int32)
    for row, step in zip(told, reversed(self.all_steps())):
      try:
        about = local_parts.read_about(
            os.path.join(self._step_dir(step), _STATE_FILE)
        )
      except local_parts.UNREADABLE as error:
        logging.warning('%s is not whole: %s', self._step_dir(step), error)
        continue
      if about['durable_step'] <= durable_step:
        row[:] = step, about['session']
    everyone = told[None]
    if jax.process_count() > 1:
      everyone = multihost_utils.process_allgather(told)
    common = set.intersection(
        *({(int(a), int(b)) for a, b in rows} for rows in everyone)
    )
    return sorted((step for step, _ in common if step >= 0), reverse=True)

  def _restore_together(self, step: int) -> Any | None:
    """Restores a step, or nothing if any process cannot."""
    state = None
    try:
      stored = local_parts.read(os.path.join(self._step_dir(step), _STATE_FILE))
      if self._dataset_iterator is not None:
        self._check_dataset(step)
      state = self._put(stored)
    except local_parts.UNREADABLE as error:
      logging.warning('Local save of step %d is of no use: %s', step, error)
    ready = np.asarray([state is not None])
    if jax.process_count() > 1:
      ready = multihost_utils.process_allgather(ready)
    if not ready.all():
      logging.info('Local saves of step %d are not on all processes.', step)
      return None
    logging.info('Restoring step %d from local disks.', step)
    if self._dataset_iterator is not None:
      self._dataset_iterator.restore(
          epath.Path(self._step_dir(step)) / self._dataset_filename
      )
    return state

  def _check_dataset(self, step: int) -> None:
    """Refuses a save without the position in this process's data.

    Raises:
      FileNotFoundError: if it is of another shard, or of none.
    """
    names = os.listdir(self._step_dir(step))
    if not any(name.startswith(self._dataset_filename) for name in names):
      raise FileNotFoundError(
          f'{self._step_dir(step)} holds no {self._dataset_filename}.'
      )

  def _put(self, stored: Mapping[str, list[local_parts.Part]]) -> Any:
    """Puts stored parts onto this process's devices.

    Raises:
      KeyError, ValueError: if a part is missing or of another shape or dtype.
    """
    target = self._train_state.state_dict()
    mesh_axes = stored_state.flatten(
        self._partitioner.get_mesh_axes(self._train_state).state_dict()
    )
    arrays = {}
    for path, leaf in stored_state.flatten(target).items():
      name, shape = '/'.join(path), tuple(leaf.shape)
      parts = stored[name]
      if parts[0].shape != shape or parts[0].value.dtype != leaf.dtype:
        raise ValueError(
            f'{name} is {parts[0].value.dtype} {parts[0].shape}, the model '
            f'has {leaf.dtype} {shape}.'
        )
      sharding = jax.sharding.NamedSharding(
          self._partitioner.mesh,
          mesh_axes.get(path) or jax.sharding.PartitionSpec(),
      )
      arrays[path] = jax.make_array_from_callback(
          shape,
          sharding,
          lambda index, parts=parts, shape=shape: local_parts.assemble(
              parts, local_parts.to_bounds(index, shape)
          ),
      )
    state = self._train_state.restore_state(stored_state.fill(target, arrays))
    memory = {
        name.removeprefix(_GUARD): parts[0].value
        for name, parts in stored.items()
        if name.startswith(_GUARD)
    }
    if not memory:
      return state
    return state.replace(guard_memory=step_guard.GuardMemory(**memory))


def get_local_tier(
    save_cfg: Any,
    train_state: Any,
    partitioner: Any,
    ds_iter: Any,
    model_dir: str,
) -> LocalTier | None:
  """Returns the local tier that a save config asks for, or None.

  Args:
    save_cfg: how the run saves, or None.
    train_state: a train state of shapes.
    partitioner: gives mesh and mesh axes.
    ds_iter: the dataset iterator, used if the config saves its state.
    model_dir: the run's directory.
  """
  if save_cfg is None or not save_cfg.local_period:
    return None
  return LocalTier(
      save_cfg.local_directory,
      model_dir,
      train_state,
      partitioner,
      ds_iter if save_cfg.save_dataset else None,
      save_cfg.local_keep,
  )
