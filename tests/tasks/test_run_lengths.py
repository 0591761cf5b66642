"""Masks sampled from their run lengths, beside masks that are decoded."""

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
from pycocotools import mask as mask_lib
import pytest
import tensorflow as tf

from tasks import image_ops
from tasks import run_lengths


def _counts(masks):
  encoded = [mask_lib.encode(np.asfortranarray(mask)) for mask in masks]
  counts = [
      rle['counts'] if mask.any() else b'' for rle, mask in zip(encoded, masks)
  ]
  return tf.constant(counts, tf.string, [len(masks)])


def _masks(num_masks, height, width, block, seed):
  # Noise of blocks: runs of any length, in any number.
  rng = np.random.default_rng(seed)
  shape = num_masks, -(-height // block), -(-width // block)
  blocks = rng.random(shape) < rng.random((num_masks, 1, 1))
  whole = blocks.repeat(block, axis=1).repeat(block, axis=2)
  return whole[:, :height, :width].astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(
    num_masks=st.integers(0, 4),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    block=st.sampled_from([1, 2, 7, 30]),
    to_height=st.integers(1, 90),
    to_width=st.integers(1, 90),
    cut=st.floats(0, 0.9),
    seed=st.integers(0, 2**31 - 1),
)
def test_equals_the_decoded_mask_resized_to_the_nearest_and_cropped(
    num_masks, height, width, block, to_height, to_width, cut, seed
):
  masks = _masks(num_masks, height, width, block, seed)
  ends = run_lengths.run_ends(_counts(masks), tf.constant([height, width]))
  first_row, first_column = int(cut * to_height), int(cut * to_width)
  rows = image_ops.nearest_pixels(tf.constant(height), tf.constant(to_height))
  columns = image_ops.nearest_pixels(tf.constant(width), tf.constant(to_width))
  sampled = run_lengths.sample(
      ends, tf.constant(height), rows[first_row:], columns[first_column:]
  )
  resized = tf.image.resize(
      masks[..., np.newaxis], [to_height, to_width], method='nearest'
  )
  np.testing.assert_array_equal(
      sampled, resized[:, first_row:, first_column:, 0]
  )


def test_a_picture_of_a_million_pixels_and_thousands_of_runs():
  height, width = 1000, 1200
  masks = _masks(3, height, width, 3, 5)
  ends = run_lengths.run_ends(_counts(masks), tf.constant([height, width]))
  rows, columns = tf.range(height), tf.range(width)
  sampled = run_lengths.sample(ends, tf.constant(height), rows, columns)
  np.testing.assert_array_equal(sampled, masks)


@pytest.mark.parametrize('change', ['cut', 'turned', 'other_picture'])
def test_runs_that_do_not_fill_the_picture_are_refused(change):
  masks = _masks(2, 40, 50, 5, 1)
  counts = _counts(masks).numpy().tolist()
  hw = [40, 50]
  if change == 'cut':
    counts[1] = counts[1][:-1]
  elif change == 'turned':
    counts[1] = counts[1][::-1]
  else:
    hw = [50, 41]
  with pytest.raises(tf.errors.InvalidArgumentError, match='do not fill'):
    run_lengths.run_ends(tf.constant(counts), tf.constant(hw))
