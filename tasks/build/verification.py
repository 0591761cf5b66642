"""Whether a built set is whole: bytes, records, pictures, boxes, masks."""

from collections.abc import Iterator, Sequence
import concurrent.futures
import dataclasses
import hashlib
import io
import multiprocessing
import pathlib
from typing import Any

import numpy as np
import PIL
from PIL import Image
from pycocotools import mask as mask_lib
import tqdm

from tasks.build import built_sets
from tasks.build import records
from tasks.build import shard_files
from tasks.build import statistics
from tasks.build import workers as workers_lib

# Relative boxes are float32.
_TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True)
class Fault:
  """Something that is not as the converter left it.

  Attributes:
    split: the folder.
    shard: name of the file, '' where it is none's.
    record: its number in the shard, None where no record is at fault.
    name: id of the record's picture, '' where that is not known.
    reason: a short word, the same for all cases of a kind.
    detail: what was found.
  """

  split: pathlib.Path
  shard: str
  record: int | None
  name: str
  reason: str
  detail: str

  def __str__(self) -> str:
    where = str(self.split / self.shard)
    if self.record is not None:
      where += f' record {self.record}'
    if self.name:
      where += f' (id {self.name})'
    return f'{where}: {self.reason}: {self.detail}'


@dataclasses.dataclass
class _Checked:
  """What looking at one shard gave.

  Attributes:
    faults: in the order of the shard.
    figures: of the records that could be read.
  """

  faults: list[Fault]
  figures: statistics.Statistics


def verify(directory: pathlib.Path, workers: int) -> list[Fault]:
  """Checks every split in a folder, bytes and records.

  Args:
    directory: of a split, or of sets of them.
    workers: processes.

  Returns:
    What is wrong; empty where all is well.

  Raises:
    BuiltSetError: if there is nothing to check.
  """
  faults = []
  for split in built_sets.find_splits(directory):
    faults += _verify_split(split, workers)
  return faults


def _verify_split(split: pathlib.Path, workers: int) -> list[Fault]:
  """Checks one split."""
  manifest = built_sets.read_manifest(split)
  rows = manifest['shards']
  faults = list(_stray_files(split, {row['file'] for row in rows}))
  figures = statistics.Statistics()
  with tqdm.tqdm(
      total=manifest['num_records'],
      desc=f'{split.name}: verify',
      unit='record',
      disable=None,
  ) as progress:
    for row, checked in _check_all(split, rows, workers):
      faults += checked.faults
      figures.add(checked.figures)
      progress.update(row['num_records'])
  if not faults and figures.summary() != manifest['statistics']:
    differ = [
        f'{name}: {manifest["statistics"].get(name)} in the manifest,'
        f' {found} in the records'
        for name, found in figures.summary().items()
        if found != manifest['statistics'].get(name)
    ]
    detail = '; '.join(differ) or 'the manifest has more figures'
    faults.append(Fault(split, '', None, '', 'statistics_differ', detail))
  return faults


def _stray_files(split: pathlib.Path, known: set[str]) -> Iterator[Fault]:
  """Shards that the manifest does not name, which a glob would read."""
  for path in sorted(split.glob('*.array_record')):
    if path.name not in known:
      detail = f'{shard_files.MANIFEST} does not name it'
      yield Fault(split, path.name, None, '', 'stray_shard', detail)


def _check_all(
    split: pathlib.Path, rows: Sequence[dict[str, Any]], workers: int
) -> Iterator[tuple[dict[str, Any], _Checked]]:
  """Checks the shards of a split, in order."""
  if workers == 1 or len(rows) < 2:
    for row in rows:
      yield row, _check_shard(split, row)
    return
  with workers_lib.converter_environment():
    with concurrent.futures.ProcessPoolExecutor(
        min(workers, len(rows)), multiprocessing.get_context('spawn')
    ) as pool:
      yield from zip(rows, pool.map(_check_shard, [split] * len(rows), rows))


def _check_shard(split: pathlib.Path, row: dict[str, Any]) -> _Checked:
  """Checks a shard: first its bytes, then what its records hold."""
  path = split / row['file']
  checked = _Checked([], statistics.Statistics())

  def fault(
      reason: str, detail: str, record: int | None = None, name: str = ''
  ) -> None:
    checked.faults.append(
        Fault(split, path.name, record, name, reason, detail)
    )

  if not path.exists():
    fault('shard_missing', 'there is no such file')
    return checked
  content = path.read_bytes()
  numbers = list(range(row['num_records']))
  if hashlib.sha256(content).hexdigest() != row['sha256']:
    side = shard_files.read_side_file(path)
    if side is None or side.sha256 != row['sha256']:
      detail = f'no whole {shard_files.side_file(path).name} tells which record'
      fault('hash_differs', detail)
      return checked
    damaged = _damaged_parts(content, side)
    for part in damaged:
      if 0 < part <= len(numbers):
        begin, end = side.bounds[part - 1 : part + 1]
        detail = f'its bytes {begin} to {end} are not those that were written'
        fault('bytes_differ', detail, part - 1, side.names[part - 1])
      else:
        detail = 'before the first record' if part == 0 else 'in the index'
        fault('bytes_differ', f'{detail}; records are read from elsewhere')
    if {0, len(numbers) + 1} & set(damaged) or len(content) < side.bounds[-1]:
      return checked  # It cannot be opened for sure.
    numbers = [number for number in numbers if number + 1 not in damaged]
  try:
    with built_sets.open_shard(path) as read:
      for number in numbers:
        name = ''
        try:
          record = records.parse(read(number))
          name = record.name
          found = list(_record_faults(record))
          if not found:
            checked.figures.count(record)
        except records.RecordError as e:
          found = [('bad_record', str(e))]
        for reason, detail in found:
          fault(reason, detail, number, name)
  # ArrayRecord's only kind of error.
  except RuntimeError as e:
    fault('unreadable', str(e))
  return checked


def _damaged_parts(content: bytes, side: shard_files.Shard) -> list[int]:
  """Numbers of the parts that differ: 0 the head, i + 1 record i, the rest."""
  found = shard_files.digests(content, side.bounds)
  return [
      part
      for part, (a, b) in enumerate(zip(found, side.digests))
      if a != b
  ]


def _record_faults(record: records.Record) -> Iterator[tuple[str, str]]:
  """Reason and detail of all that is wrong with a record that parses."""
  size = (record.width, record.height)
  try:
    with Image.open(io.BytesIO(record.encoded)) as picture:
      picture.load()
      if picture.size != size:
        yield 'picture_size', f'{picture.size}, the record says {size}'
  # Pillow's decoders raise SyntaxError for broken PNG chunks.
  except (PIL.UnidentifiedImageError, OSError, SyntaxError, ValueError) as e:
    yield 'picture_broken', str(e)
  if not record.places:
    yield 'no_place', 'the record has a picture and nothing said of it'
  for number, place in enumerate(record.places):
    for reason, detail in _place_faults(place, record.height, record.width):
      yield reason, f'place {number}: {detail}'


def _place_faults(
    place: records.Place, height: int, width: int
) -> Iterator[tuple[str, str]]:
  if not place.texts or not all(text.strip() for text in place.texts):
    yield 'no_text', f'{place.texts}'
  if place.box is not None:
    x0, y0, x1, y1 = place.box
    # NaN compares False.
    inside = -_TOLERANCE <= min(x0, y0) and max(x1, y1) <= 1 + _TOLERANCE
    if not (inside and x0 < x1 and y0 < y1):
      yield 'box_outside', f'x0 y0 x1 y1 {place.box.tolist()} of 0 to 1'
  if place.trace is not None:
    trace = place.trace
    if not (np.isfinite(trace.centers).all() and np.isfinite(trace.points).all()):
      yield 'trace_not_finite', f'{len(trace.utterances)} utterances'
  if place.mask_png or place.mask_rle:
    yield from _mask_faults(place, height, width)


def _mask_faults(
    place: records.Place, height: int, width: int
) -> Iterator[tuple[str, str]]:
  """The picture of a mask and its run lengths must be the same pixels."""
  try:
    with Image.open(io.BytesIO(place.mask_png)) as picture:
      pixels = np.asarray(picture)
    lengths = mask_lib.decode(
        {'size': [height, width], 'counts': place.mask_rle}
    )
  except (PIL.UnidentifiedImageError, OSError, SyntaxError, ValueError) as e:
    yield 'mask_broken', str(e)
    return
  if pixels.shape != (height, width):
    yield 'mask_outside', f'{pixels.shape}, the picture {(height, width)}'
  elif not np.array_equal(pixels, lengths * np.uint8(255)):
    yield 'mask_differs', 'the PNG and the run lengths are different pixels'
