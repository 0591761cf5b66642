"""COCO captions to records, one a picture (RefA, RefB).

Reads COCO's own `captions_*.json`, or Karpathy's `dataset_coco.json`, of which
a split takes the part that is named after `#`; its training set proper is
`train` and `restval` together.

Record: `image` (bytes of the file), `image/{id,file_name,height,width}`,
`caption/string` and `caption/id`, in the order of the file.

RefA: cocodataset.org, format of caption annotations. RefB: Karpathy and Li,
"Deep Visual-Semantic Alignments for Generating Image Descriptions", section 4.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import pathlib
from typing import Any

from tasks.build import example_proto
from tasks.build import kinds
from tasks.build import pictures
from tasks.build import reports
from tasks.build import shards
from tasks.build import words

LEAST_SHARDS = 64


@dataclasses.dataclass
class ImageCaptions:
  """A picture and its captions.

  Attributes:
    image_id: COCO image id.
    annotation_file: where the captions are from.
    names: file names the picture may have.
    path: of the picture, None if it is not there.
    captions: (id, text), in the order of the file.
  """

  image_id: int
  annotation_file: str
  names: tuple[str, ...]
  path: pathlib.Path | None = None
  captions: list[tuple[int, str]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class _Row:
  """A caption of either layout, unchecked."""

  image_id: Any
  caption_id: Any
  text: Any


def read_split(
    directory: pathlib.Path,
    files: Sequence[pathlib.Path],
    folders: Sequence[pathlib.Path],
    num_shards: int | None,
    *,
    part: str | None = None,
) -> shards.Split:
  """Reads annotation files into the plan of a split.

  Args:
    directory: where the shards go.
    files: of COCO or of Karpathy.
    folders: where the pictures are.
    num_shards: None takes one that suits the number of pictures.
    part: parts of Karpathy's file, joined by `+`; None takes all.

  Returns:
    The split; `tally` tells what the files lacked.
  """
  tally = reports.Tally()
  images: dict[int, ImageCaptions] = {}
  seen: set[int] = set()
  documents = kinds.read_documents(files, tally, kinds.CAPTIONS, kinds.KARPATHY)
  for file, document in documents:
    rows = (
        _karpathy_rows(document, part, str(file), images, tally)
        if kinds.describe(document) == kinds.KARPATHY
        else _coco_rows(document, str(file), images, tally)
    )
    for number, row in enumerate(rows):
      _add_caption(row, number, str(file), images, seen, tally)
  for image in images.values():
    image.path = pictures.find_or_none(folders, image.names)
  units = [
      shards.Unit(images[image_id].path, images[image_id])
      for image_id in sorted(images)
  ]
  return shards.Split(
      directory=directory,
      units=units,
      convert=convert_image,
      tally=tally,
      arguments={'format': 'coco_captions', 'part': part},
      sources=shards.checksums(files),
      num_shards=num_shards
      or shards.default_num_shards(len(units), LEAST_SHARDS),
  )


def _add_image(
    row: dict[str, Any],
    key: str,
    number: int,
    file: str,
    images: dict[int, ImageCaptions],
    tally: reports.Tally,
) -> None:
  """Adds the picture of a row whose id stands under `key`."""
  tally.read['image'] += 1
  try:
    image_id = int(row[key])
  except (KeyError, TypeError, ValueError) as e:
    detail = f'{key}: {type(e).__name__}: {e}'
    tally.reject('image', f'row {number}', 'bad_id', file, detail)
    return
  if image_id in images:
    detail = f'also in {images[image_id].annotation_file}'
    tally.reject('image', image_id, 'duplicate_id', file, detail)
    return
  names = pictures.coco_names(image_id)
  images[image_id] = ImageCaptions(image_id, file, names)


def _coco_rows(
    document: dict[str, Any],
    file: str,
    images: dict[int, ImageCaptions],
    tally: reports.Tally,
) -> Iterator[_Row]:
  """Adds the pictures of a file of COCO and yields its captions."""
  for number, row in enumerate(document['images']):
    _add_image(row, 'id', number, file, images, tally)
  for row in document['annotations']:
    yield _Row(row.get('image_id'), row.get('id'), row.get('caption'))


def _karpathy_rows(
    document: dict[str, Any],
    part: str | None,
    file: str,
    images: dict[int, ImageCaptions],
    tally: reports.Tally,
) -> Iterator[_Row]:
  """Adds the pictures of a part and yields their captions."""
  wanted = part.split('+') if part else None
  for number, row in enumerate(document['images']):
    if wanted is not None and row.get('split') not in wanted:
      continue
    _add_image(row, 'cocoid', number, file, images, tally)
    for sentence in row.get('sentences', []):
      yield _Row(row.get('cocoid'), sentence.get('sentid'), sentence.get('raw'))


def _add_caption(
    row: _Row,
    number: int,
    file: str,
    images: dict[int, ImageCaptions],
    seen: set[int],
    tally: reports.Tally,
) -> None:
  """Adds a caption to its picture, or rejects it."""
  tally.read['caption'] += 1
  name = f'caption {number}' if row.caption_id is None else row.caption_id

  def reject(reason: str, detail: str) -> None:
    tally.reject('caption', name, reason, file, detail)

  try:
    caption_id, image_id = int(row.caption_id), int(row.image_id)
  except (TypeError, ValueError) as e:
    return reject('bad_id', str(e))
  if image_id not in images:
    return reject('no_image', f'image_id {image_id} is not in images')
  if caption_id in seen:
    return reject('duplicate_id', f'image {image_id}')
  try:
    text = words.parse(row.text)
  except words.WordsError as e:
    return reject('no_words', f'caption: {e}')
  seen.add(caption_id)
  images[image_id].captions.append((caption_id, text))


def convert_image(image: ImageCaptions) -> shards.Converted:
  """Makes the record of a picture.

  Args:
    image: its captions.

  Returns:
    The record, or None where the picture or its captions are missing.
  """
  tally = reports.Tally()
  where = str(image.path or image.annotation_file)
  try:
    picture = pictures.read_picture(image.path, ' or '.join(image.names))
    if not image.captions:
      raise pictures.PictureError('no_caption_left', '')
  except pictures.PictureError as e:
    for caption_id, _ in image.captions:
      tally.reject('caption', caption_id, e.reason, where)
    tally.reject('image', image.image_id, e.reason, where, e.detail)
    return shards.Converted(None, tally)
  pictures.note_oddities(picture, image.path, image.image_id, (), tally)
  tally.written['caption'] += len(image.captions)
  tally.written['image'] += 1
  record = example_proto.serialize({
      'image': picture.encoded,
      'image/id': image.image_id,
      'image/file_name': image.path.name,
      'image/height': picture.height,
      'image/width': picture.width,
      'caption/id': [caption_id for caption_id, _ in image.captions],
      'caption/string': [text for _, text in image.captions],
  })
  return shards.Converted(record, tally)
