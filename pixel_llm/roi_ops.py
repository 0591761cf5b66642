"""Boxes against boxes, and boxes against feature maps (RefA, RefB).

Everything here is a pure function of fixed shapes: overlap, box coding, the
choice of a pyramid level and RoI align. Boxes are (x0, y0, x1, y1).

RefA: Faster R-CNN (arXiv 1506.01497), Sec. 3.1.2: box coding; RefB: Mask R-CNN
(arXiv 1703.06870), Sec. 3: RoI align; RefC: Feature Pyramid Networks (arXiv
1612.03144), eq. 1: the level of a box.
"""

from collections.abc import Sequence
import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Factors of the coded centre (x, y) and size (w, h), which bring the targets
# of a box head near unit variance.
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
# A coded size grows a box at most to 1000 / 16 of its reference.
_MAX_LOG_SIZE = math.log(1000 / 16)
# Keep divisions and logarithms of empty boxes finite; far below a pixel.
_TINY = 1e-9
# RefC: a box of this side, in pixels, belongs to the level of stride 16.
_CANONICAL_SIDE = 224.0
_CANONICAL_LEVEL = 4


def is_present(boxes: Float[Array, '*L 4']) -> Bool[Array, '*L']:
  """Whether a row holds a box; a row without a positive number holds none."""
  return jnp.any(boxes > 0, axis=-1)


def box_area(boxes: Float[Array, '*L 4']) -> Float[Array, '*L']:
  """Area of boxes, 0 if a side is inverted."""
  size = jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
  return size[..., 0] * size[..., 1]


def pairwise_iou(
    boxes: Float[Array, '*L K 4'], others: Float[Array, '*L G 4']
) -> Float[Array, '*L K G']:
  """Intersection over union of each box with each other; 0 for empty ones."""
  boxes, others = boxes[..., :, None, :], others[..., None, :, :]
  x0y0 = jnp.maximum(boxes[..., :2], others[..., :2])
  x1y1 = jnp.minimum(boxes[..., 2:], others[..., 2:])
  shared = box_area(jnp.concatenate([x0y0, x1y1], axis=-1))
  union = box_area(boxes) + box_area(others) - shared
  return shared / jnp.maximum(union, _TINY)


def clip_boxes(
    boxes: Float[Array, '*L 4'], input_hw: tuple[int, int]
) -> Float[Array, '*L 4']:
  """Moves corners outside an image of that height and width to its edge."""
  height, width = input_hw
  x = jnp.clip(boxes[..., 0::2], 0.0, width)
  y = jnp.clip(boxes[..., 1::2], 0.0, height)
  return jnp.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], axis=-1)


# Box coding.


def _centre_and_size(
    boxes: Float[Array, '*L 4'],
) -> tuple[Float[Array, '*L 2'], Float[Array, '*L 2']]:
  size = boxes[..., 2:] - boxes[..., :2]
  return boxes[..., :2] + 0.5 * size, size


def _align(weights: Sequence[float], ndim: int) -> Float[Array, '*L 4']:
  return jnp.reshape(
      jnp.asarray(weights, jnp.float32), (1,) * (ndim - 1) + (4,)
  )


def encode_boxes(
    boxes: Float[Array, '*L 4'],
    references: Float[Array, '*L 4'],
    weights: Sequence[float] = BOX_WEIGHTS,
) -> Float[Array, '*L 4']:
  """Says boxes relative to references (RefA).

  Args:
    boxes: what to code.
    references: one for each; empty ones give finite numbers of no meaning.
    weights: factors of x, y, w, h.

  Returns:
    Shift of the centre in sizes of the reference, and log of the size's
    ratio, times the weights.
  """
  centre, size = _centre_and_size(boxes)
  reference_centre, reference_size = _centre_and_size(references)
  size, reference_size = (jnp.maximum(x, _TINY) for x in (size, reference_size))
  shift = (centre - reference_centre) / reference_size
  growth = jnp.log(size / reference_size)
  deltas = jnp.concatenate([shift, growth], axis=-1)
  return deltas * _align(weights, deltas.ndim)


def decode_boxes(
    deltas: Float[Array, '*L 4'],
    references: Float[Array, '*L 4'],
    weights: Sequence[float] = BOX_WEIGHTS,
) -> Float[Array, '*L 4']:
  """Undoes `encode_boxes`; no box grows beyond 1000 / 16 of its reference.

  Args:
    deltas: coded boxes.
    references: one for each.
    weights: the factors they were coded with.

  Returns:
    Boxes in the frame of the references, not clipped.
  """
  deltas = deltas / _align(weights, deltas.ndim)
  reference_centre, reference_size = _centre_and_size(references)
  centre = reference_centre + deltas[..., :2] * reference_size
  growth = jnp.exp(jnp.minimum(deltas[..., 2:], _MAX_LOG_SIZE))
  half = 0.5 * growth * reference_size
  return jnp.concatenate([centre - half, centre + half], axis=-1)


# Boxes on feature maps.


def pyramid_levels(
    boxes: Float[Array, '*L 4'], num_levels: int, finest_level: int = 3
) -> Int[Array, '*L']:
  """Chooses the pyramid level that a box is cropped from (RefC).

  A side of 224 px belongs to level 4, of 448 px to level 5; with levels 3 to 7
  that is index 1 and 2.

  Args:
    boxes: pixels.
    num_levels: how many levels there are.
    finest_level: log2 of the first one's stride.

  Returns:
    Index into the levels, 0 for the finest.
  """
  side = jnp.sqrt(box_area(boxes))
  level = jnp.floor(_CANONICAL_LEVEL + jnp.log2(side / _CANONICAL_SIDE + 1e-8))
  index = level.astype(jnp.int32) - finest_level
  return jnp.clip(index, 0, num_levels - 1)


def _bin_weights(
    low: Float[Array, 'B K'],
    high: Float[Array, 'B K'],
    length: int,
    output_size: int,
    num_samples: int,
) -> Float[Array, 'B K S l']:
  """Weight of each cell of one axis in each bin of each box.

  Linear interpolation at position p weighs cell i by max(0, 1 - |p - i|): a
  hat, which also fades to the zeros outside the map.
  """
  steps = jnp.arange(output_size * num_samples, dtype=jnp.float32) + 0.5
  steps = (steps / (output_size * num_samples))[None, None]
  # Cell i spans i to i + 1, so its value sits at i + 0.5.
  positions = low[..., None] + steps * (high - low)[..., None] - 0.5
  cells = jnp.arange(length, dtype=jnp.float32)[None, None, None]
  hats = jnp.maximum(1.0 - jnp.abs(positions[..., None] - cells), 0.0)
  hats = hats.reshape(*low.shape, output_size, num_samples, length)
  return jnp.mean(hats, axis=-2)


def roi_align(
    levels: Sequence[Float[Array, 'B _h _w D']],
    boxes: Float[Array, 'B K 4'],
    level: Int[Array, 'B K'],
    *,
    output_size: int = 7,
    num_samples: int = 2,
) -> Float[Array, 'B K S S D']:
  """Crops boxes to a fixed size by linear interpolation (RefB).

  As interpolation is separable, a crop is two small matrix products a level;
  a box has weight zero on levels that are not its own. The backward pass is
  matrix products too, so there is no scatter and no order of summation.

  Args:
    levels: feature maps, 0 outside.
    boxes: in cells of the box's own level; cell (0, 0) spans 0 to 1.
    level: index of each box's level.
    output_size: bins a side, S.
    num_samples: samples a bin and side, which are averaged.

  Returns:
    The crops.
  """
  x0, y0, x1, y1 = jnp.moveaxis(boxes, -1, 0)
  crops = []
  for i, features in enumerate(levels):
    height, width = features.shape[1:3]
    rows = _bin_weights(y0, y1, height, output_size, num_samples)
    rows *= (level == i)[..., None, None]
    columns = _bin_weights(x0, x1, width, output_size, num_samples)
    stripes = jnp.einsum(
        'bksh,bhwd->bkswd', rows.astype(features.dtype), features
    )
    crops.append(
        jnp.einsum('bkswd,bktw->bkstd', stripes, columns.astype(features.dtype))
    )
  return sum(crops[1:], start=crops[0])
