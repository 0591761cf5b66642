"""Objects and the expressions that refer to them: one record a picture.

Several annotation layouts (`refcoco`, `uninext`) read into `ImageRows`; what
they become is the same.

Record, in the names of the reference's TFRecords: `image` (bytes of the
file), `image/id`, `objects/{id,area,bbox,label}` (bbox relative y0 x0 y1 x1,
area of the box in whole pixels, label the rank of the category id),
`objects/refexp/{refexp_id,raw,sent,sent_pos}` as flat values and row lengths,
`objects/mask` (PNG, 0 and 255, empty for an object without mask). Added here:
`image/{file_name,height,width}`, `objects/mask_rle`.
"""

import dataclasses
from typing import Any

import numpy as np

from tasks.build import boxes
from tasks.build import example_proto
from tasks.build import pictures
from tasks.build import reports
from tasks.build import segmentations
from tasks.build import shards

LEAST_SHARDS = 8


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
    object_id: COCO annotation id, or a number where the layout has none.
    bbox: x, y, width, height in pixels.
    label: rank of the category id, or -1.
    segmentation: as in COCO, or None.
    expects_mask: whether its file has masks, so that a missing one is worth a
      line.
    expressions: in the order of the files.
    area: of the box in whole pixels; None takes that of the cut box.
  """

  object_id: int
  bbox: list[float]
  label: int
  segmentation: Any
  expects_mask: bool = True
  expressions: list[Expression] = dataclasses.field(default_factory=list)
  area: int | None = None


@dataclasses.dataclass
class ImageRows:
  """A picture and what was said about it.

  Attributes:
    image_id: of the picture.
    file_name: as in the rows.
    annotation_file: where the rows are from.
    path: of the picture, None if it is not there.
    targets: object id and box to object. Rows that disagree about the box
      stay apart, so that a bad one does not take the others with it.
    declared_hw: the (height, width) that the rows give.
  """

  image_id: int
  file_name: str
  annotation_file: str
  path: pictures.PictureFile | None = None
  targets: dict[tuple[Any, ...], Target] = dataclasses.field(
      default_factory=dict
  )
  declared_hw: set[tuple[Any, Any]] = dataclasses.field(default_factory=set)


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
    picture = pictures.read_picture(image.path, image.file_name)
  except pictures.PictureError as e:
    where = str(image.path or image.annotation_file)
    for target in targets:
      _reject_target(target, e.reason, where, '', tally)
    tally.reject('image', image.image_id, e.reason, where, e.detail)
    return shards.Converted(None, tally)
  file = str(image.path)
  pictures.note_oddities(
      picture, image.path, image.image_id, image.declared_hw, tally
  )
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
  try:
    box, cut, detail = boxes.clip(target.bbox, picture.height, picture.width)
  except boxes.BoxError as e:
    _reject_target(target, e.reason, file, e.detail, tally)
    return None
  if cut:
    tally.repair('object', target.object_id, 'box_clipped', file, detail)
  return box


def _draw(
    target: Target,
    picture: pictures.Picture,
    file: str,
    tally: reports.Tally,
) -> segmentations.Mask:
  """The object's mask; an empty one, and a line, where it lacks one."""
  if target.segmentation is None and not target.expects_mask:
    return segmentations.Mask(b'', b'')
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
  xyxy = np.stack([box for _, box, _ in objects])
  areas = np.prod(xyxy[:, 2:] - xyxy[:, :2], axis=1).astype(np.int64)
  lengths = [len(target.expressions) for target in targets]
  values: dict[str, example_proto.Value] = {
      'image': picture.encoded,
      'image/id': image.image_id,
      'image/file_name': image.path.name,
      'image/height': picture.height,
      'image/width': picture.width,
      'objects/id': [target.object_id for target in targets],
      'objects/area': [
          int(area) if target.area is None else target.area
          for target, area in zip(targets, areas)
      ],
      'objects/bbox': boxes.to_relative_yxyx(
          xyxy, picture.height, picture.width
      ),
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
