"""What became of every field of a TFRecord, value by value.

Values are compared between the parsed TFRecord and the bytes of the record
that was written, floats bit by bit, masks pixel by pixel. Rows are paired by
their ids, so that one that was left out does not shift the others.
"""

import collections
from collections.abc import Iterable, Sequence
import io
from typing import Any

import numpy as np
import PIL
from PIL import Image

from tasks.build import records

SAME, CHANGED, LEFT_OUT, ADDED = 'same', 'changed', 'left_out', 'added'
OUTCOMES = (SAME, CHANGED, LEFT_OUT, ADDED)

# Field to key to value.
_Fields = dict[str, dict[Any, Any]]

_SINGLE = (
    'image',
    'image/encoded',
    'image/id',
    'img_id',
    'meta/dataset_id',
)
_LENGTHS = 'ragged_row_lengths_0'
# Ours for a list of sequence examples.
_FLATTENED = ('caption/utterance/ragged_flat_values',)


def compare(
    source: records.Features,
    lists: dict[str, list[Any]],
    written: bytes | None,
) -> collections.Counter[tuple[str, str]]:
  """Compares the fields of a TFRecord with those of the record written.

  Args:
    source: features of the TFRecord.
    lists: its feature lists.
    written: the record, None where it was left out.

  Returns:
    (field, outcome) to the number of values. A field that no converter knows
    counts as left out; one that the TFRecord does not have as added.
  """
  outcomes: collections.Counter[tuple[str, str]] = collections.Counter()
  target = records.Features(written) if written is not None else None
  found = _fields(target, {}) if target else {}
  names = {*source.names(), *lists}
  fields = _fields(source, lists)
  for name, values in fields.items():
    others = found.get(name, {})
    for key, value in values.items():
      if key not in others:
        outcomes[name, LEFT_OUT] += 1
      else:
        outcome = SAME if others[key] == value else CHANGED
        outcomes[name, outcome] += 1
  structure = {name for name in names if name.endswith(_LENGTHS)}
  for name in names - set(fields) - structure:
    outcomes[name, LEFT_OUT] += 1
  if target:
    for name in set(found) | set(target.names()):
      if name not in {*names, *fields, *_FLATTENED} and _LENGTHS not in name:
        outcomes[name, ADDED] += len(found.get(name, [0]))
  return outcomes


def table(outcomes: collections.Counter[tuple[str, str]]) -> str:
  """The audit as text, a line a field."""
  lines = [f'  {"field":44}' + ''.join(f'{o:>10}' for o in OUTCOMES)]
  for field in sorted({field for field, _ in outcomes}):
    numbers = ''.join(f'{outcomes[field, o]:>10,}' for o in OUTCOMES)
    lines.append(f'  {field:44}{numbers}')
  return '\n'.join(lines)


def _keyed(keys: Iterable[Any], values: Sequence[Any]) -> dict[Any, Any]:
  """Values by their key and how often it came before."""
  seen: collections.Counter[Any] = collections.Counter()
  result = {}
  for key, value in zip(keys, values):
    result[key, seen[key]] = value
    seen[key] += 1
  return result


def _fields(features: records.Features, lists: dict[str, list[Any]]) -> _Fields:
  """The fields of a TFRecord or of a record of ours."""
  fields: _Fields = {
      name: {'': features.values(name)} for name in _SINGLE if name in features
  }
  if 'regions/bbox' in features:
    ids = features.integers('regions/id')
    fields['regions/id'] = _keyed(ids, ids)
    fields['regions/bbox'] = _keyed(ids, _rows(features, 'regions/bbox'))
    fields['regions/phrase'] = _keyed(ids, features.blobs('regions/phrase'))
  if 'objects/bbox' in features:
    fields |= _object_fields(features)
  if 'conversations/human' in features:
    questions = features.blobs('conversations/human')
    answers = features.blobs('conversations/agent')
    fields['conversations/human'] = _keyed(questions, questions)
    fields['conversations/agent'] = _keyed(questions, answers)
  if 'caption/string' in features:
    fields |= _narrative_fields(features, lists)
  return fields


def _rows(features: records.Features, name: str) -> list[bytes]:
  return [row.tobytes() for row in features.floats(name, 4)]


def _object_fields(features: records.Features) -> _Fields:
  ids = features.integers('objects/id')
  fields: _Fields = {'objects/bbox': _keyed(ids, _rows(features, 'objects/bbox'))}
  for name in ('objects/id', 'objects/area', 'objects/label'):
    fields[name] = _keyed(ids, features.integers(name))
  if 'objects/mask' in features:
    masks = [_pixels(png) for png in features.blobs('objects/mask')]
    fields['objects/mask'] = _keyed(ids, masks)
  prefix = 'objects/refexp'
  numbers = f'{prefix}/refexp_id/ragged_flat_values'
  lengths = features.integers(f'{prefix}/refexp_id/{_LENGTHS}')
  owners = np.repeat(ids, lengths).tolist()
  keys = list(zip(owners, features.integers(numbers)))
  for name in ('refexp_id', 'raw', 'sent', 'sent_pos'):
    flat = f'{prefix}/{name}/ragged_flat_values'
    fields[flat] = _keyed(keys, features.values(flat))
  return fields


def _pixels(png: bytes) -> Any:
  """What a mask shows, or its bytes where it is no picture."""
  try:
    with Image.open(io.BytesIO(png)) as picture:
      inside = np.asarray(picture.convert('L')) > 0
  except (PIL.UnidentifiedImageError, OSError, SyntaxError):
    return png
  return inside.shape, inside.tobytes()


def _narrative_fields(
    features: records.Features, lists: dict[str, list[Any]]
) -> _Fields:
  """Of a TFRecord from its lists, of a record of ours from its rows."""
  captions = features.blobs('caption/string')
  fields: _Fields = {'caption/string': _keyed(captions, captions)}
  if lists:
    columns = {
        name: [
            values
            if name == 'caption/utterance'
            else np.array(values, np.float32).tobytes()
            for values in entries
        ]
        for name, entries in lists.items()
    }
  else:
    flat = 'caption/utterance/ragged_flat_values'
    lengths = f'caption/{_LENGTHS}'
    columns = {
        'caption/utterance': features.in_rows(
            features.blobs(flat), lengths, flat
        )
    }
    for part, size in (('center', 2), ('bbox', 4), ('point', 32)):
      name = f'caption/{part}'
      rows = features.in_rows(features.floats(name, size), lengths, name)
      columns[name] = [row.tobytes() for row in rows]
  for name, values in columns.items():
    fields[name] = _keyed(captions, values)
  return fields
