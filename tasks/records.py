"""The records of some shards, by number; what is bad among them, what hangs.

Records are opened once a process and by name, so that the threads of tf.data,
which see numbers and strings only, find them again.
"""

import bisect
from collections.abc import Iterator, Sequence
import contextlib
import itertools
import threading
import time

from absl import logging
from array_record.python import array_record_data_source


class _Shard:
  """A file, and how many of its records to read: all (`FileInstruction`)."""

  def __init__(self, file: str, num_records: int):
    self.filename = file
    self.skip = 0
    self.take = self.examples_in_shard = num_records


class Records:
  """The records of a split, read by number; safe from several threads.

  Attributes:
    shards: each file with its number of records, in order.
    num_skipped: how often training went on without a record it drew.
  """

  def __init__(self, shards: Sequence[tuple[str, int]]):
    """Opens nothing yet: a file is opened when it is first read from.

    Args:
      shards: each file with its number of records, as its manifest tells.
    """
    self.shards = tuple(shards)
    self.num_skipped = 0
    self._ends = list(itertools.accumulate(count for _, count in shards))
    self._source = array_record_data_source.ArrayRecordDataSource(
        [_Shard(file, count) for file, count in shards]
    )
    self._lock = threading.Lock()
    self._waiting: dict[int, tuple[int, float]] = {}
    self._named: set[int] = set()

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def read(self, index: int) -> bytes:
    """Returns the bytes of a record.

    Raises:
      RuntimeError: if its file is damaged there.
      ValueError: if its file does not have it.
    """
    with self._wait(index):
      return self._source[index]

  @contextlib.contextmanager
  def _wait(self, index: int) -> Iterator[None]:
    # A thread reads one record at a time.
    thread = threading.get_ident()
    self._waiting[thread] = index, time.monotonic()
    try:
      yield
    finally:
      del self._waiting[thread]

  def where(self, index: int) -> str:
    """Names the file of a record, and its number there."""
    shard = bisect.bisect_right(self._ends, index)
    file, count = self.shards[shard]
    return f'{file}, record {index - self._ends[shard] + count}'

  def waits(self) -> list[tuple[str, float]]:
    """Returns the reads that have not come back, and since how many seconds."""
    now = time.monotonic()
    # A copy: other threads begin and end reads.
    return [(self.where(i), now - t) for i, t in dict(self._waiting).values()]

  def skip(self, index: int, reason: str) -> None:
    """Counts a record that training goes on without, and names it once."""
    with self._lock:
      self.num_skipped += 1
      is_new = index not in self._named
      self._named.add(index)
    if is_new:
      logging.warning('Skipped %s: %s', self.where(index), reason)


_OPENED: dict[str, Records] = {}


def open_records(name: str, shards: Sequence[tuple[str, int]]) -> Records:
  """Opens shards under a name, such as their folder's, if they are not yet."""
  known = _OPENED.get(name)
  if known is None or known.shards != tuple(shards):
    known = _OPENED[name] = Records(shards)
  return known


def opened(name: str) -> Records:
  """Returns the records that were opened under a name."""
  return _OPENED[name]
