"""Boxes, points, valid areas and the tokens that points belong to.

Boxes are (x0, y0, x1, y1) and points (x, y), in pixels of the network input
unless the name says otherwise; x points right, y down. Functions of boxes and
points take numpy arrays as well and then return numpy arrays.
"""

import difflib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Num
import numpy as np

AnyArray = jax.Array | np.ndarray


def _namespace(x: AnyArray) -> Any:
  """numpy for a numpy array, jax.numpy for a JAX array or tracer."""
  return np if isinstance(x, np.ndarray) else jnp


# Boxes in other words.


def xyxy_to_cxcywh(boxes: Float[AnyArray, '*L 4']) -> Float[AnyArray, '*L 4']:
  """Corners to centre and size."""
  x0y0, x1y1 = boxes[..., :2], boxes[..., 2:]
  return _namespace(boxes).concatenate(
      [(x0y0 + x1y1) / 2, x1y1 - x0y0], axis=-1
  )


def cxcywh_to_xyxy(boxes: Float[AnyArray, '*L 4']) -> Float[AnyArray, '*L 4']:
  """Centre and size to corners."""
  centre, half = boxes[..., :2], boxes[..., 2:] / 2
  return _namespace(boxes).concatenate([centre - half, centre + half], axis=-1)


def xyxy_to_xywh(boxes: Float[AnyArray, '*L 4']) -> Float[AnyArray, '*L 4']:
  """Corners to top left corner and size (COCO's boxes)."""
  x0y0, x1y1 = boxes[..., :2], boxes[..., 2:]
  return _namespace(boxes).concatenate([x0y0, x1y1 - x0y0], axis=-1)


def xywh_to_xyxy(boxes: Float[AnyArray, '*L 4']) -> Float[AnyArray, '*L 4']:
  """Top left corner and size (COCO's boxes) to corners."""
  x0y0, size = boxes[..., :2], boxes[..., 2:]
  return _namespace(boxes).concatenate([x0y0, x0y0 + size], axis=-1)


def box_is_valid(boxes: Float[AnyArray, '*L 4']) -> Bool[AnyArray, '*L']:
  """Whether no side is inverted, as in a box around no point at all."""
  return (boxes[..., 2] >= boxes[..., 0]) & (boxes[..., 3] >= boxes[..., 1])


# Relative coordinates.


def _image_wh(
    image_hw: Num[AnyArray, 'B 2'], ndim: int
) -> Float[AnyArray, 'B *L 2']:
  """(height, width) to (width, height) with axes of one in between."""
  image_wh = image_hw[:, ::-1].astype('float32')
  return image_wh.reshape((-1,) + (1,) * (ndim - 2) + (2,))


def points_to_absolute(
    points_rel: Float[AnyArray, 'B *L 2'], image_hw: Num[AnyArray, 'B 2']
) -> Float[AnyArray, 'B *L 2']:
  """Relative points (0 to 1) to pixels of images of that height and width."""
  return points_rel * _image_wh(image_hw, points_rel.ndim)


def points_to_relative(
    points: Float[AnyArray, 'B *L 2'], image_hw: Num[AnyArray, 'B 2']
) -> Float[AnyArray, 'B *L 2']:
  """Points in pixels to 0 to 1 over images of that height and width."""
  return points / _image_wh(image_hw, points.ndim)


def boxes_to_absolute(
    boxes_rel: Float[AnyArray, 'B *L 4'], image_hw: Num[AnyArray, 'B 2']
) -> Float[AnyArray, 'B *L 4']:
  """Relative boxes (0 to 1) to pixels of images of that height and width."""
  corners = boxes_rel.reshape((*boxes_rel.shape[:-1], 2, 2))
  return points_to_absolute(corners, image_hw).reshape(boxes_rel.shape)


def boxes_to_relative(
    boxes: Float[AnyArray, 'B *L 4'], image_hw: Num[AnyArray, 'B 2']
) -> Float[AnyArray, 'B *L 4']:
  """Boxes in pixels to 0 to 1 over images of that height and width."""
  corners = boxes.reshape((*boxes.shape[:-1], 2, 2))
  return points_to_relative(corners, image_hw).reshape(boxes.shape)


# Points for boxes, boxes for points.


def solid_grid(
    points_per_side: int, *, cell_centres: bool = True
) -> Float[np.ndarray, 'P 2']:
  """Relative points of a square grid, in row-major order.

  Three a side: 1/6, 1/2, 5/6 at cell centres, else 0, 1/2, 1.

  Args:
    points_per_side: points along each side; below 1 gives the top left and the
      bottom right corner.
    cell_centres: whether points sit in the middle of their cells, or reach the
      edges.

  Returns:
    Points from 0 to 1.
  """
  if points_per_side < 1:
    return np.array([[0, 0], [1, 1]], np.float32)
  x, y = np.meshgrid(*[_ticks(points_per_side, cell_centres)] * 2)
  return np.stack([x.ravel(), y.ravel()], axis=-1)


def donut_grid(
    points_per_side: int, *, thickness: int = 1, cell_centres: bool = True
) -> Float[np.ndarray, 'P 2']:
  """Relative points of the border of a square grid.

  The border is told as four bars, each row-major: top, right, bottom, left;
  each ends where the next one starts. A grid without a hole is told whole.

  Args:
    points_per_side: as in `solid_grid`.
    thickness: rows or columns of a bar.
    cell_centres: as in `solid_grid`.

  Returns:
    Points from 0 to 1.
  """
  if points_per_side <= 2 * thickness:
    return solid_grid(points_per_side, cell_centres=cell_centres)
  grid = solid_grid(points_per_side, cell_centres=cell_centres)
  grid = grid.reshape(points_per_side, points_per_side, 2)
  bars = (
      grid[:thickness, :-thickness],
      grid[:-thickness, -thickness:],
      grid[-thickness:, thickness:],
      grid[thickness:, :thickness],
  )
  return np.concatenate([bar.reshape(-1, 2) for bar in bars])


def _ticks(num: int, cell_centres: bool) -> Float[np.ndarray, 'n']:
  margin = 0.5 / num if cell_centres else 0.0
  return np.linspace(margin, 1 - margin, num, dtype=np.float32)


def boxes_to_points(
    boxes: Float[AnyArray, '*L 4'],
    points_per_side: int,
    *,
    cell_centres: bool = True,
) -> Float[AnyArray, '*L P 2']:
  """Puts a solid grid of points inside each box.

  Args:
    boxes: boxes in any unit.
    points_per_side: as in `solid_grid`; below 1 gives the two corners.
    cell_centres: as in `solid_grid`.

  Returns:
    Points in the unit of the boxes, row-major in each box.
  """
  grid = solid_grid(points_per_side, cell_centres=cell_centres)
  grid = grid.reshape((1,) * (boxes.ndim - 1) + grid.shape)
  origin, size = (
      boxes[..., None, :2],
      boxes[..., None, 2:] - boxes[..., None, :2],
  )
  return origin + grid * size


def points_to_boxes(
    points: Float[AnyArray, '*L P 2'],
    valid: Bool[AnyArray, '*L P'] | None = None,
    *,
    points_per_side: int = 0,
) -> Float[AnyArray, '*L 4']:
  """Returns the box around points.

  Without any valid point the box is inverted (minimum = maximum + 1): see
  `box_is_valid`.

  Args:
    points: points in any unit.
    valid: which points count; None counts all.
    points_per_side: above 1, the points are taken for cell centres of a grid of
      that many a side, and the box grows by half a step to the cells' edges.

  Returns:
    Boxes in the unit of the points.
  """
  xp = _namespace(points)
  lowest = points.min(axis=-2, keepdims=True)
  highest = points.max(axis=-2, keepdims=True)
  if valid is None:
    x0y0, x1y1 = lowest[..., 0, :], highest[..., 0, :]
  else:
    counts = valid[..., None]
    x0y0 = xp.where(counts, points, highest + 1).min(axis=-2)
    x1y1 = xp.where(counts, points, lowest - 1).max(axis=-2)
  if points_per_side > 1:
    margin = (x1y1 - x0y0) / (points_per_side - 1) / 2
    x0y0, x1y1 = x0y0 - margin, x1y1 + margin
  return xp.concatenate([x0y0, x1y1], axis=-1)


def point_labels(
    prompt_mask: Bool[AnyArray, '*L'], num_points: int
) -> Int[AnyArray, '*L P']:
  """Labels for the prompt encoder: 1 for each point, -1 in a masked prompt."""
  xp = _namespace(prompt_mask)
  labels = xp.where(prompt_mask, 1, -1).astype('int32')
  return xp.repeat(labels[..., None], num_points, axis=-1)


# Valid areas.


def valid_mask(
    image_hw: Num[AnyArray, 'B 2'], height: int, width: int
) -> Bool[AnyArray, 'B H W']:
  """True inside the valid area, which is at the top left of the image."""
  xp = _namespace(image_hw)
  rows = xp.arange(height)[None, :] < image_hw[:, :1]
  columns = xp.arange(width)[None, :] < image_hw[:, 1:]
  return rows[:, :, None] & columns[:, None, :]


def image_hw_from_mask(
    mask: Bool[AnyArray, 'B H W'] | Float[AnyArray, 'B H W'],
) -> Float[AnyArray, 'B 2']:
  """Height and width of the valid area at the top left of each image."""
  inside = mask > 0
  sizes = [inside.any(axis=axis).sum(axis=-1) for axis in (2, 1)]
  return _namespace(mask).stack(sizes, axis=-1).astype('float32')


# Tokens.

_IGNORE_NAMES = ('begin', 'end', 'pad', 'text', 'end-1')


def token_mask(
    tokens: Int[AnyArray, '*L T'],
    ignore: str,
    *,
    begin_id: int,
    end_id: int,
    pad_id: int = 0,
) -> Bool[AnyArray, '*L T']:
  """Returns which tokens count, for the point head.

  With T5's ids (begin 0, end 1) and tokens 0 51 62 1 0:
    begin,end,pad   - x x - -
    end-1           x x - x x
    ^end-1          - - x - -

  Args:
    tokens: text with its begin and end token.
    ignore: comma list of what does not count: `begin`, `end`, `pad`, `text`
      (all but those three), `end-1` (the token right before an end token). A
      leading `^` inverts the mask. The empty string ignores nothing.
    begin_id: id of the begin token.
    end_id: id of the end token.
    pad_id: id of padding; where it is `begin_id` the two cannot be told apart.

  Returns:
    True where a token counts.

  Raises:
    ValueError: if a name in `ignore` is unknown.
  """
  xp = _namespace(tokens)
  names = ignore.removeprefix('^')
  is_begin, is_end, is_pad = (tokens == i for i in (begin_id, end_id, pad_id))
  # Nothing follows the last token, so it is never right before an end token.
  before_end = xp.concatenate(
      [is_end[..., 1:], xp.zeros_like(is_end[..., :1])], axis=-1
  )
  ignored = xp.zeros_like(is_end)
  for name in names.split(',') if names else ():
    if name == 'begin':
      ignored |= is_begin
    elif name == 'end':
      ignored |= is_end
    elif name == 'pad':
      ignored |= is_pad
    elif name == 'text':
      ignored |= ~(is_begin | is_end | is_pad)
    elif name == 'end-1':
      ignored |= before_end
    else:
      near = difflib.get_close_matches(name, _IGNORE_NAMES, n=3, cutoff=0.0)
      raise ValueError(
          f'token_mask: ignore={ignore!r} names {name!r}; the nearest known are'
          f' {near}.'
      )
  return ignored if ignore.startswith('^') else ~ignored
