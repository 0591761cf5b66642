"""RefCOCO/+/g in MDETR layout to records, one a picture (RefA).

Rows (one an expression) are regrouped by picture and by object; objects are
ordered by their annotation id, expressions keep the order of the files.

The record is that of `referred_objects`.

RefA: ashkamath/mdetr `scripts/fine-tuning/refexp_coco_format.py`.
"""

from collections.abc import Sequence
import pathlib
from typing import Any

from tasks.build import boxes
from tasks.build import kinds
from tasks.build import pictures
from tasks.build import referred_objects
from tasks.build import reports
from tasks.build import shards


class RowError(Exception):
  """A row that cannot be used; its first argument is the reason."""


def read_split(
    directory: pathlib.Path,
    files: Sequence[pathlib.Path],
    folders: Sequence[pathlib.Path],
    num_shards: int | None,
) -> shards.Split:
  """Reads annotation files into the plan of a split.

  Args:
    directory: where the shards go.
    files: in MDETR layout.
    folders: where the pictures are.
    num_shards: None takes the reference's number.

  Returns:
    The split; `tally` tells what the files lacked.
  """
  tally = reports.Tally()
  images: dict[int, referred_objects.ImageRows] = {}
  for file, document in kinds.read_documents(files, tally, kinds.MDETR):
    _group_rows(document, str(file), images, tally)
  for image in images.values():
    names = (image.file_name, *pictures.coco_names(image.image_id))
    image.path = pictures.find_or_none(folders, names)
  units = [
      shards.Unit(images[image_id].path, images[image_id])
      for image_id in sorted(images)
  ]
  return shards.Split(
      directory=directory,
      units=units,
      convert=referred_objects.convert_image,
      tally=tally,
      arguments={'format': 'refcoco'},
      sources=shards.checksums(files),
      num_shards=num_shards
      or shards.default_num_shards(len(units), referred_objects.LEAST_SHARDS),
  )


def _group_rows(
    document: dict[str, Any],
    file: str,
    images: dict[int, referred_objects.ImageRows],
    tally: reports.Tally,
) -> None:
  """Adds the rows of one file to their pictures."""
  annotations: dict[Any, list[dict[str, Any]]] = {}
  for annotation in document.get('annotations', []):
    annotations.setdefault(annotation.get('image_id'), []).append(annotation)
  categories = sorted(c['id'] for c in document.get('categories', []))
  labels = {category: rank for rank, category in enumerate(categories)}
  has_masks = any(
      'segmentation' in a for a in document.get('annotations', [])
  )
  for number, row in enumerate(document['images']):
    tally.read['expression'] += 1
    name = f'row {number}'
    try:
      if not isinstance(row, dict):
        raise RowError('bad_row', f'found {row!r}'[:80])
      name = row.get('id', name)
      image = _image_of(row, file, images, tally)
      own = annotations.get(row.get('id'), [])
      if len(own) != 1:
        reason = 'several_targets' if own else 'no_target'
        raise RowError(reason, f'{len(own)} annotations name this row')
      _add_expression(row, own[0], labels, has_masks, image)
    except RowError as e:
      tally.reject('expression', name, e.args[0], file, e.args[1])


def _integer(row: dict[str, Any], *keys: str) -> int:
  """The first of the keys that a row has, as a whole number."""
  for key in keys:
    if key in row:
      try:
        return int(row[key])
      except (TypeError, ValueError):
        raise RowError('bad_id', f'{key} is {row[key]!r}') from None
  raise RowError('missing_field', f'none of {keys} is there')


def _image_of(
    row: dict[str, Any],
    file: str,
    images: dict[int, referred_objects.ImageRows],
    tally: reports.Tally,
) -> referred_objects.ImageRows:
  """The picture of a row, made on its first row."""
  image_id = _integer(row, 'original_id', 'original_img_id')
  if not isinstance(row.get('file_name'), str):
    raise RowError('missing_field', f'file_name is {row.get("file_name")!r}')
  if image_id not in images:
    tally.read['image'] += 1
    images[image_id] = referred_objects.ImageRows(
        image_id, row['file_name'], file
    )
  return images[image_id]


def _add_expression(
    row: dict[str, Any],
    annotation: dict[str, Any],
    labels: dict[int, int],
    has_masks: bool,
    image: referred_objects.ImageRows,
) -> None:
  """Adds a row's expression to its object."""
  caption = row.get('caption')
  if not isinstance(caption, str) or not any(c.isalnum() for c in caption):
    raise RowError('no_words', f'caption is {caption!r}')
  try:
    bbox = boxes.parse(annotation.get('bbox'))
  except boxes.BoxError as e:
    raise RowError(e.reason, e.detail) from e
  object_id = _integer(annotation, 'original_id', 'id')
  expression = referred_objects.Expression(
      refexp_id=_integer(
          row if 'refexp_id' in row else annotation, 'refexp_id', 'id'
      ),
      raw=str(row.get('raw', caption)),
      sent=' '.join(caption.split()),
      sent_pos=_named_part(caption, annotation.get('tokens_positive')),
  )
  target = image.targets.setdefault(
      (object_id, *bbox),
      referred_objects.Target(
          object_id=object_id,
          bbox=bbox,
          label=labels.get(annotation.get('category_id'), -1),
          segmentation=None,
          expects_mask=has_masks,
      ),
  )
  # The first row that has a mask gives it to the object.
  target.segmentation = target.segmentation or annotation.get('segmentation')
  target.expressions.append(expression)
  image.declared_hw.add((row.get('height'), row.get('width')))


def _named_part(caption: str, spans: list[list[int]] | None) -> str:
  """Text from the first span's start to the last one's end, else all of it."""
  if spans:
    part = caption[min(s for s, _ in spans) : max(e for _, e in spans)]
    if part.strip():
      return ' '.join(part.split())
  return ' '.join(caption.split())
