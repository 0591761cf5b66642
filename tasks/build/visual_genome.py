"""Visual Genome regions in GRiT's layout to records, one a picture (RefA).

Record, in the names of the reference's TFRecords: `image` (bytes of the
file), `img_id`, `regions/{id,bbox,phrase}` (bbox relative y0 x0 y1 x1, cut to
the picture). Added here: `image/{file_name,height,width}`. A picture without
a region is left out, as RefA's loader does.

RefA: JialianW/GRiT `grit/data/datasets/vg.py`.
"""

from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any

import numpy as np

from tasks.build import boxes
from tasks.build import example_proto
from tasks.build import kinds
from tasks.build import pictures
from tasks.build import reports
from tasks.build import shards
from tasks.build import words

LEAST_SHARDS = 64


@dataclasses.dataclass(frozen=True)
class Region:
  """A place in a picture and what was said of it.

  Attributes:
    region_id: of the annotation.
    bbox: x, y, width, height in pixels.
    phrase: with single blanks.
  """

  region_id: int
  bbox: list[float]
  phrase: str


@dataclasses.dataclass
class ImageRegions:
  """A picture and its regions.

  Attributes:
    image_id: of the picture.
    file_name: as in the file.
    annotation_file: where the regions are from.
    declared_hw: (height, width) as in the file.
    path: of the picture, None if it is not there.
    regions: in the order of the file.
  """

  image_id: int
  file_name: str
  annotation_file: str
  declared_hw: tuple[Any, Any]
  path: pictures.PictureFile | None = None
  regions: list[Region] = dataclasses.field(default_factory=list)


class RegionError(Exception):
  """A region that cannot be used; reason and detail are its arguments."""


def read_split(
    directory: pathlib.Path,
    files: Sequence[pathlib.Path],
    folders: Sequence[pathlib.Path],
    num_shards: int | None,
) -> shards.Split:
  """Reads annotation files into the plan of a split.

  Args:
    directory: where the shards go.
    files: in GRiT's layout.
    folders: where the pictures are.
    num_shards: None takes the reference's number.

  Returns:
    The split; `tally` tells what the files lacked.
  """
  tally = reports.Tally()
  images: dict[int, ImageRegions] = {}
  seen: set[int] = set()
  for file, document in kinds.read_documents(files, tally, kinds.REGIONS):
    _add_images(document['images'], str(file), images, tally)
    for number, annotation in enumerate(document['annotations']):
      tally.read['region'] += 1
      try:
        _add_region(annotation, images, seen)
      except RegionError as e:
        name = annotation.get('id', f'annotation {number}')
        tally.reject('region', name, e.args[0], str(file), e.args[1])
  for image in images.values():
    image.path = pictures.find_or_none(folders, [image.file_name])
  units = [
      shards.Unit(images[image_id].path, images[image_id])
      for image_id in sorted(images)
  ]
  return shards.Split(
      directory=directory,
      units=units,
      convert=convert_image,
      tally=tally,
      arguments={'format': 'vg'},
      sources=shards.checksums(files),
      num_shards=num_shards
      or shards.default_num_shards(len(units), LEAST_SHARDS),
  )


def _add_images(
    rows: Sequence[dict[str, Any]],
    file: str,
    images: dict[int, ImageRegions],
    tally: reports.Tally,
) -> None:
  """Adds the pictures of one file."""
  for number, row in enumerate(rows):
    tally.read['image'] += 1
    try:
      image_id, file_name = int(row['id']), str(row['file_name'])
    except (KeyError, TypeError, ValueError) as e:
      detail = f'{type(e).__name__}: {e}'
      tally.reject('image', f'row {number}', 'bad_row', file, detail)
      continue
    if image_id in images:
      detail = f'also in {images[image_id].annotation_file}'
      tally.reject('image', image_id, 'duplicate_id', file, detail)
      continue
    images[image_id] = ImageRegions(
        image_id, file_name, file, (row.get('height'), row.get('width'))
    )


def _add_region(
    annotation: dict[str, Any],
    images: dict[int, ImageRegions],
    seen: set[int],
) -> None:
  """Adds a region to its picture."""
  try:
    region_id = int(annotation['id'])
    image_id = int(annotation['image_id'])
  except (KeyError, TypeError, ValueError) as e:
    raise RegionError('bad_id', f'{type(e).__name__}: {e}') from e
  if image_id not in images:
    raise RegionError('no_image', f'image_id {image_id} is not in images')
  if region_id in seen:
    raise RegionError('duplicate_id', f'image {image_id}')
  seen.add(region_id)
  if annotation.get('iscrowd'):
    raise RegionError('crowd', f'iscrowd is {annotation["iscrowd"]}')
  try:
    bbox = boxes.parse(annotation.get('bbox'))
  except boxes.BoxError as e:
    raise RegionError(e.reason, e.detail) from e
  try:
    phrase = words.parse(annotation.get('caption'))
  except words.WordsError as e:
    raise RegionError('no_words', f'caption: {e}') from e
  images[image_id].regions.append(Region(region_id, bbox, phrase))


def convert_image(image: ImageRegions) -> shards.Converted:
  """Makes the record of a picture.

  Args:
    image: its regions.

  Returns:
    The record, or None where no region is left.
  """
  tally = reports.Tally()
  try:
    picture = pictures.read_picture(image.path, image.file_name)
  except pictures.PictureError as e:
    where = str(image.path or image.annotation_file)
    for region in image.regions:
      tally.reject('region', region.region_id, e.reason, where)
    tally.reject('image', image.image_id, e.reason, where, e.detail)
    return shards.Converted(None, tally)
  pictures.note_oddities(
      picture, image.path, image.image_id, {image.declared_hw}, tally
  )
  kept = []
  for region in image.regions:
    where = image.annotation_file
    try:
      box, cut, detail = boxes.clip(region.bbox, picture.height, picture.width)
    except boxes.BoxError as e:
      tally.reject('region', region.region_id, e.reason, where, e.detail)
      continue
    if cut:
      tally.repair('region', region.region_id, 'box_clipped', where, detail)
    kept.append((region, box))
  tally.written['region'] += len(kept)
  if not kept:
    where = image.annotation_file
    tally.reject('image', image.image_id, 'no_region_left', where)
    return shards.Converted(None, tally)
  tally.written['image'] += 1
  return shards.Converted(_serialize(image, picture, kept), tally)


def _serialize(
    image: ImageRegions,
    picture: pictures.Picture,
    kept: list[tuple[Region, np.ndarray]],
) -> bytes:
  """Puts a picture and its regions into an Example."""
  xyxy = np.stack([box for _, box in kept])
  return example_proto.serialize({
      'image': picture.encoded,
      'img_id': image.image_id,
      'image/file_name': image.path.name,
      'image/height': picture.height,
      'image/width': picture.width,
      'regions/id': [region.region_id for region, _ in kept],
      'regions/bbox': boxes.to_relative_yxyx(
          xyxy, picture.height, picture.width
      ),
      'regions/phrase': [region.phrase for region, _ in kept],
  })
