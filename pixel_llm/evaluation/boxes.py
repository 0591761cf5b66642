"""Boxes of the evaluation, in numpy and double precision.

A box is x0 y0 x1 y1 in pixels; files hold x y width height (COCO). Frames: the
network input, of which the image fills the top left `image_hw`, and the
original picture, `orig_hw`.
"""

from collections.abc import Sequence

from jaxtyping import Float, Int
import numpy as np

# Height and width in pixels.
HeightWidth = Sequence[int] | Int[np.ndarray, '2']


def image_to_orig(
    points: Float[np.ndarray, '*any 2'],
    image_hw: HeightWidth,
    orig_hw: HeightWidth,
) -> Float[np.ndarray, '*any 2']:
  """Carries (x, y) from the network input to the original picture.

  Args:
    points: pixels of the network input.
    image_hw: height and width of the valid area in the network input.
    orig_hw: height and width of the original picture.

  Returns:
    Pixels of the original picture, clipped to it.
  """
  scale_hw = np.asarray(orig_hw, np.float64) / np.asarray(image_hw, np.float64)
  limit_xy = np.asarray(orig_hw, np.float64)[::-1]
  return np.clip(points * scale_hw[::-1], 0, limit_xy)


def boxes_image_to_orig(
    boxes: Float[np.ndarray, 'K 4'], image_hw: HeightWidth, orig_hw: HeightWidth
) -> Float[np.ndarray, 'K 4']:
  """`image_to_orig` for both corners of boxes."""
  corners = boxes.reshape(-1, 2, 2)
  return image_to_orig(corners, image_hw, orig_hw).reshape(-1, 4)


def xyxy_to_xywh(
    boxes: Float[np.ndarray, '*any 4'],
) -> Float[np.ndarray, '*any 4']:
  """Corners to corner and size."""
  return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], -1)


def xywh_to_xyxy(
    boxes: Float[np.ndarray, '*any 4'],
) -> Float[np.ndarray, '*any 4']:
  """Corner and size to corners."""
  return np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], -1)


def box_iou(
    boxes: Float[np.ndarray, '*any 4'], others: Float[np.ndarray, '*any 4']
) -> Float[np.ndarray, '*any']:
  """Intersection over union, pair by pair.

  Args:
    boxes: x0 y0 x1 y1; a box that is empty or inside out overlaps nothing.
    others: the same.

  Returns:
    0 to 1; 0 for two boxes without area.
  """
  top_left = np.maximum(boxes[..., :2], others[..., :2])
  bottom_right = np.minimum(boxes[..., 2:], others[..., 2:])
  intersection = np.prod(np.maximum(bottom_right - top_left, 0), -1)
  areas = [
      np.prod(np.maximum(b[..., 2:] - b[..., :2], 0), -1)
      for b in (boxes, others)
  ]
  union = areas[0] + areas[1] - intersection
  return np.asarray(intersection / np.where(union > 0, union, 1))
