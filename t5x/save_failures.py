"""Saves that cannot be written: told clearly, and tolerated as often as asked.

A manager behind a `GuardedManager` behaves as before while all is well. If a
disk is full, a quota is used up or a directory cannot be written, what was saved
earlier stays, what is half written is removed before the next save, and
`SaveCheckpointConfig.max_failed_saves` says how many saves in a row may fail
before the run ends.
"""

from collections.abc import Sequence
import os
import re
import shutil
from typing import Any

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np

from t5x import multihost

# TensorStore's errors are ValueErrors that start with the name of a status.
_STATUS = re.compile(r'[A-Z]+(_[A-Z]+)*: ')


class SaveError(OSError):
  """A checkpoint could not be written; those before are as they were."""


class GuardedManager:
  """A checkpoint manager whose failures are errors that help."""

  def __init__(self, manager: Any, directory: str, max_failed_saves: int = 0):
    """Wraps a manager.

    Args:
      manager: saves.
      directory: where, for messages.
      max_failed_saves: how many saves in a row may fail.
    """
    self._manager, self._directory = manager, directory
    self._max_failed = max_failed_saves
    self._num_failed = 0
    # Among several processes one may fail alone: who tolerates it must agree.
    self._must_agree = max_failed_saves > 0 and jax.process_count() > 1
    # The step of the save that goes on in the background.
    self._step: int | None = None
    # What it failed with before it went to the background.
    self._early_error: Exception | None = None
    self._has_raised = False

  def save(
      self, train_state: Any, state_transformation_fns: Sequence[Any] = ()
  ) -> bool:
    """Saves as the manager does, once the save before is through.

    Returns:
      Whether a save was started.

    Raises:
      SaveError: if more saves in a row failed than may.
    """
    self.wait_until_finished()
    self._step = int(multihost.get_local_data(train_state.step))
    try:
      saved = self._manager.save(train_state, state_transformation_fns)
    except Exception as error:
      if not _is_of_writing(error):
        raise
      self._early_error = error
      if not self._must_agree:
        self.wait_until_finished()
      # Else the others still write, and train: all look at it together later.
      return False
    if not saved:
      self._step = None
    return saved

  def check(self) -> None:
    """Looks whether a save in the background has failed, without waiting.

    Among processes that tolerate failures this waits for the next save, where
    they agree.

    Raises:
      SaveError: as for `save`.
    """
    if self._step is None or self._manager.is_saving_in_progress():
      return
    if self._must_agree:
      return
    self.wait_until_finished()

  def wait_until_finished(self) -> None:
    """Waits for the save in the background.

    Raises:
      SaveError: as for `save`.
    """
    if self._step is None:
      return
    error, self._early_error = self._early_error, None
    try:
      if error is None:
        self._manager.wait_until_finished()
    except Exception as caught:  # in the background there is only writing
      error = caught
    self._settle(error)

  def finish(self) -> None:
    """Waits for the last save of the run, which may not fail.

    Raises:
      SaveError: if it did, however many may fail.
    """
    self._max_failed = 0
    self.wait_until_finished()
    if self._num_failed:
      self._has_raised = True
      raise SaveError(
          f'The last save in {self._directory} failed; the log has the reason.'
      )

  def close(self) -> None:
    """Frees the manager; says nothing of a failure that was told."""
    try:
      self._manager.close()
    except Exception as error:
      if not self._has_raised:
        raise
      logging.warning('Closing after a failed save: %s', error)

  def _settle(self, error: Exception | None) -> None:
    """Counts how a save went, on all processes alike if they tolerate any."""
    step, self._step = self._step, None
    failed = error is not None
    if self._must_agree:
      everyone = multihost_utils.process_allgather(np.asarray([failed]))
      failed = bool(everyone.any())
    elif error is not None and multihost.is_lost_touch(error):
      # Not the disk: nobody is there to write the rest.
      self._has_raised = True
      raise error
    if not failed:
      self._num_failed = 0
      return
    self._num_failed += 1
    text = self._explain(step, error)
    if self._num_failed > self._max_failed:
      self._has_raised = True
      raise SaveError(text) from error
    logging.error(
        '%s Training goes on: %d of %d saves in a row may fail.',
        text,
        self._num_failed,
        self._max_failed,
    )
    self._manager.recover()

  def _explain(self, step: int | None, error: Exception | None) -> str:
    reason = error or 'another process failed, its own log says why'
    saved = self._manager.all_steps()
    return (
        f'Step {step} could not be saved in {self._directory}: {reason}. '
        f'{_describe_disk(self._directory)}'
        f'The last checkpoint is that of step {saved[-1] if saved else None}. '
        'Make room (SaveCheckpointConfig.keep bounds how many checkpoints '
        'stay) or mend the rights, then start again; '
        'SaveCheckpointConfig.max_failed_saves lets training go on meanwhile.'
    )


def _is_of_writing(error: Exception) -> bool:
  return isinstance(error, (OSError, jax.errors.JaxRuntimeError)) or bool(
      isinstance(error, ValueError) and _STATUS.match(str(error))
  )


def _describe_disk(directory: str) -> str:
  """Returns what there is to know of a local directory's disk."""
  if '://' in directory or not os.path.isdir(directory):
    return ''
  usage = shutil.disk_usage(directory)
  text = f'{usage.free / 1e6:,.1f} MB of {usage.total / 1e6:,.1f} MB are free. '
  if not os.access(directory, os.W_OK):
    text += 'This user may not write there. '
  return text
