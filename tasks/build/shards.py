"""Converts the pictures of a split into ArrayRecord shards.

A shard is written under a temporary name and then renamed, with a side file
that tells what it was made from. A shard that is complete and was made from
the same input is kept by the next run, so a conversion that was cut off goes
on where it stopped. The manifest comes last: a split without one is not done.
"""

from collections.abc import Callable, Iterator, Sequence
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import pathlib
from typing import Any

from array_record.python import array_record_module
import tqdm

from tasks import CONVERTER_VARIABLE
from tasks.build import reports

SCHEMA_VERSION = 1
MANIFEST = 'manifest.json'
REJECTS = 'rejects.jsonl'
# One record a group: each is read by itself.
WRITER_OPTIONS = 'group_size:1'


@dataclasses.dataclass(frozen=True)
class Unit:
  """What becomes one record: a picture and its annotations.

  Attributes:
    path: of the picture, or None where it was not found; its size and time
      tell whether a finished shard still holds.
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
class Split:
  """All that one split is made from.

  Attributes:
    directory: where its shards go.
    units: its pictures, in the order of the records.
    convert: a top-level function of a payload.
    tally: what reading the annotations left out.
    arguments: what changes the records, as JSON takes it.
    sources: from `checksums`.
    num_shards: number of shards, at least 1.
  """

  directory: pathlib.Path
  units: Sequence[Unit]
  convert: Callable[[Any], Converted]
  tally: reports.Tally
  arguments: dict[str, Any]
  sources: list[dict[str, str]]
  num_shards: int


@dataclasses.dataclass(frozen=True)
class _Shard:
  """One shard as told by its side file."""

  file: str
  fingerprint: str
  sha256: str
  num_records: int
  tally: reports.Tally

  def to_json(self) -> dict[str, Any]:
    return {**vars(self), 'tally': self.tally.to_json()}


class RejectError(Exception):
  """Something was left out although the run is strict."""


def file_sha256(path: pathlib.Path) -> str:
  """Returns the SHA-256 of a file in hexadecimal."""
  with open(path, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def checksums(files: Sequence[pathlib.Path]) -> list[dict[str, str]]:
  """Names annotation files and their SHA-256, in the given order."""
  return [{'file': f.name, 'sha256': file_sha256(f)} for f in files]


def default_num_shards(num_units: int, least: int) -> int:
  """The reference's number, 2^(floor(log2 n) - 10), within `least` and n."""
  return max(1, min(num_units, max(least, 2 ** (num_units.bit_length() - 11))))


def build_split(split: Split, workers: int, strict: bool) -> reports.Tally:
  """Writes the shards of a split, its report and its manifest.

  Args:
    split: what to convert.
    workers: processes; 1 converts in this one.
    strict: whether anything left out is an error.

  Returns:
    What was read, written, left out and mended.

  Raises:
    RejectError: if something was left out and the run is strict; nothing has
      been renamed then.
  """
  directory = split.directory
  if strict:
    _refuse_rejects(split.tally)
  directory.mkdir(parents=True, exist_ok=True)
  tally = reports.Tally()
  tally.add(split.tally)
  by_index: dict[int, _Shard] = {}
  progress = tqdm.tqdm(
      total=len(split.units), desc=directory.name, unit='image', disable=None
  )
  with progress, _discard_temporaries(directory):
    for index, shard in _convert_shards(split, workers):
      by_index[index] = shard
      progress.update(len(_shard_units(split, index)))
      if not strict:
        _finish_shard(directory, shard)
    shards = [by_index[index] for index in range(split.num_shards)]
    for shard in shards:
      tally.add(shard.tally)
    if strict:
      _refuse_rejects(tally)
      for shard in shards:
        _finish_shard(directory, shard)
  counts = tally.counts()
  _write(
      directory / REJECTS,
      ''.join(
          json.dumps(dataclasses.asdict(note), ensure_ascii=False) + '\n'
          for note in tally.notes
      ),
  )
  manifest = {
      'schema_version': SCHEMA_VERSION,
      'arguments': split.arguments,
      'sources': split.sources,
      'counts': counts,
      'num_records': sum(shard.num_records for shard in shards),
      'shards': [
          {
              'file': shard.file,
              'num_records': shard.num_records,
              'sha256': shard.sha256,
          }
          for shard in shards
      ],
  }
  _write(directory / MANIFEST, json.dumps(manifest, indent=2) + '\n')
  _remove_strangers(directory, {shard.file for shard in shards})
  return tally


def _shard_name(index: int, num_shards: int) -> str:
  return f'data-{index:05d}-of-{num_shards:05d}.array_record'


def _shard_units(split: Split, index: int) -> Sequence[Unit]:
  """The units of a shard: the index-th of nearly equal parts."""
  num_units = len(split.units)
  start = index * num_units // split.num_shards
  stop = (index + 1) * num_units // split.num_shards
  return split.units[start:stop]


def _fingerprint(split: Split, index: int) -> str:
  """A hash of all that the bytes of a shard depend on."""
  pictures = []
  for unit in _shard_units(split, index):
    stat = unit.path.stat() if unit.path else None
    pictures.append(
        [str(unit.path), stat and stat.st_size, stat and stat.st_mtime_ns]
    )
  parts = [
      SCHEMA_VERSION,
      WRITER_OPTIONS,
      split.arguments,
      split.sources,
      [index, split.num_shards],
      pictures,
  ]
  return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _convert_shards(
    split: Split, workers: int
) -> Iterator[tuple[int, _Shard]]:
  """Yields finished shards in any order; complete ones are not written anew."""
  to_do = []
  for index in range(split.num_shards):
    fingerprint = _fingerprint(split, index)
    name = _shard_name(index, split.num_shards)
    kept = _kept_shard(split.directory / name, fingerprint)
    if kept:
      yield index, kept
    else:
      to_do.append((index, name, fingerprint))
  write = functools.partial(_write_shard, split.directory, split.convert)
  if workers == 1 or len(to_do) < 2:
    for index, name, fingerprint in to_do:
      yield index, write(name, fingerprint, _shard_units(split, index))
    return
  with _converter_environment(), concurrent.futures.ProcessPoolExecutor(
      min(workers, len(to_do)), multiprocessing.get_context('spawn')
  ) as pool:
    futures = {
        pool.submit(write, name, fingerprint, _shard_units(split, index)): index
        for index, name, fingerprint in to_do
    }
    try:
      for future in concurrent.futures.as_completed(futures):
        yield futures[future], future.result()
    except BaseException:
      pool.shutdown(cancel_futures=True)
      raise


@contextlib.contextmanager
def _converter_environment() -> Iterator[None]:
  """Tells worker processes that they need no tasks, and so no TensorFlow."""
  before = os.environ.get(CONVERTER_VARIABLE)
  os.environ[CONVERTER_VARIABLE] = '1'
  try:
    yield
  finally:
    if before is None:
      del os.environ[CONVERTER_VARIABLE]


def _temporary(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(f'.{path.name}.tmp')


def _side_file(path: pathlib.Path) -> pathlib.Path:
  return path.with_suffix('.json')


def _write_shard(
    directory: pathlib.Path,
    convert: Callable[[Any], Converted],
    name: str,
    fingerprint: str,
    units: Sequence[Unit],
) -> _Shard:
  """Writes a shard under its temporary name."""
  tally = reports.Tally()
  num_records = 0
  temporary = _temporary(directory / name)
  writer = array_record_module.ArrayRecordWriter(str(temporary), WRITER_OPTIONS)
  try:
    for unit in units:
      converted = convert(unit.payload)
      tally.add(converted.tally)
      if converted.record is not None:
        writer.write(converted.record)
        num_records += 1
  finally:
    writer.close()
  return _Shard(name, fingerprint, file_sha256(temporary), num_records, tally)


def _kept_shard(path: pathlib.Path, fingerprint: str) -> _Shard | None:
  """The shard of an earlier run, if it is whole and of the same input."""
  side_file = _side_file(path)
  if not path.exists() or not side_file.exists():
    return None
  stored = json.loads(side_file.read_text(encoding='utf-8'))
  if stored['fingerprint'] != fingerprint:
    return None
  if stored['sha256'] != file_sha256(path):
    return None
  return _Shard(**{**stored, 'tally': reports.Tally.from_json(stored['tally'])})


def _finish_shard(directory: pathlib.Path, shard: _Shard) -> None:
  """Renames a shard; the side file follows, and only then it counts."""
  path = directory / shard.file
  temporary = _temporary(path)
  if not temporary.exists():
    return  # Kept from an earlier run.
  # Readers must not take new shards for those of the old manifest.
  (directory / MANIFEST).unlink(missing_ok=True)
  _side_file(path).unlink(missing_ok=True)
  temporary.replace(path)
  _write(_side_file(path), json.dumps(shard.to_json()))


def _write(path: pathlib.Path, text: str) -> None:
  """Writes a text file whole or not at all."""
  temporary = _temporary(path)
  temporary.write_text(text, encoding='utf-8')
  temporary.replace(path)


@contextlib.contextmanager
def _discard_temporaries(directory: pathlib.Path) -> Iterator[None]:
  """Removes what an earlier or failing run left under temporary names."""
  try:
    for path in directory.glob('.*.tmp'):
      path.unlink()
    yield
  finally:
    for path in directory.glob('.*.tmp'):
      path.unlink()


def _remove_strangers(directory: pathlib.Path, files: set[str]) -> None:
  """Removes the shards of an earlier run with another number of shards."""
  for path in directory.glob('data-*-of-*.array_record'):
    if path.name not in files:
      _side_file(path).unlink(missing_ok=True)
      path.unlink()


def _refuse_rejects(tally: reports.Tally) -> None:
  rejected = [n for n in tally.notes if n.action == reports.REJECTED]
  if rejected:
    lines = [
        f'{n.level} {n.id}: {n.reason} ({n.file}) {n.detail}'
        for n in rejected[:20]
    ]
    more = len(rejected) - len(lines)
    lines += [f'… and {more} more'] if more else []
    raise RejectError(
        f'--strict, and {len(rejected)} rejected:\n' + '\n'.join(lines)
    )
