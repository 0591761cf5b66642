"""Masks of the evaluation."""

import json

import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
import pytest

from pixel_llm.evaluation import masks

# pycocotools 2.0.11 still has the __array__ of NumPy 1.
pytestmark = pytest.mark.filterwarnings(
    'ignore:__array__ implementation:DeprecationWarning'
)

_MASKS = hnp.arrays(
    bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)
)


@hypothesis.given(_MASKS)
def test_run_lengths_invert_and_go_into_json(mask):
  rle = json.loads(json.dumps(masks.encode_mask(mask)))
  assert isinstance(rle['counts'], str)
  np.testing.assert_array_equal(masks.decode_mask(rle, mask.shape), mask)


def test_the_three_coco_forms_are_one_mask():
  expected = np.zeros((4, 6), bool)
  expected[1:3, 2:5] = True
  polygons = [[2, 1, 5, 1, 5, 3, 2, 3]]
  # Column by column, beginning with the zeros.
  uncompressed = {'size': [4, 6], 'counts': [9, 2, 2, 2, 2, 2, 5]}
  for form in [polygons, uncompressed, masks.encode_mask(expected)]:
    np.testing.assert_array_equal(masks.decode_mask(form, (4, 6)), expected)


def test_a_mask_of_another_size_is_an_error():
  rle = masks.encode_mask(np.ones((4, 6), bool))
  with pytest.raises(ValueError, match=r'size \[4, 6\] .* of \[6, 4\]'):
    masks.decode_mask(rle, (6, 4))


def test_enlarging_interpolates_between_pixel_centres():
  row = masks.resize_bilinear(np.asarray([[0.0, 4.0]]), 1, 4)
  np.testing.assert_allclose(row, [[0, 1, 3, 4]])


@hypothesis.given(
    hnp.arrays(np.float32, (3, 4), elements=st.floats(-8, 8, width=32)),
    st.integers(1, 12),
    st.integers(1, 12),
)
def test_resizing_equals_interpolation_written_out(values, height, width):
  ys = np.clip((np.arange(height) + 0.5) * 3 / height - 0.5, 0, 2)
  xs = np.clip((np.arange(width) + 0.5) * 4 / width - 0.5, 0, 3)
  columns = np.stack([np.interp(xs, range(4), row) for row in values])
  expected = np.stack(
      [np.interp(ys, range(3), column) for column in columns.T], -1
  )
  actual = masks.resize_bilinear(values, height, width)
  np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_logits_outside_the_valid_area_do_not_count():
  logits = np.full((4, 4), 5.0)
  logits[:2, :3] = -5.0
  # Valid: 32 x 48 of 64 x 64, so 2 x 3 of the 4 x 4 cells.
  mask = masks.logits_to_mask(logits, (32, 48), (64, 64), (100, 150))
  assert mask.shape == (100, 150)
  assert not mask.any()


def test_the_box_of_a_mask_holds_its_pixels():
  mask = np.zeros((5, 7), bool)
  assert masks.mask_box(mask) is None
  mask[1, 2] = mask[3, 4] = True
  assert masks.mask_box(mask).tolist() == [2, 1, 5, 4]
