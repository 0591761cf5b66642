"""Processes that write shards, and how far they are."""

from collections.abc import Callable, Iterator, Sequence
import concurrent.futures
import contextlib
import multiprocessing
from multiprocessing import connection
import os
import threading
from typing import Any

from tasks import CONVERTER_VARIABLE
from tasks.build import shard_files

# Seconds between two looks at how far the processes are.
_LOOK_PERIOD = 0.5
# Of a process whose parent is gone.
_ORPHAN_STATUS = 1

# Units that are done, in each process of a pool.
_done: Any = None


def write_all(
    jobs: Sequence[shard_files.Job],
    progress: Callable[[int], None],
    workers: int,
) -> Iterator[shard_files.Shard]:
  """Writes shards under temporary names.

  Args:
    jobs: the shards.
    progress: called with a number of units that are done.
    workers: processes; 1 writes in this one.

  Yields:
    Shards in any order.
  """
  if workers == 1 or len(jobs) < 2:
    for job in jobs:
      yield shard_files.write_shard(job, lambda: progress(1))
    return
  context = multiprocessing.get_context('spawn')
  done = context.Value('q', 0)
  seen = 0
  with converter_environment(), concurrent.futures.ProcessPoolExecutor(
      min(workers, len(jobs)), context, _start_worker, (done,)
  ) as pool:
    futures = {pool.submit(_write, job) for job in jobs}
    try:
      while futures:
        finished, futures = concurrent.futures.wait(
            futures, _LOOK_PERIOD, concurrent.futures.FIRST_COMPLETED
        )
        now = done.value
        progress(now - seen)
        seen = now
        for future in finished:
          yield future.result()
    except BaseException:
      pool.shutdown(cancel_futures=True)
      raise


def _start_worker(done: Any) -> None:
  """Prepares a process of the pool."""
  global _done
  _done = done
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  """Ends this process once its parent is gone, even by SIGKILL.

  It would wait for work forever otherwise.
  """
  parent = multiprocessing.parent_process()
  assert parent is not None, 'Only processes of a pool have a parent.'
  connection.wait([parent.sentinel])
  os._exit(_ORPHAN_STATUS)


def _write(job: shard_files.Job) -> shard_files.Shard:
  return shard_files.write_shard(job, _count_one)


def _count_one() -> None:
  with _done.get_lock():
    _done.value += 1


@contextlib.contextmanager
def converter_environment() -> Iterator[None]:
  """Tells processes that start in it that they need no TensorFlow."""
  before = os.environ.get(CONVERTER_VARIABLE)
  os.environ[CONVERTER_VARIABLE] = '1'
  try:
    yield
  finally:
    if before is None:
      del os.environ[CONVERTER_VARIABLE]
