"""A marked pixel stays under its box, point and mask."""

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
from pycocotools import mask as mask_lib
import tensorflow as tf

from tasks import image_ops
from tasks import run_lengths
from tasks import views

SIZE = 48


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(20, 90),
    width=st.integers(20, 90),
    top=st.floats(0, 0.7),
    left=st.floats(0, 0.7),
    scale=st.sampled_from([(1.0, 1.0), (0.5, 0.9), (1.2, 2.0)]),
    seed=st.integers(0, 2**31 - 1),
    mirror=st.booleans(),
)
def test_marks_move_with_the_picture(
    height, width, top, left, scale, seed, mirror
):
  # A white block of 30 % of each side on black.
  y0, x0 = int(top * height), int(left * width)
  y1, x1 = y0 + max(4, int(0.3 * height)), x0 + max(4, int(0.3 * width))
  y1, x1 = min(y1, height), min(x1, width)
  block = np.zeros((height, width), np.uint8)
  block[y0:y1, x0:x1] = 255
  image = np.repeat(block[..., np.newaxis], 3, axis=-1)
  hw = tf.constant([height, width])
  view = views.random_view(hw, SIZE, scale, tf.constant([seed, 1]), mirror)
  seen = view.image(tf.constant(image), SIZE).numpy()[..., 0]
  counts = mask_lib.encode(np.asfortranarray(block > 0))['counts']
  ends = run_lengths.run_ends(tf.constant([counts]), hw)
  mask = view.masks(ends, SIZE).numpy()[0] > 0
  box = view.boxes(tf.constant([[x0, y0, x1, y1]], tf.float32)).numpy()[0]
  corners = tf.constant([[x0, y0], [x1, y1]], tf.float32)
  points = view.points(corners).numpy()
  if view.mirrored:
    points[:, 0] = points[::-1, 0]
  np.testing.assert_array_equal(points.ravel(), box)
  valid_h, valid_w = view.hw.numpy()
  assert np.all(seen[valid_h:] == 0) and np.all(seen[:, valid_w:] == 0)
  # Bilinear and nearest differ by less than a resized pixel at the edge.
  blur = 1 + max(scale) * SIZE / max(height, width)
  ys, xs = np.mgrid[:SIZE, :SIZE] + 0.5
  inside = (
      (xs > box[0] + blur)
      & (xs < box[2] - blur)
      & (ys > box[1] + blur)
      & (ys < box[3] - blur)
  )
  outside = (
      (xs < box[0] - blur)
      | (xs > box[2] + blur)
      | (ys < box[1] - blur)
      | (ys > box[3] + blur)
  )
  valid = (ys < valid_h) & (xs < valid_w)
  assert np.all(seen[inside & valid] > 250)
  assert np.all(seen[outside] < 5)
  assert np.all(mask[inside & valid])
  assert not np.any(mask[outside])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from([32, 384]))
def test_a_fitted_picture_fits_and_exactly_when_asked(height, width, size):
  hw = tf.constant([height, width])
  fitted = views.fitted_view(hw, size).hw.numpy()
  assert np.all(fitted >= 1) and np.all(fitted <= size)
  exact = image_ops.ratio_hw(hw, size, tf.constant(1.0), exact=True).numpy()
  assert exact.max() == size
  if min(height, width) * size >= max(height, width) * 8:
    # The original loses less than a pixel of the shorter side.
    assert fitted.max() >= size * (1 - 1 / 8)


def test_the_crop_moves_only_for_scales_above_one():
  hw = tf.constant([60, 90])
  offsets = {
      tuple(
          views.random_view(
              hw, 64, (1.0, 1.0), tf.constant([s, 0])
          ).offset.numpy()
      )
      for s in range(5)
  }
  assert offsets == {(0, 0)}
  offsets = {
      tuple(
          views.random_view(
              hw, 64, (2.0, 2.0), tf.constant([s, 0])
          ).offset.numpy()
      )
      for s in range(8)
  }
  assert len(offsets) > 4


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 60), st.integers(0, 2**31 - 1))
def test_flips_and_crops_invert(width, seed):
  rng = np.random.default_rng(seed)
  corners = np.sort(rng.uniform(0, width, (3, 2, 2)), axis=1)
  boxes = tf.constant(corners.reshape(3, 4), tf.float32)
  points = tf.constant(corners, tf.float32)
  for flip, marks in (
      (image_ops.flip_boxes, boxes),
      (image_ops.flip_points, points),
  ):
    there = flip(marks, tf.constant(width))
    back = flip(there, tf.constant(width))
    np.testing.assert_allclose(back, marks, atol=1e-4)
  # A crop around all marks moves them by its corner, and loses none.
  offset = tf.constant(np.floor(corners.min((0, 1))[::-1]).astype(np.int32))
  hw = tf.constant([width, width])
  moved = tf.cast(tf.tile(offset[::-1], [2]), tf.float32)
  cropped = image_ops.crop_boxes(boxes, offset, hw)
  np.testing.assert_allclose(cropped + moved, boxes, atol=1e-4)
  cropped = image_ops.crop_points(points, offset, hw)
  np.testing.assert_allclose(cropped + moved[:2], points, atol=1e-4)


def test_flipping_twice_gives_the_marks_back():
  boxes = tf.constant([[1.0, 2.0, 5.0, 6.0]])
  points = tf.constant([[1.0, 2.0]])
  width = tf.constant(9)
  assert image_ops.flip_boxes(boxes, width).numpy().tolist() == [[4, 2, 8, 6]]
  assert image_ops.flip_points(points, width).numpy().tolist() == [[8, 2]]
