"""TFRecords of the original PixelLLM scripts to records of ours.

`original_layouts` converts them; here files are opened, damage is told, and
what became of every field is put into the report.
"""

from collections.abc import Sequence
import pathlib

from tasks.build import field_audit
from tasks.build import original_layouts
from tasks.build import records
from tasks.build import reports
from tasks.build import shards
from tasks.build import tfrecords


def read_split(
    directory: pathlib.Path,
    files: Sequence[pathlib.Path],
    num_shards: int | None,
) -> shards.Split:
  """Finds the records of TFRecord files; the plan of a split.

  Args:
    directory: where the shards go.
    files: TFRecords of one layout.
    num_shards: None takes the reference's number.

  Returns:
    The split; a file that is damaged or of an unknown layout is left out as a
    whole, and `tally` tells why.
  """
  tally = reports.Tally()
  units: list[shards.Unit] = []
  least = 1
  for file in files:
    tally.read['file'] += 1
    try:
      found = list(tfrecords.offsets(file))
      least = max(least, _least_shards(file, found))
    except tfrecords.TfRecordError as e:
      tally.reject('file', file.name, e.args[0], str(file), e.args[1])
      continue
    except records.RecordError as e:
      tally.reject('file', file.name, 'wrong_kind', str(file), str(e))
      continue
    tally.written['file'] += 1
    for offset in found:
      stored = original_layouts.Stored(file, offset, len(units))
      units.append(shards.Unit(file, stored))
  return shards.Split(
      directory=directory,
      units=units,
      convert=convert_record,
      tally=tally,
      arguments={'format': 'tfrecord'},
      sources=shards.checksums(files),
      num_shards=num_shards or shards.default_num_shards(len(units), least),
  )


def _least_shards(file: pathlib.Path, found: Sequence[int]) -> int:
  """Checks the layout of the first record that is not damaged."""
  error = None
  for offset in found:
    try:
      data = tfrecords.read(file, offset)
      return original_layouts.layout_of(data).least_shards
    except tfrecords.TfRecordError as e:
      error = e
  if error is not None:
    raise error
  return 1  # An empty file, as of a writer with many shards.


def convert_record(stored: original_layouts.Stored) -> shards.Converted:
  """Makes a record of ours of a TFRecord.

  Args:
    stored: where it stands.

  Returns:
    The record, or None where it was left out; what became of each field is in
    its tally.
  """
  tally = reports.Tally()
  tally.read['tfrecord'] += 1

  def reject(reason: str, detail: str) -> shards.Converted:
    tally.reject('tfrecord', stored, reason, str(stored.path), detail)
    return shards.Converted(None, tally)

  try:
    data = tfrecords.read(stored.path, stored.offset)
    original = original_layouts.parse(data, stored, tally)
    converted = original_layouts.layout_of(data).convert(original)
  except tfrecords.TfRecordError as e:
    return reject(*e.args)
  except records.RecordError as e:
    return reject('bad_record', str(e))
  tally.add(converted.tally)
  tally.fields.update(
      field_audit.compare(
          original.features, original.lists, converted.record
      )
  )
  if converted.record is None:
    return reject('nothing_left', 'the lines of its picture tell why')
  tally.written['tfrecord'] += 1
  return shards.Converted(converted.record, tally)
