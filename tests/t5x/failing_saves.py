"""The numbered task, with saves that fail on one process of several.

`FAILING_PROCESS` is its index, `FAILING_STEPS` a comma-separated list.
"""

import errno
import functools
import os

import jax
import numbered_task  # registers the task
import orbax.checkpoint as ocp

from t5x import dataset_item

del numbered_task
_write = dataset_item.DatasetCheckpointHandler.save


def _write_unless_full(self, directory, *args, **kwargs):
  steps = os.environ['FAILING_STEPS'].split(',')
  here = jax.process_index() == int(os.environ['FAILING_PROCESS'])
  if here and any(f'checkpoint_{step}.' in str(directory) for step in steps):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))
  return _write(self, directory, *args, **kwargs)


dataset_item.DatasetCheckpointHandler.save = _write_unless_full
# How long the others wait for this one's part, instead of 20 minutes.
ocp.AsyncOptions.__init__ = functools.partialmethod(
    ocp.AsyncOptions.__init__, timeout_secs=15
)
