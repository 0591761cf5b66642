"""How a script ends after an error: what it says, and with which status."""

from collections.abc import Iterator
import contextlib
import errno
import os
import sys
import time
import traceback

from absl import logging
import jax

from t5x import exit_status
from t5x import gin_utils
from t5x import multihost
from t5x import preemption
from t5x import save_failures

# Raised for what a user can mend; anything else keeps its traceback.
_USER_ERRORS = (ValueError, TypeError, OSError, ImportError, NameError)

# The errors of a full disk.
_FULL = (errno.ENOSPC, errno.EDQUOT)

# Seconds that the coordinator stays after an error.
_LINGER = 5.0


@contextlib.contextmanager
def told() -> Iterator[None]:
  """Ends the process after an error, and says why.

  What the user can mend is one message and status 1, the traceback only with
  `--verbosity=1`. `exit_status` has the others.
  """
  try:
    yield
  except preemption.PreemptionError as notice:
    # The first line is ours, gin adds whom it called.
    sys.stderr.write(str(notice).splitlines()[0] + '\n')
    sys.exit(
        exit_status.INTERRUPTED if preemption.by_hand() else exit_status.AGAIN
    )
  except Exception as error:
    error = _first_of_writing(error) or error
    _tell(error)
    _leave(_status_of(error))


def _first_of_writing(error: BaseException) -> Exception | None:
  """Returns the first error of a full disk that led to this one, or None.

  A full disk also hits what a run writes on its way out.
  """
  found = None
  link: BaseException | None = error
  while link is not None:
    if isinstance(link, save_failures.SaveError):
      return link
    if isinstance(link, OSError) and link.errno in _FULL:
      found = link
    link = link.__context__
  return found and save_failures.SaveError(
      f'{found}: a disk is full. Make room where MODEL_DIR lies, or where the '
      'named file does, and start again; checkpoints are as they were.'
  )


def _tell(error: Exception) -> None:
  """Writes what went wrong: one message for what a user can mend."""
  if not isinstance(error, _USER_ERRORS) or logging.level_debug():
    traceback.print_exception(error)
    return
  sys.stderr.write(
      f'error: {gin_utils.without_addresses(str(error))}\n'
      '(--verbosity=1 shows where this was raised.)\n'
  )


def _status_of(error: Exception) -> int:
  if isinstance(error, save_failures.SaveError):
    return exit_status.NOT_SAVED
  if multihost.is_lost_touch(error):
    sys.stderr.write(
        'Another process is gone or late; its own log may say why. The same '
        'command goes on from the last checkpoint.\n'
    )
    return exit_status.STUCK
  return exit_status.ERROR


def _leave(status: int) -> None:
  """Ends the process after an error.

  At its end a process waits for the others of its run. After an error they may
  be dead, or wait for this one in the middle of a step: so it leaves them, and
  they learn of it by JAX's heartbeats, if not by a broken connection.
  """
  if not jax.distributed.is_initialized():
    sys.exit(status)
  if status != exit_status.STUCK and jax.process_index() == 0:
    # Without it the others end as well: they may be about to tell the same.
    time.sleep(_LINGER)
  logging.flush()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)
