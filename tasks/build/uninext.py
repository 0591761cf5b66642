"""RefCOCO-like lists of UNINEXT and SeqTR to records, one a picture (RefA).

A file holds a list of objects a split; `#` after its name chooses the split.
Rows name neither object nor expression: both are numbered from 0 in the order
of the file, over all sources, so that a part keeps its numbers. The picture
is COCO's of 2014 for `data_source` coco, else `<image_id>.jpg`. The record is
that of `referred_objects`.

RefA: MasterBin-IIAU/UNINEXT `conversion/`, sean-zhuh/SeqTR `seqtr/datasets/`.
"""

from collections.abc import Collection, Sequence
import pathlib
from typing import Any

from tasks.build import boxes
from tasks.build import kinds
from tasks.build import pictures
from tasks.build import referred_objects
from tasks.build import reports
from tasks.build import shards
from tasks.build import words

DATA_SOURCES = ('coco', 'vg', 'flickr')

# Key of a picture: data source and image id.
_Images = dict[tuple[str, int], referred_objects.ImageRows]


class RowError(Exception):
  """A row that cannot be used; reason and detail are its arguments."""


def read_split(
    directory: pathlib.Path,
    files: Sequence[pathlib.Path],
    folders: Sequence[pathlib.Path],
    num_shards: int | None,
    *,
    part: str | None = None,
    data_source: str | None = None,
) -> shards.Split:
  """Reads annotation files into the plan of a split.

  Args:
    directory: where the shards go.
    files: in UNINEXT's layout.
    folders: where the pictures are.
    num_shards: None takes the reference's number.
    part: which list of the files, None for the only one.
    data_source: takes only rows of this source; None takes all. It is also
      the source of rows that name none (coco if None).

  Returns:
    The split; `tally` tells what the files lacked.
  """
  tally = reports.Tally()
  images: _Images = {}
  numbers = {'object': 0, 'expression': 0}
  for file, document in kinds.read_documents(files, tally, kinds.UNINEXT):
    rows = _rows_of_part(document, part, file, tally)
    # A source without any mask has boxes only, which is no fault of its rows.
    masked = {
        _source_of(row, data_source)
        for row in rows
        if isinstance(row, dict) and 'mask' in row
    }
    for number, row in enumerate(rows):
      _add_row(
          row,
          f'{file.name} row {number}',
          str(file),
          data_source,
          masked,
          images,
          numbers,
          tally,
      )
  for (source, _), image in images.items():
    image.path = pictures.find_or_none(folders, _names(source, image.image_id))
  units = [shards.Unit(images[key].path, images[key]) for key in sorted(images)]
  return shards.Split(
      directory=directory,
      units=units,
      convert=referred_objects.convert_image,
      tally=tally,
      arguments={'format': 'uninext', 'part': part, 'source': data_source},
      sources=shards.checksums(files),
      num_shards=num_shards
      or shards.default_num_shards(len(units), referred_objects.LEAST_SHARDS),
  )


def _names(source: str, image_id: int) -> tuple[str, ...]:
  """File names that the picture may have."""
  if source == 'coco':
    return pictures.coco_names(image_id)
  return (f'{image_id}.jpg',)


def _source_of(row: Any, data_source: str | None) -> Any:
  """The data source of a row, or that of the run where it names none."""
  default = data_source or 'coco'
  return row.get('data_source', default) if isinstance(row, dict) else default


def _rows_of_part(
    document: dict[str, Any],
    part: str | None,
    file: pathlib.Path,
    tally: reports.Tally,
) -> list[Any]:
  """The list of a part; a part that is not there is rejected as a whole."""
  if part is None and len(document) == 1:
    [part] = document
  if part in document:
    return document[part]
  tally.read['part'] += 1
  detail = f'name one of {sorted(document)}, as in {file.name}#NAME'
  tally.reject('part', part, 'no_such_part', str(file), detail)
  return []


def _add_row(
    row: Any,
    name: str,
    file: str,
    data_source: str | None,
    masked: Collection[Any],
    images: _Images,
    numbers: dict[str, int],
    tally: reports.Tally,
) -> None:
  """Adds an object and its expressions to its picture, or rejects them."""
  expressions = row.get('expressions') if isinstance(row, dict) else None
  count = len(expressions) if isinstance(expressions, list) else 0
  object_id, first = numbers['object'], numbers['expression']
  numbers['object'] += 1
  numbers['expression'] += count
  source = _source_of(row, data_source)
  if data_source is not None and source != data_source:
    return
  tally.read['expression'] += count
  try:
    target = _target(row, object_id, source in masked)
    image = _image_of(row, source, file, images, tally)
  except RowError as e:
    tally.read['object'] += 1
    tally.reject('object', name, e.args[0], file, e.args[1])
    for number in range(first, first + count):
      tally.reject('expression', number, e.args[0], file, name)
    return
  for number, text in enumerate(expressions or [], first):
    try:
      sent = words.parse(text)
    except words.WordsError as e:
      tally.reject('expression', number, 'no_words', file, f'{name}: {e}')
      continue
    target.expressions.append(
        referred_objects.Expression(number, text, sent, sent)
    )
  if not target.expressions:
    tally.read['object'] += 1
    tally.reject('object', name, 'no_expression_left', file)
    return
  key = (object_id, *target.bbox)
  if any(t.bbox == target.bbox for t in image.targets.values()):
    tally.note('object', object_id, 'box_repeated', file, name)
  image.targets[key] = target
  image.declared_hw.add((row.get('height'), row.get('width')))


def _target(
    row: Any, object_id: int, has_masks: bool
) -> referred_objects.Target:
  """The object of a row, without its expressions."""
  if not isinstance(row, dict):
    raise RowError('bad_row', f'found {row!r}'[:80])
  if not isinstance(row.get('expressions'), list):
    raise RowError(
        'missing_field', f'expressions is {row.get("expressions")!r}'[:80]
    )
  try:
    bbox = boxes.parse(row.get('bbox'))
  except boxes.BoxError as e:
    raise RowError(e.reason, e.detail) from e
  category = row.get('category_id')
  return referred_objects.Target(
      object_id=object_id,
      bbox=bbox,
      label=category if isinstance(category, int) else -1,
      segmentation=row.get('mask'),
      expects_mask=has_masks,
  )


def _image_of(
    row: dict[str, Any],
    source: Any,
    file: str,
    images: _Images,
    tally: reports.Tally,
) -> referred_objects.ImageRows:
  """The picture of a row, made on its first row."""
  if source not in DATA_SOURCES:
    raise RowError(
        'bad_field', f'data_source is {source!r}; known: {DATA_SOURCES}'
    )
  try:
    image_id = int(row['image_id'])
  except (KeyError, TypeError, ValueError):
    raise RowError('bad_id', f'image_id is {row.get("image_id")!r}') from None
  key = (source, image_id)
  if key not in images:
    tally.read['image'] += 1
    names = ' or '.join(_names(source, image_id))
    images[key] = referred_objects.ImageRows(image_id, names, file)
  return images[key]
