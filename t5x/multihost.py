"""What all processes of one run must agree on: barriers, seeds, equal data."""

from collections.abc import Iterator
import contextlib
import re
import time
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

# What collectives and barriers say, in errors of whatever class.
_OF_OTHERS = re.compile(r'\bgloo\b|\bbarrier\b|CoordinationService', re.I)
# What XLA says of a program or a device of this process, which would fail again.
_OF_OURS = re.compile(r'(RESOURCE_EXHAUSTED|INVALID_ARGUMENT|UNIMPLEMENTED)\b')


def is_lost_touch(error: BaseException) -> bool:
  """Tells whether an error means that another process is gone, or late."""
  if not jax.distributed.is_initialized():
    return False
  text = str(error)
  if isinstance(error, TimeoutError) or _OF_OTHERS.search(text):
    return True
  is_of_xla = isinstance(error, jax.errors.JaxRuntimeError)
  return is_of_xla and _OF_OURS.match(text) is None


def sync_global_devices(name: str) -> None:
  """Waits until every process has reached the barrier called `name`."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def multihost_assert_equal(tree: Any, fail_message: str = '') -> None:
  """Checks that a tree of host arrays is the same on every process.

  Args:
    tree: arrays or numbers held on the host.
    fail_message: what to tell when they differ.

  Raises:
    AssertionError: with `fail_message`, on the processes that differ.
  """
  if jax.process_count() > 1:
    multihost_utils.assert_equal(tree, fail_message)


def get_local_data(x: Any) -> Any:
  """Returns this process's first shard of a global array; others pass through.

  Use it for replicated values (a step counter), where one shard is the whole.
  """
  if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer):
    return x.addressable_data(0)
  return x


def shared_time_seed() -> int:
  """Returns a seed from the clock of process 0, the same on every process."""
  seed = np.int32(time.time())
  if jax.process_count() > 1:
    seed = multihost_utils.broadcast_one_to_all(seed)
  return int(seed)


def broadcast_verdict(verdict: bool) -> bool:
  """Returns process 0's yes or no on every process."""
  if jax.process_count() > 1:
    verdict = multihost_utils.broadcast_one_to_all(np.int32(verdict))
  return bool(verdict)


def broadcast_step(step: int | None) -> int | None:
  """Returns process 0's step, or None, on every process."""
  number = np.int32(-1 if step is None else step)
  if jax.process_count() > 1:
    number = multihost_utils.broadcast_one_to_all(number)
  return None if number < 0 else int(number)


@contextlib.contextmanager
def all_or_none(doing: str) -> Iterator[None]:
  """Lets a block fail on every process if it fails on one.

  No process goes on, or waits for ever, while another one is in trouble. The
  block itself must not wait for other processes.

  Args:
    doing: what the block does, for the message.

  Raises:
    RuntimeError: on processes whose own block went well.
  """
  error = None
  try:
    yield
  except Exception as caught:
    error = caught
  failed = np.asarray([error is not None])
  if jax.process_count() > 1:
    failed = multihost_utils.process_allgather(failed).reshape(-1)
  if error is not None:
    raise error
  if failed.any():
    where = ', '.join(map(str, np.flatnonzero(failed)))
    raise RuntimeError(
        f'Process {where} failed in {doing}; its own log says why.'
    )


def set_hardware_rng_ops() -> None:
  """Makes new PRNG keys use the accelerator's fast generator.

  `unsafe_rbg` keys are deterministic for one way of partitioning only: the
  same seed gives other numbers on another mesh.
  """
  jax.config.update('jax_default_prng_impl', 'unsafe_rbg')
