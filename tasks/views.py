"""How a picture is seen: resized, cropped and padded to the network input.

A view is drawn once an example and then moves the picture, its boxes, points
and masks alike, so a marked pixel stays under its marks. Frames: `orig`
pixels of the file, then `resized`, then those of the crop, which is the valid
area of the network input at the top left.
"""

from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf

from tasks import image_ops


class View(NamedTuple):
  """The three sizes and the place of a crop, each (height, width) [2] int32.

  Attributes:
    orig_hw: size of the picture as stored.
    resized_hw: size after resizing.
    offset: (row, column) of the crop's first pixel in the resized picture.
    hw: size of the crop, the valid area of the network input.
  """

  orig_hw: tf.Tensor
  resized_hw: tf.Tensor
  offset: tf.Tensor
  hw: tf.Tensor

  def pixels(self, image: tf.Tensor, size: int) -> tf.Tensor:
    """Moves a picture [h, w, 3] to [size, size, 3] float32, 0 to 255."""
    resized = image_ops.resize_image(image, self.resized_hw)
    cropped = image_ops.crop_image(resized, self.offset, self.hw)
    return image_ops.pad_image(cropped, size)

  def image(self, image: tf.Tensor, size: int) -> tf.Tensor:
    """Moves a picture [h, w, 3] uint8 to [size, size, 3] uint8."""
    return image_ops.to_uint8(self.pixels(image, size))

  def masks(self, masks: tf.Tensor, size: int) -> tf.Tensor:
    """Moves masks [n, h, w, 1] to [n, size, size, 1], same type."""
    resized = image_ops.resize_masks(masks, self.resized_hw)
    cropped = image_ops.crop_image(resized, self.offset, self.hw)
    return image_ops.pad_image(cropped, size)

  def boxes(self, boxes: tf.Tensor) -> tf.Tensor:
    """Moves boxes [..., 4] and clips them to the valid area."""
    scaled = image_ops.scale_boxes(boxes, self.orig_hw, self.resized_hw)
    return image_ops.crop_boxes(scaled, self.offset, self.hw)

  def points(self, points: tf.Tensor) -> tf.Tensor:
    """Moves points [..., 2] and clips them to the valid area."""
    scaled = image_ops.scale_points(points, self.orig_hw, self.resized_hw)
    return image_ops.crop_points(scaled, self.offset, self.hw)


def fitted_view(orig_hw: tf.Tensor, size: int) -> View:
  """The whole picture, its longer side at `size`."""
  resized_hw = image_ops.ratio_hw(orig_hw, size, tf.constant(1.0))
  return View(orig_hw, resized_hw, tf.zeros([2], tf.int32), resized_hw)


def random_view(
    orig_hw: tf.Tensor,
    size: int,
    scale_range: tuple[float, float],
    seed: tf.Tensor,
) -> View:
  """Draws a scale and, where the picture then is larger, a crop.

  Args:
    orig_hw: size of the picture.
    size: side of the network input.
    scale_range: least and largest longer side, as multiples of `size`; the
      crop moves for scales above 1 only (copy 15 of the original's habits).
    seed: [2] int.

  Returns:
    The view.
  """
  seeds = tf.random.split(seed)
  ratio = tf.random.stateless_uniform([], seeds[0], *scale_range)
  resized_hw = image_ops.ratio_hw(orig_hw, size, ratio)
  hw = tf.minimum(resized_hw, size)
  offset = image_ops.random_crop_offset(resized_hw, hw, seeds[1])
  return View(orig_hw, resized_hw, offset, hw)


def choose_view(
    orig_hw: tf.Tensor,
    size: int,
    training: tf.Tensor,
    scale_range: tuple[float, float],
    seed: tf.Tensor,
) -> View:
  """A random view in training, else the fitted one; `training` is a bool."""
  return View(
      *tf.cond(
          training,
          lambda: tuple(random_view(orig_hw, size, scale_range, seed)),
          lambda: tuple(fitted_view(orig_hw, size)),
      )
  )


def to_fields(view: View) -> dict[str, tf.Tensor]:
  """Names a view's tensors, to carry them in an example."""
  return {f'view/{name}': value for name, value in view._asdict().items()}


def from_fields(example: Mapping[str, tf.Tensor]) -> View:
  """Takes the view out of an example."""
  return View(*(example[f'view/{name}'] for name in View._fields))
