"""How a picture is seen: resized, cropped and padded to the network input.

A view is drawn once an example and then moves the picture, its boxes, points
and masks alike, so a marked pixel stays under its marks. Frames: `orig`
pixels of the file, then `resized`, then those of the crop, which is the valid
area of the network input at the top left.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import tensorflow as tf

from tasks import image_ops
from tasks import run_lengths
from tasks import steps


class View(NamedTuple):
  """The three sizes and the place of a crop, each (height, width) [2] int32.

  A view may be mirrored left to right, after the crop.

  Attributes:
    orig_hw: size of the picture as stored.
    resized_hw: size after resizing.
    offset: (row, column) of the crop's first pixel in the resized picture.
    hw: size of the crop, the valid area of the network input.
    mirrored: whether left and right change sides: bool scalar, or False if it
      is known of all views.
  """

  orig_hw: tf.Tensor
  resized_hw: tf.Tensor
  offset: tf.Tensor
  hw: tf.Tensor
  mirrored: tf.Tensor | bool = False

  def _visible(self, image: tf.Tensor) -> tf.Tensor:
    """The valid area of the network input before it turns, float32."""
    resized = image_ops.resize_image(image, self.resized_hw)
    return image_ops.crop_image(resized, self.offset, self.hw)

  def _turned(self, cropped: tf.Tensor) -> tf.Tensor:
    """Mirrors a picture or a stack of masks, if the view is."""
    if self.mirrored is False:
      return cropped
    return tf.cond(
        tf.convert_to_tensor(self.mirrored),
        lambda: tf.reverse(cropped, [-2]),
        lambda: cropped,
    )

  def pixels(self, image: tf.Tensor, size: int) -> tf.Tensor:
    """Moves a picture [h, w, 3] to [size, size, 3] float32, 0 to 255."""
    return image_ops.pad_image(self._turned(self._visible(image)), size)

  def image(self, image: tf.Tensor, size: int) -> tf.Tensor:
    """Moves a picture [h, w, 3] uint8 to [size, size, 3] uint8."""
    visible = image_ops.to_uint8(self._visible(image))
    return image_ops.pad_image(self._turned(visible), size)

  def masks(self, run_ends: tf.Tensor, size: int) -> tf.Tensor:
    """Moves masks to the view, each pixel to the nearest.

    Args:
      run_ends: of `run_lengths.run_ends` [n, r].
      size: side of the network input.

    Returns:
      1 on the object, else 0, [n, size, size] uint8.
    """
    rows, columns = (
        image_ops.nearest_pixels(self.orig_hw[axis], self.resized_hw[axis])[
            self.offset[axis] :
        ][: self.hw[axis]]
        for axis in (0, 1)
    )
    visible = run_lengths.sample(run_ends, self.orig_hw[0], rows, columns)
    visible = self._turned(visible[..., tf.newaxis])
    return image_ops.pad_image(visible, size)[..., 0]

  def boxes(self, boxes: tf.Tensor) -> tf.Tensor:
    """Moves boxes [..., 4] and clips them to the valid area."""
    scaled = image_ops.scale_boxes(boxes, self.orig_hw, self.resized_hw)
    cropped = image_ops.crop_boxes(scaled, self.offset, self.hw)
    if self.mirrored is False:
      return cropped
    flipped = image_ops.flip_boxes(cropped, self.hw[1])
    return tf.where(self.mirrored, flipped, cropped)

  def points(self, points: tf.Tensor) -> tf.Tensor:
    """Moves points [..., 2] and clips them to the valid area."""
    scaled = image_ops.scale_points(points, self.orig_hw, self.resized_hw)
    cropped = image_ops.crop_points(scaled, self.offset, self.hw)
    if self.mirrored is False:
      return cropped
    flipped = image_ops.flip_points(cropped, self.hw[1])
    return tf.where(self.mirrored, flipped, cropped)


def fitted_view(orig_hw: tf.Tensor, size: int) -> View:
  """The whole picture, its longer side at `size`."""
  resized_hw = image_ops.ratio_hw(orig_hw, size, tf.constant(1.0))
  offset = tf.zeros([2], tf.int32)
  return View(orig_hw, resized_hw, offset, resized_hw)


def centered_view(orig_hw: tf.Tensor, size: int) -> View:
  """The middle of the picture, its shorter side at `size`."""
  resized_hw = image_ops.shorter_side_hw(orig_hw, tf.constant(size))
  hw = tf.minimum(resized_hw, size)
  offset = image_ops.center_crop_offset(resized_hw, hw)
  return View(orig_hw, resized_hw, offset, hw)


def random_view(
    orig_hw: tf.Tensor,
    size: int,
    scale_range: tuple[float, float],
    seed: tf.Tensor,
    mirror: bool = False,
) -> View:
  """Draws a scale and, where the picture then is larger, a crop.

  Args:
    orig_hw: size of the picture.
    size: side of the network input.
    scale_range: least and largest longer side, as multiples of `size`; the
      crop moves for scales above 1 only (copy 15 of the original's habits).
    seed: [2] int.
    mirror: whether every other view is mirrored.

  Returns:
    The view.
  """
  seeds = tf.random.split(seed)
  ratio = tf.random.stateless_uniform([], seeds[0], *scale_range)
  resized_hw = image_ops.ratio_hw(orig_hw, size, ratio)
  hw = tf.minimum(resized_hw, size)
  offset = image_ops.random_crop_offset(resized_hw, hw, seeds[1])
  if not mirror:
    return View(orig_hw, resized_hw, offset, hw)
  coin = tf.random.stateless_uniform([], tf.random.fold_in(seed, 2))
  return View(orig_hw, resized_hw, offset, hw, coin < 0.5)


def choose_view(
    orig_hw: tf.Tensor,
    size: int,
    training: tf.Tensor,
    scale_range: tuple[float, float],
    seed: tf.Tensor,
    mirror: bool = False,
    still_view: Callable[[tf.Tensor, int], View] = fitted_view,
) -> View:
  """Takes a random view in training, else the same one every time.

  Args:
    orig_hw: size of the picture.
    size: side of the network input.
    training: bool scalar.
    scale_range: of `random_view`.
    seed: of `random_view`.
    mirror: of `random_view`.
    still_view: what evaluation sees.

  Returns:
    The view.
  """
  is_tensor = len(View._fields) if mirror else -1
  fields = steps.in_training(
      training,
      lambda: random_view(orig_hw, size, scale_range, seed, mirror)[:is_tensor],
      lambda: still_view(orig_hw, size)[:is_tensor],
  )
  return View(*fields)


def visible_rows(boxes: tf.Tensor, training: tf.Tensor) -> tf.Tensor:
  """The boxes that an example may show.

  Args:
    boxes: [n, 4] in pixels of the view.
    training: bool scalar.

  Returns:
    Numbers [m] int64 of those of which the view still shows some area; in evaluation, which
    shows the whole picture, of all.
  """
  return steps.in_training(
      training,
      lambda: tf.where(image_ops.has_area(boxes))[:, 0],
      lambda: tf.range(tf.shape(boxes, tf.int64)[0]),
  )


def to_fields(view: View) -> dict[str, tf.Tensor]:
  """Names a view's tensors, to carry them in an example.

  What says that no view is mirrored is left out, and known to be False again.
  """
  return {
      f'view/{name}': value
      for name, value in view._asdict().items()
      if value is not False
  }


def from_fields(example: Mapping[str, tf.Tensor]) -> View:
  """Takes the view out of an example."""
  return View(
      **{
          name: example[f'view/{name}']
          for name in View._fields
          if f'view/{name}' in example
      }
  )
