"""One shard: how it is written, kept by the next run, and told damaged.

A shard is written under a temporary name and then renamed, with a side file
that tells what it was made from, and of each record the bytes it lies in, a
digest of them and its id.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any
import uuid

from array_record.python import array_record_module

from tasks.build import chunks
from tasks.build import records
from tasks.build import reports
from tasks.build import statistics

MANIFEST = 'manifest.json'
# One record a group: each is read by itself.
WRITER_OPTIONS = 'group_size:1'
_DIGEST_SIZE = 8


@dataclasses.dataclass(frozen=True)
class Unit:
  """What becomes one record: a picture and its annotations.

  Attributes:
    path: of the file the picture is in, or None where it was not found; its
      size and time tell whether a finished shard still holds.
    payload: what the converter needs.
  """

  path: pathlib.Path | None
  payload: Any


@dataclasses.dataclass(frozen=True)
class Converted:
  """One converted picture: its record, or None where it was rejected."""

  record: bytes | None
  tally: reports.Tally


@dataclasses.dataclass(frozen=True)
class Job:
  """A shard to write.

  Attributes:
    directory: where it goes.
    index: its place among the shards.
    file: its name.
    fingerprint: a hash of all that its bytes depend on.
    convert: a top-level function of a payload.
    units: what goes in.
  """

  directory: pathlib.Path
  index: int
  file: str
  fingerprint: str
  convert: Callable[[Any], Converted]
  units: Sequence[Unit]

  @property
  def path(self) -> pathlib.Path:
    """Where the shard lies once it is finished."""
    return self.directory / self.file


@dataclasses.dataclass(frozen=True)
class Shard:
  """One shard as told by its side file.

  Attributes:
    file: its name.
    fingerprint: a hash of all that its bytes depend on.
    sha256: of the file.
    names: of the records, as `records.Record.name`.
    bounds: the begin of record 0 and the end of every record, in bytes.
    digests: of the file before record 0, of each record, of the rest.
    tally: what became of its units.
    statistics: of its records.
    temporary: where it lies before it is renamed; '' afterwards.
  """

  file: str
  fingerprint: str
  sha256: str
  names: list[str]
  bounds: list[int]
  digests: list[str]
  tally: reports.Tally
  statistics: statistics.Statistics
  temporary: str = ''

  def to_json(self) -> dict[str, Any]:
    """As plain lists and dicts, without the temporary name."""
    stored = {
        **vars(self),
        'tally': self.tally.to_json(),
        'statistics': self.statistics.to_json(),
    }
    del stored['temporary']
    return stored

  @classmethod
  def from_json(cls, stored: dict[str, Any]) -> 'Shard':
    """Reads back what `to_json` made."""
    return cls(**{
        **stored,
        'tally': reports.Tally.from_json(stored['tally']),
        'statistics': statistics.Statistics.from_json(stored['statistics']),
    })


def file_sha256(path: pathlib.Path) -> str:
  """Returns the SHA-256 of a file in hexadecimal."""
  with open(path, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def shard_name(index: int, num_shards: int) -> str:
  """The name of a shard's file."""
  return f'data-{index:05d}-of-{num_shards:05d}.array_record'


def side_file(path: pathlib.Path) -> pathlib.Path:
  """The path of a shard's side file."""
  return path.with_suffix('.json')


def temporary_name(path: pathlib.Path) -> pathlib.Path:
  """A name beside a path that no other process, dead or alive, has."""
  return path.with_name(f'.{path.name}.{os.getpid()}-{uuid.uuid4().hex}.tmp')


def temporaries(directory: pathlib.Path) -> Iterator[pathlib.Path]:
  """What earlier runs left under temporary names."""
  return directory.glob('.*.tmp')


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a text file whole or not at all."""
  temporary = temporary_name(path)
  temporary.write_text(text, encoding='utf-8')
  temporary.replace(path)


def digests(content: bytes, bounds: Sequence[int]) -> list[str]:
  """Digests of the parts of a file that the bounds cut it into."""
  edges = [0, *bounds, len(content)]
  return [
      hashlib.blake2b(content[a:b], digest_size=_DIGEST_SIZE).hexdigest()
      for a, b in zip(edges, edges[1:])
  ]


def write_shard(job: Job, progress: Callable[[], None]) -> Shard:
  """Writes a shard under a temporary name.

  Args:
    job: what to write.
    progress: called after each unit.

  Returns:
    The shard; `finish_shard` renames it.
  """
  tally = reports.Tally()
  figures = statistics.Statistics()
  names = []
  temporary = temporary_name(job.path)
  writer = array_record_module.ArrayRecordWriter(str(temporary), WRITER_OPTIONS)
  try:
    for unit in job.units:
      converted = job.convert(unit.payload)
      tally.add(converted.tally)
      if converted.record is not None:
        writer.write(converted.record)
        record = records.parse(converted.record)
        figures.count(record)
        names.append(record.name)
      progress()
  finally:
    writer.close()
  content = temporary.read_bytes()
  bounds = chunks.record_bounds(content, len(names))
  return Shard(
      file=job.file,
      fingerprint=job.fingerprint,
      sha256=hashlib.sha256(content).hexdigest(),
      names=names,
      bounds=bounds,
      digests=digests(content, bounds),
      tally=tally,
      statistics=figures,
      temporary=temporary.name,
  )


def read_side_file(path: pathlib.Path) -> Shard | None:
  """Reads what the side file of a shard tells.

  Args:
    path: of the shard.

  Returns:
    The shard; None if there is no side file, or a damaged or older one.
  """
  try:
    text = side_file(path).read_text(encoding='utf-8')
    return Shard.from_json(json.loads(text))
  except FileNotFoundError:
    return None
  # No JSON, no UTF-8, or another shape of it.
  except (ValueError, KeyError, TypeError, AttributeError):
    return None


def kept_shard(job: Job) -> Shard | None:
  """The shard of an earlier run, if it is whole and of the same input."""
  shard = read_side_file(job.path)
  if shard is None or not job.path.exists():
    return None
  if shard.fingerprint != job.fingerprint:
    return None
  return shard if shard.sha256 == file_sha256(job.path) else None


def finish_shard(directory: pathlib.Path, shard: Shard) -> None:
  """Renames a shard; the side file follows, and only then it counts."""
  if not shard.temporary:
    return  # Kept from an earlier run.
  path = directory / shard.file
  # Readers must not take new shards for those of the old manifest.
  (directory / MANIFEST).unlink(missing_ok=True)
  side_file(path).unlink(missing_ok=True)
  (directory / shard.temporary).replace(path)
  write_text(side_file(path), json.dumps(shard.to_json()))
