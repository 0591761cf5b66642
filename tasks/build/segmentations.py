"""COCO segmentations to masks: polygons, uncompressed and compressed RLE."""

import dataclasses
import io
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_lib

# Three corners of two coordinates.
_LEAST_POLYGON = 6


class SegmentationError(Exception):
  """A segmentation without a usable mask.

  Attributes:
    reason: a short word for the report.
  """

  def __init__(self, reason: str, detail: str):
    super().__init__(detail)
    self.reason = reason


@dataclasses.dataclass(frozen=True)
class Mask:
  """A mask in both forms that a record holds.

  Attributes:
    png: gray picture, 255 on the object and 0 elsewhere.
    rle_counts: COCO's compressed run lengths.
    dropped_polygons: how many polygons had fewer than three corners.
  """

  png: bytes
  rle_counts: bytes
  dropped_polygons: int = 0


def to_mask(segmentation: Any, height: int, width: int) -> Mask:
  """Draws a segmentation.

  Args:
    segmentation: list of polygons [x, y, x, y, ...], or a dict of `size` and
      `counts`, which is a list (uncompressed) or text (compressed).
    height: of the picture.
    width: of the picture.

  Returns:
    The mask.

  Raises:
    SegmentationError: if nothing can be drawn.
  """
  dropped = 0
  if isinstance(segmentation, list):
    polygons = [p for p in segmentation if len(p) >= _LEAST_POLYGON]
    dropped = len(segmentation) - len(polygons)
    if not polygons:
      raise SegmentationError(
          'mask_missing', f'{len(segmentation)} polygons, none of 3 corners'
      )
    rle = mask_lib.merge(mask_lib.frPyObjects(polygons, height, width))
  elif isinstance(segmentation, dict):
    rle = _run_lengths(segmentation, height, width)
  else:
    raise SegmentationError(
        'mask_missing',
        f'segmentation is {type(segmentation).__name__}; expected polygons or'
        ' run lengths',
    )
  try:
    pixels = mask_lib.decode(rle)
  except ValueError as e:
    raise SegmentationError('mask_broken', str(e)) from e
  png = io.BytesIO()
  Image.fromarray(pixels * np.uint8(255)).save(png, 'PNG')
  return Mask(png.getvalue(), rle['counts'], dropped)


def _run_lengths(
    segmentation: dict[str, Any], height: int, width: int
) -> dict[str, Any]:
  """Returns compressed RLE; runs that do not fill the picture are refused."""
  size = segmentation.get('size')
  counts = segmentation.get('counts')
  if size != [height, width]:
    raise SegmentationError(
        'mask_size', f'mask of {size}, picture of {[height, width]}'
    )
  if isinstance(counts, list):
    if sum(counts) != height * width or min(counts) < 0:
      raise SegmentationError(
          'mask_broken',
          f'runs sum to {sum(counts)}, the picture has {height * width} pixels',
      )
    return mask_lib.frPyObjects(segmentation, height, width)
  if isinstance(counts, str):
    return {'size': size, 'counts': counts.encode('utf-8')}
  raise SegmentationError(
      'mask_missing', f'counts is {type(counts).__name__}'
  )
