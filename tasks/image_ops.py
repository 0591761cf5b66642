"""Geometry of pictures, boxes, points and masks (RefA), in TensorFlow.

Every function takes and returns plain tensors, so that a box, a point and a
mask can be moved by the same numbers. Boxes are (x0, y0, x1, y1) and points
(x, y) in pixels; sizes are (height, width). The functions for points also
take boxes that were reshaped to their two corners.

RefA: golden case `io_geometry`; "copy 15" and "mend 2" of the original's
habits.
"""

import tensorflow as tf


def decode_image(encoded: tf.Tensor) -> tf.Tensor:
  """Decodes JPEG or PNG bytes to RGB [h, w, 3] uint8, EXIF turns ignored."""
  image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
  return tf.ensure_shape(image, [None, None, 3])


def image_hw(image: tf.Tensor) -> tf.Tensor:
  """Returns (height, width) [2] int32 of an image or a stack [..., h, w, 3]."""
  return tf.shape(image)[-3:-1]


def ratio_hw(
    hw: tf.Tensor, size: int, ratio: tf.Tensor, exact: bool = False
) -> tf.Tensor:
  """New size with the longer side bounded by `int(size * ratio)`.

  The original rounds the shorter side down and derives the longer one from
  it, which can end one pixel short: 47×29 to 40 gives 38×24 (RefA). The short
  result is kept by default, since the recipes were trained with it.

  Args:
    hw: height and width [2] int32.
    size: side of the network input.
    ratio: float scalar.
    exact: gives the longer side all its pixels (mend 2).

  Returns:
    The new height and width [2] int32, each at least 1.
  """
  bound = tf.cast(tf.cast(size, tf.float32) * ratio, tf.int32)
  if not exact:
    return shorter_side_hw(hw, bound, bound)
  scale = tf.cast(bound, tf.float64) / tf.cast(tf.reduce_max(hw), tf.float64)
  scaled = tf.cast(tf.round(tf.cast(hw, tf.float64) * scale), tf.int32)
  return tf.maximum(scaled, 1)


def shorter_side_hw(
    hw: tf.Tensor, shorter: tf.Tensor, longest: tf.Tensor | None = None
) -> tf.Tensor:
  """New size with the shorter side at `shorter`, the longer within `longest`.

  Args:
    hw: height and width [2] int32.
    shorter: wanted shorter side, int scalar.
    longest: bound of the longer side, or None.

  Returns:
    The new height and width [2] int32, each at least 1.
  """
  hw = tf.cast(hw, tf.float64)
  low, high = tf.reduce_min(hw), tf.reduce_max(hw)
  target = tf.cast(shorter, tf.float64)
  if longest is not None:
    longest = tf.cast(longest, tf.float64)
    target = tf.where(
        high / low * target > longest, tf.floor(longest * low / high), target
    )
  target = tf.maximum(target, 1.0)
  # Written as target·high/low: the product first, as the original rounds.
  longer = tf.maximum(tf.floor(target * high / low), 1.0)
  if longest is not None:
    # A picture so thin that its shorter side would vanish keeps one pixel
    # there, and then the longer side must not follow.
    longer = tf.minimum(longer, tf.maximum(longest, 1.0))
  new_hw = tf.where(hw == low, target, longer)
  return tf.cast(new_hw, tf.int32)


def resize_image(image: tf.Tensor, hw: tf.Tensor) -> tf.Tensor:
  """Resizes [h, w, 3] bilinearly without antialias; float32, 0 to 255."""
  return tf.image.resize(image, hw, method='bilinear', antialias=False)


def nearest_pixels(from_side: tf.Tensor, to_side: tf.Tensor) -> tf.Tensor:
  """Which pixel of a side stands for each of a resized one.

  These are the pixels that `tf.image.resize` takes by method `nearest`.

  Args:
    from_side: pixels of the side as stored, int32 scalar.
    to_side: pixels of the resized side, int32 scalar.

  Returns:
    Pixels of the stored side in ascending order [to_side] int32.
  """
  scale = tf.cast(from_side, tf.float32) / tf.cast(to_side, tf.float32)
  centers = tf.cast(tf.range(to_side), tf.float32) + 0.5
  nearest = tf.cast(tf.floor(centers * scale), tf.int32)
  return tf.minimum(nearest, from_side - 1)


def scale_points(
    points: tf.Tensor, from_hw: tf.Tensor, to_hw: tf.Tensor
) -> tf.Tensor:
  """Moves points [..., 2] from a picture of one size to its resized twin."""
  ratio = tf.cast(to_hw, tf.float32) / tf.cast(from_hw, tf.float32)
  return points * ratio[::-1]


def crop_points(
    points: tf.Tensor, offset: tf.Tensor, hw: tf.Tensor
) -> tf.Tensor:
  """Moves points [..., 2] into a crop and clips them to it.

  Args:
    points: (x, y) in pixels of the whole picture.
    offset: (row, column) of the crop's first pixel, int32.
    hw: height and width of the crop, int32.

  Returns:
    (x, y) in pixels of the crop, within it.
  """
  shifted = points - tf.cast(offset, tf.float32)[::-1]
  return tf.clip_by_value(shifted, 0.0, tf.cast(hw, tf.float32)[::-1])


def flip_points(points: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
  """Mirrors points [..., 2] left to right."""
  x, y = tf.unstack(points, axis=-1)
  return tf.stack([tf.cast(width, tf.float32) - x, y], axis=-1)


def flip_boxes(boxes: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
  """Mirrors boxes [..., 4] left to right, corners back in order."""
  x0, y0, x1, y1 = tf.unstack(boxes, axis=-1)
  width = tf.cast(width, tf.float32)
  return tf.stack([width - x1, y0, width - x0, y1], axis=-1)


def scale_boxes(
    boxes: tf.Tensor, from_hw: tf.Tensor, to_hw: tf.Tensor
) -> tf.Tensor:
  """`scale_points` for boxes [..., 4]."""
  return _from_corners(scale_points(_to_corners(boxes), from_hw, to_hw))


def crop_boxes(boxes: tf.Tensor, offset: tf.Tensor, hw: tf.Tensor) -> tf.Tensor:
  """`crop_points` for boxes [..., 4]; a box outside loses all its area."""
  return _from_corners(crop_points(_to_corners(boxes), offset, hw))


def yxyx_to_xyxy(boxes_rel: tf.Tensor, hw: tf.Tensor) -> tf.Tensor:
  """Relative (y0, x0, y1, x1) [n, 4] to pixels (x0, y0, x1, y1), clipped."""
  height, width = tf.unstack(tf.cast(hw, tf.float32))
  y0, x0, y1, x1 = tf.unstack(tf.clip_by_value(boxes_rel, 0.0, 1.0), axis=-1)
  return tf.stack([x0 * width, y0 * height, x1 * width, y1 * height], axis=-1)


def box_areas(boxes: tf.Tensor) -> tf.Tensor:
  """Areas [...] of boxes [..., 4] in square pixels."""
  sides = boxes[..., 2:] - boxes[..., :2]
  return sides[..., 0] * sides[..., 1]


def has_area(boxes: tf.Tensor) -> tf.Tensor:
  """True [...] for boxes [..., 4] that are wider and higher than nothing."""
  return tf.reduce_all(boxes[..., 2:] > boxes[..., :2], axis=-1)


def random_crop_offset(
    hw: tf.Tensor, crop_hw: tf.Tensor, seed: tf.Tensor
) -> tf.Tensor:
  """Draws (row, column) [2] int32 of a crop that lies inside the picture."""
  room = tf.maximum(hw - crop_hw, 0)
  return tf.stack(
      [
          tf.random.stateless_uniform(
              [], tf.random.split(seed)[axis], 0, room[axis] + 1, tf.int32
          )
          for axis in (0, 1)
      ]
  )


def center_crop_offset(hw: tf.Tensor, crop_hw: tf.Tensor) -> tf.Tensor:
  """Returns (row, column) [2] int32 of the crop in the middle."""
  return tf.maximum(hw - crop_hw, 0) // 2


def crop_image(
    image: tf.Tensor, offset: tf.Tensor, crop_hw: tf.Tensor
) -> tf.Tensor:
  """Cuts [..., h, w, c] to at most `crop_hw`, from `offset` on."""
  stop = offset + crop_hw
  return image[..., offset[0] : stop[0], offset[1] : stop[1], :]


def pad_image(image: tf.Tensor, size: int) -> tf.Tensor:
  """Pads [..., h, w, c] at bottom and right to a square, with 0.

  Args:
    image: a picture, or a stack of masks; neither side longer than `size`.
    size: side of the square.

  Returns:
    The same type, [..., size, size, c].
  """
  shape = tf.shape(image)
  height, width, channels = shape[-3], shape[-2], image.shape[-1]
  assert channels is not None, image
  # TensorFlow pads whole rows faster than pixels.
  rows = tf.reshape(image, tf.concat([shape[:-2], [width * channels]], axis=0))
  paddings = [[0, 0]] * (image.shape.rank - 3)
  paddings += [[0, size - height], [0, (size - width) * channels]]
  full_shape = tf.concat([shape[:-3], [size, size, channels]], axis=0)
  padded = tf.reshape(tf.pad(rows, paddings), full_shape)
  return tf.ensure_shape(padded, [*image.shape[:-3], size, size, channels])


def image_boxes(hw: tf.Tensor, num_boxes: tf.Tensor) -> tf.Tensor:
  """Global prompts: the whole valid picture `num_boxes` times, [n, 4]."""
  height, width = tf.unstack(tf.cast(hw, tf.float32))
  box = tf.stack([0.0, 0.0, width, height])
  return tf.tile(box[tf.newaxis], [num_boxes, 1])


def to_uint8(image: tf.Tensor) -> tf.Tensor:
  """Rounds a float picture, 0 to 255, to uint8."""
  return tf.cast(tf.round(image), tf.uint8)


def _to_corners(boxes: tf.Tensor) -> tf.Tensor:
  return tf.reshape(boxes, tf.concat([tf.shape(boxes)[:-1], [2, 2]], 0))


def _from_corners(corners: tf.Tensor) -> tf.Tensor:
  return tf.reshape(corners, tf.concat([tf.shape(corners)[:-2], [4]], 0))
