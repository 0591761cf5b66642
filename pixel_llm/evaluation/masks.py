"""Masks of the evaluation: run-length codes, resizing, areas.

Run-length codes (RLE) are COCO's compressed ones with `counts` as text, never
bytes, so that they go into JSON.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Bool, Float, Int
import numpy as np
from pycocotools import mask as coco_mask

from pixel_llm.evaluation.boxes import HeightWidth


def encode_mask(mask: Bool[np.ndarray, 'H W']) -> dict[str, Any]:
  """Compresses a mask: {'size': [H, W], 'counts': text}."""
  rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
  return {
      'size': [int(v) for v in rle['size']],
      'counts': rle['counts'].decode('ascii'),
  }


def decode_mask(
    segmentation: Mapping[str, Any] | Sequence[Sequence[float | int]],
    orig_hw: HeightWidth,
) -> Bool[np.ndarray, 'H W']:
  """Rasterises a COCO segmentation as pycocotools does.

  Args:
    segmentation: compressed or uncompressed RLE, or a list of polygons
      [x0, y0, x1, y1, …] in pixels.
    orig_hw: height and width of the picture.

  Returns:
    The mask, True inside.

  Raises:
    ValueError: if an RLE has another size than the picture.
  """
  height, width = (int(v) for v in np.asarray(orig_hw))
  if not isinstance(segmentation, Mapping):
    polygons = coco_mask.frPyObjects(list(segmentation), height, width)
    rle = coco_mask.merge(polygons)
  else:
    if list(segmentation['size']) != [height, width]:
      raise ValueError(
          f"Mask of size {list(segmentation['size'])} (height, width) for a"
          f' picture of {[height, width]}; give masks in the original size.'
      )
    rle = segmentation
    if isinstance(rle['counts'], list):
      rle = coco_mask.frPyObjects(dict(rle), height, width)
  return coco_mask.decode(rle).astype(bool)


def _neighbours(
    size: int, new_size: int
) -> tuple[
    Int[np.ndarray, 'new'], Int[np.ndarray, 'new'], Float[np.ndarray, 'new']
]:
  """Both neighbours of each new pixel and the weight of the second one.

  Pixel centres lie at +0.5, the edge pixel goes on beyond the edge, and
  shrinking does not smooth: OpenCV's INTER_LINEAR.
  """
  position = (np.arange(new_size) + 0.5) * (size / new_size) - 0.5
  position = np.clip(position, 0, size - 1)
  low = position.astype(np.int64)
  return low, np.minimum(low + 1, size - 1), (position - low).astype(np.float32)


def resize_bilinear(
    values: Float[np.ndarray, 'h w'], height: int, width: int
) -> Float[np.ndarray, 'H W']:
  """Bilinear resize without smoothing, pixel centres at +0.5.

  In single precision, first along x: a value that is 0 on paper falls on the
  side of 0 where the original's figures have it.
  """
  values = np.asarray(values, np.float32)
  low, high, weight = _neighbours(values.shape[1], width)
  values = values[:, low] * (1 - weight) + values[:, high] * weight
  low, high, weight = _neighbours(values.shape[0], height)
  weight = weight[:, None]
  return values[low] * (1 - weight) + values[high] * weight


def logits_to_mask(
    logits: Float[np.ndarray, 'h w'],
    image_hw: HeightWidth,
    padded_hw: HeightWidth,
    orig_hw: HeightWidth,
) -> Bool[np.ndarray, 'H W']:
  """Turns low-resolution mask logits into a mask of the original picture.

  As in the original, the logits are cut to the whole cells inside the valid
  area and stretched from there in one step; the part of a cell that is cut off
  moves the mask by less than one cell of the logits.

  Args:
    logits: they cover the padded network input.
    image_hw: height and width of the valid area in the network input.
    padded_hw: height and width of the padded network input.
    orig_hw: height and width of the original picture.

  Returns:
    True where the resized logits are above 0.
  """
  rows, columns = (
      max(int(valid * cells / padded), 1)
      for valid, cells, padded in zip(
          np.asarray(image_hw), logits.shape, np.asarray(padded_hw)
      )
  )
  height, width = (int(v) for v in np.asarray(orig_hw))
  return resize_bilinear(logits[:rows, :columns], height, width) > 0


def mask_box(mask: Bool[np.ndarray, 'H W']) -> Float[np.ndarray, '4'] | None:
  """The box around a mask, x0 y0 x1 y1 of its pixels' outer edges, or None."""
  rows = np.flatnonzero(mask.any(1))
  columns = np.flatnonzero(mask.any(0))
  if not rows.size:
    return None
  edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
  return np.asarray(edges, np.float64)
