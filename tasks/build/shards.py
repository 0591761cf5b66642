"""Converts the pictures of a split into ArrayRecord shards.

A shard that is complete and was made from the same input is kept by the next
run, so a conversion that was cut off goes on where it stopped. The manifest
comes last: a split without one is not done.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import sys
from typing import Any

import tqdm

from tasks.build import reports
from tasks.build import shard_files
from tasks.build import statistics

# Of the records: readers refuse another.
SCHEMA_VERSION = 1
# Of the side files: a shard with an older one is made anew. 2 added names,
# bounds, digests and statistics.
_SIDE_FILE_VERSION = 2
MANIFEST = shard_files.MANIFEST
REJECTS = 'rejects.jsonl'

Unit = shard_files.Unit
Converted = shard_files.Converted
# `workers.write_all` of some processes, or `write_all` of a Beam pipeline: from
# shards, and a function of the units that are done, to written shards.
WriteAll = Callable[
    [Sequence[shard_files.Job], Callable[[int], None]],
    Iterator[shard_files.Shard],
]


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


class RejectError(Exception):
  """Something was left out although the run is strict."""


class BusyError(Exception):
  """Another conversion writes into the folder."""


def checksums(files: Sequence[pathlib.Path]) -> list[dict[str, str]]:
  """Names annotation files and their SHA-256, in the given order."""
  return [
      {'file': f.name, 'sha256': shard_files.file_sha256(f)} for f in files
  ]


def default_num_shards(num_units: int, least: int) -> int:
  """The reference's number, 2^(floor(log2 n) - 10), within `least` and n."""
  return max(1, min(num_units, max(least, 2 ** (num_units.bit_length() - 11))))


def build_split(
    split: Split, write_all: WriteAll, strict: bool
) -> reports.Tally:
  """Writes the shards of a split, its report and its manifest.

  Args:
    split: what to convert.
    write_all: writes the shards that are not there yet.
    strict: whether anything left out is an error.

  Returns:
    What was read, written, left out and mended.

  Raises:
    RejectError: if something was left out and the run is strict; nothing has
      been renamed then.
    BusyError: if another conversion on this machine writes there.
  """
  if strict:
    _refuse_rejects(split.tally)
  split.directory.mkdir(parents=True, exist_ok=True)
  with _alone_in(split.directory):
    return _build(split, write_all, strict)


@contextlib.contextmanager
def _alone_in(directory: pathlib.Path) -> Iterator[None]:
  """Keeps other conversions out, who would remove what this one writes.

  The lock goes with the process, however that ends.
  """
  opened = os.open(directory, os.O_RDONLY)
  try:
    try:
      fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      raise BusyError(
          f'{directory}: another conversion writes there. Wait for it, or give'
          ' another --output.'
      ) from e
    except OSError as e:
      # Some network file systems have no lock for a folder.
      print(
          f'{directory}: not locked ({e.strerror}); let no other conversion'
          ' write there meanwhile.',
          file=sys.stderr,
      )
    yield
  finally:
    os.close(opened)


def _build(split: Split, write_all: WriteAll, strict: bool) -> reports.Tally:
  """Does what `build_split` says, alone in the folder."""
  directory = split.directory
  by_file: dict[str, shard_files.Shard] = {}
  jobs = []
  for job in _jobs(split):
    kept = shard_files.kept_shard(job)
    if kept:
      by_file[kept.file] = kept
    else:
      jobs.append(job)
  num_to_do = sum(len(job.units) for job in jobs)
  # Its rate is that of this run: kept pictures stand in `initial`.
  progress = tqdm.tqdm(
      total=len(split.units),
      initial=len(split.units) - num_to_do,
      desc=directory.name,
      unit='image',
      disable=None,
  )
  with progress, _discard_temporaries(directory):
    for shard in write_all(jobs, progress.update):
      by_file[shard.file] = shard
      if not strict:
        shard_files.finish_shard(directory, shard)
    shards = [by_file[file] for file in sorted(by_file)]
    tally = reports.Tally()
    tally.add(split.tally)
    for shard in shards:
      tally.add(shard.tally)
    if strict:
      _refuse_rejects(tally)
      for shard in shards:
        shard_files.finish_shard(directory, shard)
  _write_reports(split, shards, tally)
  _remove_strangers(directory, set(by_file))
  return tally


def _jobs(split: Split) -> Iterator[shard_files.Job]:
  """The shards of a split, of nearly equal parts of its units."""
  num_units = len(split.units)
  for index in range(split.num_shards):
    start = index * num_units // split.num_shards
    stop = (index + 1) * num_units // split.num_shards
    units = split.units[start:stop]
    yield shard_files.Job(
        directory=split.directory,
        index=index,
        file=shard_files.shard_name(index, split.num_shards),
        fingerprint=_fingerprint(split, index, units),
        convert=split.convert,
        units=units,
    )


def _fingerprint(split: Split, index: int, units: Sequence[Unit]) -> str:
  """A hash of all that the bytes of a shard depend on."""
  pictures = []
  for unit in units:
    stat = unit.path.stat() if unit.path else None
    pictures.append(
        [str(unit.path), stat and stat.st_size, stat and stat.st_mtime_ns]
    )
  parts = [
      SCHEMA_VERSION,
      _SIDE_FILE_VERSION,
      shard_files.WRITER_OPTIONS,
      split.arguments,
      split.sources,
      [index, split.num_shards],
      pictures,
  ]
  return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _write_reports(
    split: Split, shards: Sequence[shard_files.Shard], tally: reports.Tally
) -> None:
  """Writes the line of every note, then the manifest."""
  figures = statistics.Statistics()
  for shard in shards:
    figures.add(shard.statistics)
  lines = [
      json.dumps(dataclasses.asdict(note), ensure_ascii=False) + '\n'
      for note in tally.notes
  ]
  shard_files.write_text(split.directory / REJECTS, ''.join(lines))
  manifest = {
      'schema_version': SCHEMA_VERSION,
      'arguments': split.arguments,
      'sources': split.sources,
      'counts': tally.counts(),
      'reasons': tally.reasons(),
      **({'fields': tally.audit()} if tally.fields else {}),
      'statistics': figures.summary(),
      'num_records': sum(len(shard.names) for shard in shards),
      'shards': [
          {
              'file': shard.file,
              'num_records': len(shard.names),
              'sha256': shard.sha256,
          }
          for shard in shards
      ],
  }
  shard_files.write_text(
      split.directory / MANIFEST, json.dumps(manifest, indent=2) + '\n'
  )


@contextlib.contextmanager
def _discard_temporaries(directory: pathlib.Path) -> Iterator[None]:
  """Removes what an earlier or failing run left under temporary names."""
  try:
    for path in shard_files.temporaries(directory):
      path.unlink()
    yield
  finally:
    for path in shard_files.temporaries(directory):
      path.unlink()


def _remove_strangers(directory: pathlib.Path, files: set[str]) -> None:
  """Removes the shards of an earlier run with another number of shards."""
  for path in directory.glob('data-*-of-*.array_record'):
    if path.name not in files:
      shard_files.side_file(path).unlink(missing_ok=True)
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
