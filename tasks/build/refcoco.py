"""RefCOCO/+/g in MDETR layout to records, one a picture (RefA).

Rows (one an expression) are regrouped by picture and by object; objects are
ordered by their annotation id, expressions keep the order of the files.

Record, in the names of the reference's TFRecords: `image` (bytes of the
file), `image/id`, `objects/{id,area,bbox,label}` (bbox relative y0 x0 y1 x1,
area of the box in whole pixels, label the rank of the category id),
`objects/refexp/{refexp_id,raw,sent,sent_pos}` as flat values and row lengths,
`objects/mask` (PNG, 0 and 255, empty for an object without mask). Added here:
`image/{file_name,height,width}`, `objects/mask_rle`.

RefA: ashkamath/mdetr `scripts/fine-tuning/refexp_coco_format.py`.
"""

from collections.abc import Sequence
import dataclasses
import math
import pathlib
from typing import Any

import numpy as np

from tasks.build import example_proto
from tasks.build import kinds
from tasks.build import pictures
from tasks.build import reports
from tasks.build import segmentations
from tasks.build import shards

LEAST_SHARDS = 8

# A box that ends this little outside is rounding, not worth a line.
_TOLERANCE = 0.01


@dataclasses.dataclass(frozen=True)
class Expression:
  """One row of a file.

  Attributes:
    refexp_id: of the expression.
    raw: as it was typed.
    sent: with single blanks.
    sent_pos: the part that names the object.
  """

  refexp_id: int
  raw: str
  sent: str
  sent_pos: str


@dataclasses.dataclass
class Target:
  """An object and its expressions.

  Attributes:
    object_id: COCO annotation id.
    bbox: x, y, width, height in pixels.
    label: rank of the category id, or -1.
    segmentation: as in COCO, or None.
    expressions: in the order of the files.
  """

  object_id: int
  bbox: list[float]
  label: int
  segmentation: Any
  expressions: list[Expression] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class ImageRows:
  """A picture and what was said about it.

  Attributes:
    image_id: COCO image id.
    file_name: as in the rows.
    annotation_file: where the rows are from.
    path: of the picture, None if it is not there.
    targets: COCO annotation id and box to object. Rows that disagree about
      the box stay apart, so that a bad one does not take the others with it.
    declared_hw: the (height, width) that the rows give.
  """

  image_id: int
  file_name: str
  annotation_file: str
  path: pathlib.Path | None = None
  targets: dict[tuple[Any, ...], Target] = dataclasses.field(
      default_factory=dict
  )
  declared_hw: set[tuple[Any, Any]] = dataclasses.field(default_factory=set)


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
  images: dict[int, ImageRows] = {}
  for file in files:
    tally.read['file'] += 1
    try:
      document = kinds.read_json(file, kinds.MDETR)
    except kinds.WrongKindError as e:
      tally.reject('file', file.name, 'wrong_kind', str(file), str(e))
      continue
    tally.written['file'] += 1
    _group_rows(document, str(file), images, tally)
  for image in images.values():
    names = (image.file_name, *pictures.coco_names(image.image_id))
    try:
      image.path = pictures.find_picture(folders, names)
    except pictures.PictureError:
      image.path = None
  units = [
      shards.Unit(images[image_id].path, images[image_id])
      for image_id in sorted(images)
  ]
  return shards.Split(
      directory=directory,
      units=units,
      convert=convert_image,
      tally=tally,
      arguments={'format': 'refcoco'},
      sources=shards.checksums(files),
      num_shards=num_shards
      or shards.default_num_shards(len(units), LEAST_SHARDS),
  )


def _group_rows(
    document: dict[str, Any],
    file: str,
    images: dict[int, ImageRows],
    tally: reports.Tally,
) -> None:
  """Adds the rows of one file to their pictures."""
  annotations: dict[Any, list[dict[str, Any]]] = {}
  for annotation in document.get('annotations', []):
    annotations.setdefault(annotation.get('image_id'), []).append(annotation)
  categories = sorted(c['id'] for c in document.get('categories', []))
  labels = {category: rank for rank, category in enumerate(categories)}
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
      _add_expression(row, own[0], labels, image)
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
    images: dict[int, ImageRows],
    tally: reports.Tally,
) -> ImageRows:
  """The picture of a row, made on its first row."""
  image_id = _integer(row, 'original_id', 'original_img_id')
  if not isinstance(row.get('file_name'), str):
    raise RowError('missing_field', f'file_name is {row.get("file_name")!r}')
  if image_id not in images:
    tally.read['image'] += 1
    images[image_id] = ImageRows(image_id, row['file_name'], file)
  return images[image_id]


def _add_expression(
    row: dict[str, Any],
    annotation: dict[str, Any],
    labels: dict[int, int],
    image: ImageRows,
) -> None:
  """Adds a row's expression to its object."""
  caption = row.get('caption')
  if not isinstance(caption, str) or not any(c.isalnum() for c in caption):
    raise RowError('no_words', f'caption is {caption!r}')
  bbox = annotation.get('bbox')
  if not isinstance(bbox, list) or len(bbox) != 4:
    raise RowError('missing_field', f'bbox is {bbox!r}')
  try:
    bbox = [float(side) for side in bbox]
  except (TypeError, ValueError):
    raise RowError('bad_field', f'bbox is {bbox!r}') from None
  object_id = _integer(annotation, 'original_id', 'id')
  expression = Expression(
      refexp_id=_integer(
          row if 'refexp_id' in row else annotation, 'refexp_id', 'id'
      ),
      raw=str(row.get('raw', caption)),
      sent=' '.join(caption.split()),
      sent_pos=_named_part(caption, annotation.get('tokens_positive')),
  )
  target = image.targets.setdefault(
      (object_id, *bbox),
      Target(
          object_id=object_id,
          bbox=bbox,
          label=labels.get(annotation.get('category_id'), -1),
          segmentation=None,
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


def convert_image(image: ImageRows) -> shards.Converted:
  """Makes the record of a picture.

  Args:
    image: its rows.

  Returns:
    The record, or None where no object is left.
  """
  tally = reports.Tally()
  targets = [image.targets[key] for key in sorted(image.targets)]
  tally.read['object'] += len(targets)
  try:
    if image.path is None:
      raise pictures.PictureError('image_missing', image.file_name)
    picture = pictures.read_picture(image.path)
  except pictures.PictureError as e:
    where = str(image.path or image.annotation_file)
    for target in targets:
      _reject_target(target, e.reason, where, '', tally)
    tally.reject('image', image.image_id, e.reason, where, e.detail)
    return shards.Converted(None, tally)
  file = str(image.path)
  _note_picture(image, picture, tally)
  objects = []
  for target in targets:
    box = _clip_box(target, picture, image.annotation_file, tally)
    if box is not None:
      mask = _draw(target, picture, image.annotation_file, tally)
      objects.append((target, box, mask))
      tally.written['expression'] += len(target.expressions)
  tally.written['object'] += len(objects)
  if not objects:
    tally.reject('image', image.image_id, 'no_object_left', file)
    return shards.Converted(None, tally)
  tally.written['image'] += 1
  return shards.Converted(_serialize(image, picture, objects), tally)


def _note_picture(
    image: ImageRows, picture: pictures.Picture, tally: reports.Tally
) -> None:
  """Notes what is odd about a picture that is kept."""
  oddities = []
  if picture.orientation:
    detail = f'orientation {picture.orientation}; pixels taken as stored'
    oddities.append(('exif_turned', detail))
  declared = image.declared_hw - {(picture.height, picture.width)}
  if declared:
    detail = f'rows say {sorted(declared, key=str)}, the picture has'
    detail += f' {(picture.height, picture.width)} and counts'
    oddities.append(('size_differs', detail))
  for reason, detail in oddities:
    tally.notes.append(
        reports.Note(
            'image',
            str(image.image_id),
            reports.NOTED,
            reason,
            str(image.path),
            detail,
        )
    )


def _reject_target(
    target: Target, reason: str, file: str, detail: str, tally: reports.Tally
) -> None:
  """Rejects an object and, with it, its expressions."""
  tally.reject('object', target.object_id, reason, file, detail)
  for expression in target.expressions:
    tally.reject(
        'expression',
        expression.refexp_id,
        reason,
        file,
        f'object {target.object_id}',
    )


def _clip_box(
    target: Target,
    picture: pictures.Picture,
    file: str,
    tally: reports.Tally,
) -> np.ndarray | None:
  """The box as x0, y0, x1, y1 within the picture, or None if none is left."""
  x, y, width, height = target.bbox
  detail = (
      f'bbox {target.bbox} in a picture of {picture.width}×{picture.height}'
  )
  if not all(math.isfinite(side) for side in (x, y, width, height)):
    _reject_target(target, 'bad_box', file, detail, tally)
    return None
  if width <= 0 or height <= 0:
    _reject_target(target, 'empty_box', file, detail, tally)
    return None
  box = np.array([x, y, x + width, y + height])
  sides = np.array([picture.width, picture.height] * 2, np.float64)
  clipped = np.clip(box, 0.0, sides)
  if np.any(clipped[2:] <= clipped[:2]):
    _reject_target(target, 'box_outside', file, detail, tally)
    return None
  if np.any(np.abs(clipped - box) > _TOLERANCE):
    tally.repair('object', target.object_id, 'box_clipped', file, detail)
  return clipped


def _draw(
    target: Target,
    picture: pictures.Picture,
    file: str,
    tally: reports.Tally,
) -> segmentations.Mask:
  """The object's mask; an empty one, and a line, where it has none."""
  try:
    mask = segmentations.to_mask(
        target.segmentation, picture.height, picture.width
    )
  except segmentations.SegmentationError as e:
    tally.repair('object', target.object_id, e.reason, file, str(e))
    return segmentations.Mask(b'', b'')
  if mask.dropped_polygons:
    tally.repair(
        'object',
        target.object_id,
        'polygon_dropped',
        file,
        f'{mask.dropped_polygons} polygons of fewer than 3 corners',
    )
  return mask


def _serialize(
    image: ImageRows,
    picture: pictures.Picture,
    objects: list[tuple[Target, np.ndarray, segmentations.Mask]],
) -> bytes:
  """Puts a picture and its objects into an Example."""
  targets = [target for target, _, _ in objects]
  boxes = np.stack([box for _, box, _ in objects])
  sides = np.array([picture.width, picture.height] * 2, np.float64)
  # x0 y0 x1 y1 to the reference's y0 x0 y1 x1.
  boxes_rel = (boxes / sides)[:, [1, 0, 3, 2]]
  areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
  lengths = [len(target.expressions) for target in targets]
  values: dict[str, example_proto.Value] = {
      'image': picture.encoded,
      'image/id': image.image_id,
      'image/file_name': image.path.name,
      'image/height': picture.height,
      'image/width': picture.width,
      'objects/id': [target.object_id for target in targets],
      'objects/area': areas.astype(np.int64),
      'objects/bbox': boxes_rel,
      'objects/label': [target.label for target in targets],
      'objects/mask': [mask.png for _, _, mask in objects],
      'objects/mask_rle': [mask.rle_counts for _, _, mask in objects],
  }
  for field in dataclasses.fields(Expression):
    name = f'objects/refexp/{field.name}'
    values[f'{name}/ragged_row_lengths_0'] = lengths
    values[f'{name}/ragged_flat_values'] = [
        getattr(expression, field.name)
        for target in targets
        for expression in target.expressions
    ]
  return example_proto.serialize(values)
