"""Pictures with boxes, masks and traces, as inline SVG over inlined JPEGs.

Every picture is inlined once and used by each drawing that shows it. Drawings
count in pixels of the original picture.
"""

import base64
from collections.abc import Mapping, Sequence
import html
import io
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from pixel_llm.evaluation import masks as masks_lib

# Longer side of an inlined picture, pixels.
_LONGER_SIDE = 640
_JPEG_QUALITY = 78
# Predicted orange, true blue: apart for every kind of colour vision.
PREDICTED_RGB = (255, 140, 0)
TRUE_RGB = (0, 150, 255)
# Word colours run through these, first to last.
_WORD_RGB = (
    (88, 101, 242),
    (36, 168, 240),
    (25, 200, 160),
    (120, 215, 60),
    (225, 205, 40),
    (250, 150, 40),
    (235, 80, 60),
    (200, 60, 150),
)


def word_color(index: int, num_words: int) -> str:
  """Colour of a word by its place in the caption, as `#rrggbb`."""
  share = index / max(num_words - 1, 1) * (len(_WORD_RGB) - 1)
  low = min(int(share), len(_WORD_RGB) - 2)
  ends = np.asarray(_WORD_RGB[low : low + 2], np.float64)
  rgb = ends[0] + (ends[1] - ends[0]) * (share - low)
  return '#' + ''.join(f'{round(v):02x}' for v in rgb)


class PictureStore:
  """Finds pictures by file name and inlines each of them once.

  Attributes:
    missing: names that were in no folder, or could not be read, and why.
    used: names of the pictures that were found.
  """

  def __init__(self, folders: Sequence[str]):
    """Takes the folders to search, the first one first.

    Raises:
      FileNotFoundError: if a folder does not exist.
    """
    self._folders = [pathlib.Path(folder) for folder in folders]
    for folder in self._folders:
      if not folder.is_dir():
        raise FileNotFoundError(f'--image_dir={folder}: no such folder.')
    self._definitions: dict[str, str] = {}
    self.missing: dict[str, str] = {}
    self.used: list[str] = []

  def use(self, file_name: str, width: int, height: int) -> str:
    """Draws a picture, or a grey field that says it is missing."""
    if file_name not in self._definitions and file_name not in self.missing:
      self._load(file_name)
    if file_name in self._definitions:
      number = self.used.index(file_name)
      # The definition is 1 by 1, so that any stated size fits.
      return (
          f'<use href="#picture{number}"'
          f' transform="scale({width} {height})"/>'
      )
    return (
        f'<rect width="{width}" height="{height}" fill="#8a8a8a"/>'
        f'<text x="{width / 2}" y="{height / 2}" text-anchor="middle"'
        f' font-size="{height / 16}" fill="#fff">picture not found</text>'
    )

  def definitions(self) -> str:
    """The invisible drawing that holds all pictures in use."""
    return (
        '<svg width="0" height="0" style="position:absolute" aria-hidden="true">'
        f'<defs>{"".join(self._definitions.values())}</defs></svg>'
    )

  def _load(self, file_name: str) -> None:
    """Reads and shrinks a picture; notes a missing or broken one."""
    names = dict.fromkeys([file_name, pathlib.PurePath(file_name).name])
    paths = [folder / name for folder in self._folders for name in names]
    path = next((p for p in paths if p.is_file()), None)
    if path is None:
      self.missing[file_name] = 'in none of the folders'
      return
    try:
      with Image.open(path) as opened:
        # As training sees it: EXIF turns are not applied.
        picture = opened.convert('RGB')
    except OSError as error:
      self.missing[file_name] = f'could not be read: {error}'
      return
    picture.thumbnail((_LONGER_SIDE, _LONGER_SIDE))
    data = _data_uri(picture, 'jpeg', quality=_JPEG_QUALITY, optimize=True)
    self._definitions[file_name] = (
        f'<image id="picture{len(self.used)}" href="{data}" width="1"'
        ' height="1" preserveAspectRatio="none"/>'
    )
    self.used.append(file_name)


def _data_uri(picture: Image.Image, kind: str, **options: Any) -> str:
  """A picture as a `data:` address."""
  buffer = io.BytesIO()
  picture.save(buffer, kind, **options)
  text = base64.b64encode(buffer.getvalue()).decode('ascii')
  return f'data:image/{kind};base64,{text}'


def mask_layer(
    segmentation: Mapping[str, Any],
    width: int,
    height: int,
    rgb: tuple[int, int, int],
    fill_alpha: int,
) -> str:
  """Draws a mask: a tinted inside with an opaque edge.

  Args:
    segmentation: RLE in the original size.
    width: of the original picture.
    height: of the original picture.
    rgb: its colour.
    fill_alpha: opacity of the inside, 0 to 255.

  Returns:
    An `image` element over the whole picture.
  """
  mask = masks_lib.decode_mask(segmentation, [height, width])
  scale = min(1.0, _LONGER_SIDE / max(width, height))
  size = (max(round(width * scale), 1), max(round(height * scale), 1))
  small = Image.fromarray(mask.astype(np.uint8) * 255).resize(
      size, Image.Resampling.BOX
  )
  inside = np.asarray(small) > 127
  padded = np.pad(inside, 2)
  core = inside.copy()
  # Two pixels of edge: inside, but not with all its neighbours.
  for dy, dx in [
      (0, 2),
      (4, 2),
      (2, 0),
      (2, 4),
      (1, 1),
      (1, 3),
      (3, 1),
      (3, 3),
  ]:
    core &= padded[dy : dy + inside.shape[0], dx : dx + inside.shape[1]]
  index = inside.astype(np.uint8) + (inside & ~core)
  picture = Image.fromarray(index)
  picture.putpalette([0, 0, 0, *rgb, *rgb])
  data = _data_uri(
      picture,
      'png',
      transparency=bytes([0, fill_alpha, 255]),
      optimize=True,
  )
  return (
      f'<image href="{data}" width="{width}" height="{height}"'
      ' preserveAspectRatio="none"/>'
  )


def box_layer(box: Sequence[float | int], css_class: str, title: str) -> str:
  """Draws a box x y width height with a dark edge around its colour."""
  x, y, width, height = box
  place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
  return (
      f'<g><title>{html.escape(title)}</title>'
      f'<rect class="casing" {place}/><rect class="{css_class}" {place}/></g>'
  )


def trace_layer(words: Sequence[Mapping[str, Any]], unit: float) -> str:
  """Draws a caption's trace: a box and a dot a word, joined in order.

  Args:
    words: `word` and `bbox` (x y width height, or None) of each word.
    unit: radius of a dot, in pixels of the original picture.

  Returns:
    SVG elements.
  """
  boxes, dots, centers = [], [], []
  for index, word in enumerate(words):
    if word['bbox'] is None:
      continue
    x, y, width, height = word['bbox']
    color = word_color(index, len(words))
    center = f'{x + width / 2:.1f},{y + height / 2:.1f}'
    centers.append(center)
    title = f'<title>{html.escape(word["word"])}</title>'
    boxes.append(
        f'<rect class="word" x="{x:g}" y="{y:g}" width="{width:g}"'
        f' height="{height:g}" stroke="{color}" fill="{color}">{title}</rect>'
    )
    cx, cy = center.split(',')
    dots.append(
        f'<circle cx="{cx}" cy="{cy}" r="{unit:.1f}" fill="{color}"'
        f' class="worddot">{title}</circle>'
    )
  path = f'<polyline class="path" points="{" ".join(centers)}"/>'
  return ''.join([*boxes, path, *dots])


def drawing(width: int, height: int, description: str, layers: str) -> str:
  """An accessible drawing in pixels of the original picture."""
  label = html.escape(description, quote=True)
  return (
      f'<svg class="picture" viewBox="0 0 {width} {height}" role="img"'
      f' aria-label="{label}">{layers}</svg>'
  )
