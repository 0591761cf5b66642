"""Boxes of annotation files, checked and cut to their picture."""

from typing import Any

import numpy as np

# A box that ends this little outside, in pixels, is rounding.
_TOLERANCE = 0.01


class BoxError(Exception):
  """A box that cannot be used.

  Attributes:
    reason: a short word for the report.
    detail: what was found.
  """

  def __init__(self, reason: str, detail: str):
    super().__init__(f'{reason}: {detail}')
    self.reason = reason
    self.detail = detail


def parse(bbox: Any) -> list[float]:
  """Returns x, y, width and height of a COCO box as numbers.

  Args:
    bbox: what stands in the file.

  Raises:
    BoxError: if it is not four numbers.
  """
  if not isinstance(bbox, list) or len(bbox) != 4:
    raise BoxError('missing_field', f'bbox is {bbox!r}')
  try:
    return [float(side) for side in bbox]
  except (TypeError, ValueError):
    raise BoxError('bad_field', f'bbox is {bbox!r}') from None


def clip(
    bbox: list[float], height: int, width: int
) -> tuple[np.ndarray, bool, str]:
  """Cuts a box to its picture.

  Args:
    bbox: x, y, width and height in pixels.
    height: of the picture.
    width: of the picture.

  Returns:
    x0, y0, x1, y1 [4]; whether that is visibly less than there was; and a
    text with the numbers, for the report.

  Raises:
    BoxError: if no area is left.
  """
  x, y, box_width, box_height = bbox
  detail = (
      f'bbox (x, y, width, height) {bbox}, picture {width} x {height}'
  )
  if not np.all(np.isfinite(bbox)):
    raise BoxError('bad_box', detail)
  if box_width <= 0 or box_height <= 0:
    raise BoxError('empty_box', detail)
  box = np.array([x, y, x + box_width, y + box_height])
  clipped = np.clip(box, 0.0, np.array([width, height] * 2, np.float64))
  if np.any(clipped[2:] <= clipped[:2]):
    raise BoxError('box_outside', detail)
  return clipped, bool(np.any(np.abs(clipped - box) > _TOLERANCE)), detail


def to_relative_yxyx(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
  """Turns x0 y0 x1 y1 in pixels into the reference's relative y0 x0 y1 x1.

  Args:
    boxes: [K, 4].
    height: of the picture.
    width: of the picture.
  """
  return (boxes / np.array([width, height] * 2, np.float64))[:, [1, 0, 3, 2]]
