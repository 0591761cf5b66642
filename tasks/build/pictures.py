"""Finding, checking and reading picture files."""

from collections.abc import Collection, Sequence
import dataclasses
import io
import pathlib
from typing import Any, Protocol

import numpy as np
import PIL
from PIL import Image

from tasks.build import reports

# Multi-picture files (MPO) open with an ordinary JPEG.
_FORMATS = ('JPEG', 'MPO', 'PNG')
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = (None, 1)


class PictureError(Exception):
  """A picture that cannot be used.

  Attributes:
    reason: a short word for the report.
    detail: what was found.
  """

  def __init__(self, reason: str, detail: str):
    super().__init__(f'{reason}: {detail}')
    self.reason = reason
    self.detail = detail


class PictureFile(Protocol):
  """A file with a picture: a path, or a picture inside another file."""

  @property
  def name(self) -> str:
    """The file name."""
    ...

  def read_bytes(self) -> bytes:
    """All bytes of the picture."""
    ...


@dataclasses.dataclass(frozen=True)
class Picture:
  """A picture that decodes.

  Attributes:
    encoded: the bytes of the file, untouched.
    height: rows as stored, before any EXIF turn.
    width: columns as stored.
    orientation: EXIF orientation other than upright, or None. Readers ignore
      it, since the annotations of COCO are those of the stored pixels.
  """

  encoded: bytes
  height: int
  width: int
  orientation: int | None


def coco_names(image_id: int) -> tuple[str, ...]:
  """The names one COCO picture has in the cuts of 2017 and 2014."""
  return (
      f'{image_id:012d}.jpg',
      f'COCO_train2014_{image_id:012d}.jpg',
      f'COCO_val2014_{image_id:012d}.jpg',
  )


def find_or_none(
    folders: Sequence[pathlib.Path], names: Sequence[str]
) -> pathlib.Path | None:
  """Returns the first of the names that is in one of the folders.

  Args:
    folders: where to look, in this order.
    names: file names the picture may have, or paths below a folder.

  Returns:
    Its path, None if there is no such file.
  """
  for folder in folders:
    for name in names:
      path = folder / name
      if path.is_file():
        return path
  return None


def read_picture(path: PictureFile | None, name: str) -> Picture:
  """Reads a picture and decodes all of it, so that a cut file shows.

  Args:
    path: of the file, None where it was not found.
    name: what it was looked for as.

  Returns:
    The picture; its bytes are those of the file.

  Raises:
    PictureError: if it is missing, empty, no picture, of another format, or
      cut off.
  """
  encoded, image = _decode(path, name, _FORMATS)
  return _picture(encoded, image)


def read_any_picture(
    path: PictureFile | None, name: str
) -> tuple[Picture, str]:
  """Reads a picture of any format; what is no plain JPEG is encoded anew.

  Args:
    path: of the file, None where it was not found.
    name: what it was looked for as.

  Returns:
    The picture, always a gray or RGB JPEG; and what it was re-encoded from,
    '' for the bytes of the file. Transparent pixels turn white, of a moving
    picture the first frame counts.

  Raises:
    PictureError: if it is missing, empty, no picture, or cut off.
  """
  encoded, image = _decode(path, name, None)
  if image.format in ('JPEG', 'MPO') and image.mode in ('L', 'RGB'):
    return _picture(encoded, image), ''
  origin = f'{image.format} of mode {image.mode}'
  jpeg = io.BytesIO()
  _to_rgb(image).save(jpeg, 'JPEG', quality=95, subsampling=0)
  return _picture(jpeg.getvalue(), image), origin


def _to_rgb(image: Image.Image) -> Image.Image:
  """Converts any mode; 16-bit gray is scaled, not clipped."""
  if image.mode.startswith('I'):
    scaled = np.asarray(image).astype(np.float64) / 257.0
    return Image.fromarray(np.rint(scaled).clip(0, 255).astype(np.uint8))
  if image.has_transparency_data:
    image = image.convert('RGBA')
    white = Image.new('RGBA', image.size, (255, 255, 255, 255))
    image = Image.alpha_composite(white, image)
  return image.convert('RGB')


def _decode(
    path: PictureFile | None, name: str, formats: tuple[str, ...] | None
) -> tuple[bytes, Image.Image]:
  """Returns the bytes of a file and the picture in them; None: any format."""
  if path is None:
    raise PictureError('image_missing', f'no folder has {name}')
  encoded = path.read_bytes()
  if not encoded:
    raise PictureError('image_empty', 'the file has no bytes')
  try:
    image = Image.open(io.BytesIO(encoded))
  except PIL.UnidentifiedImageError:
    raise PictureError(
        'not_an_image', f'the file starts with {encoded[:16]!r}'
    ) from None
  if formats is not None and image.format not in formats:
    raise PictureError(
        'unsupported_format', f'found {image.format}, expected JPEG or PNG'
    )
  try:
    image.load()
  # Pillow's decoders raise SyntaxError for broken PNG chunks.
  except (OSError, SyntaxError, ValueError) as e:
    raise PictureError('image_truncated', str(e)) from e
  return encoded, image


def _picture(encoded: bytes, image: Image.Image) -> Picture:
  orientation = image.getexif().get(_EXIF_ORIENTATION)
  return Picture(
      encoded=encoded,
      height=image.height,
      width=image.width,
      orientation=None if orientation in _UPRIGHT else orientation,
  )


def note_oddities(
    picture: Picture,
    path: PictureFile,
    image_id: Any,
    declared_hw: Collection[tuple[Any, Any]],
    tally: reports.Tally,
) -> None:
  """Notes what is odd about a picture that is kept.

  Args:
    picture: as read.
    path: of its file.
    image_id: of the picture.
    declared_hw: the (height, width) that annotations give, if any.
    tally: takes the notes.
  """
  file = str(path)
  if picture.orientation:
    detail = f'orientation {picture.orientation}; pixels taken as stored'
    tally.note('image', image_id, 'exif_turned', file, detail)
  declared = set(declared_hw) - {(picture.height, picture.width)}
  if declared:
    detail = f'rows say {sorted(declared, key=str)}, the picture has'
    detail += f' {(picture.height, picture.width)} and counts'
    tally.note('image', image_id, 'size_differs', file, detail)
