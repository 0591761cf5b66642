import pathlib

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_llm import roi_ops
from pixel_llm.golden.case import load_case
from pixel_llm.golden.compare import compare_case
from pixel_llm.golden.runners import detection

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'


@pytest.mark.golden
def test_matches_the_golden_figures():
  case = load_case(GOLDEN, 'roi_ops')
  outputs = detection.RUNNERS['roi_ops'](case)
  assert [r for r in compare_case(outputs, case.expected) if not r.passed] == []


def boxes_of(*rows):
  return jnp.asarray(rows, jnp.float32)


@st.composite
def boxes(draw):
  corner = [draw(st.floats(-50, 400, width=32)) for _ in range(2)]
  size = [draw(st.floats(1, 400, width=32)) for _ in range(2)]
  return [*corner, corner[0] + size[0], corner[1] + size[1]]


@settings(max_examples=50, deadline=None)
@given(box=boxes(), reference=boxes())
def test_decoding_undoes_encoding(box, reference):
  grows = [
      (box[i + 2] - box[i]) / (reference[i + 2] - reference[i]) for i in (0, 1)
  ]
  box, reference = boxes_of(box), boxes_of(reference)
  deltas = roi_ops.encode_boxes(box, reference, (20.0, 20.0, 10.0, 10.0))
  back = roi_ops.decode_boxes(deltas, reference, (20.0, 20.0, 10.0, 10.0))
  if max(grows) < 1000 / 16:
    np.testing.assert_allclose(back, box, atol=2e-2)


def test_decoding_clips_how_much_a_box_grows():
  back = roi_ops.decode_boxes(
      boxes_of([0, 0, 1e6, -1e6]), boxes_of([0, 0, 16, 16])
  )
  np.testing.assert_allclose(back[0, 2] - back[0, 0], 1000, rtol=1e-5)
  np.testing.assert_allclose(back[0, 3] - back[0, 1], 0, atol=1e-5)


def test_empty_boxes_are_coded_by_finite_numbers():
  empty, box = boxes_of([0, 0, 0, 0]), boxes_of([0, 0, 5, 5])
  for pair in ((empty, box), (box, empty), (empty, empty)):
    assert np.all(np.isfinite(roi_ops.encode_boxes(*pair)))


def test_iou_by_hand():
  ious = roi_ops.pairwise_iou(
      boxes_of([0, 0, 4, 2], [0, 0, 0, 0]),
      boxes_of([2, 0, 6, 2], [0, 0, 4, 2], [4, 0, 6, 2], [3, 3, 1, 1]),
  )
  np.testing.assert_allclose(ious, [[1 / 3, 1, 0, 0], [0, 0, 0, 0]], rtol=1e-6)


def test_clipping_moves_corners_to_the_edge():
  found = roi_ops.clip_boxes(
      boxes_of([-5, 3, 90, 70], [9, -8, -3, 4]), (60, 80)
  )
  np.testing.assert_array_equal(found, [[0, 3, 80, 60], [9, 0, 0, 4]])


def test_a_row_without_a_positive_number_is_no_box():
  found = roi_ops.is_present(
      boxes_of([0, 0, 0, 0], [-3, -2, 0, -1], [0, 0, 0, 1])
  )
  assert found.tolist() == [False, False, True]


def test_the_level_of_a_box_follows_its_side():
  sides = [0, 10, 111, 113, 223, 225, 449, 897, 1793, 9999]
  levels = roi_ops.pyramid_levels(
      boxes_of(*([0, 0, side, side] for side in sides)), num_levels=5
  )
  assert levels.tolist() == [0, 0, 0, 0, 0, 1, 2, 3, 4, 4]
  coarse = roi_ops.pyramid_levels(boxes_of([0, 0, 449, 449]), 3, finest_level=5)
  assert coarse.tolist() == [0]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num_samples=st.integers(1, 3))
def test_a_linear_map_is_cropped_exactly(seed, num_samples):
  rng = np.random.default_rng(seed)
  slope_x, slope_y, offset = rng.normal(size=3)

  def linear(x, y):
    return offset + slope_x * x + slope_y * y

  height, width = 9, 12
  # The value of a cell stands at its centre.
  rows, columns = np.indices((height, width)) + 0.5
  features = jnp.asarray(linear(columns, rows)[None, ..., None], jnp.float32)
  # Samples must stay half a cell away from the zeros outside.
  x0, y0 = rng.uniform(0.5, 5), rng.uniform(0.5, 4)
  x1, y1 = rng.uniform(x0, width - 0.5), rng.uniform(y0, height - 0.5)
  crops = roi_ops.roi_align(
      [features],
      boxes_of([x0, y0, x1, y1])[None],
      jnp.zeros((1, 1), jnp.int32),
      output_size=5,
      num_samples=num_samples,
  )
  steps = (np.arange(5) + 0.5) / 5
  expected = linear(
      (x0 + steps * (x1 - x0))[None], (y0 + steps * (y1 - y0))[:, None]
  )
  np.testing.assert_allclose(crops[0, 0, ..., 0], expected, atol=1e-4)


def test_a_box_reads_its_own_level_only():
  levels = [jnp.full((1, 8, 8, 1), 2.0), jnp.full((1, 4, 4, 1), 3.0)]
  crops = roi_ops.roi_align(
      levels,
      jnp.tile(boxes_of([1, 1, 3, 3])[None], (1, 2, 1)),
      jnp.asarray([[0, 1]]),
  )
  np.testing.assert_allclose(crops[0, 0], 2.0, rtol=1e-6)
  np.testing.assert_allclose(crops[0, 1], 3.0, rtol=1e-6)


def test_a_box_outside_the_map_reads_zeros():
  crops = roi_ops.roi_align(
      [jnp.ones((1, 4, 4, 2))],
      boxes_of([5, 5, 9, 9], [-6, 0, -2, 4])[None],
      jnp.zeros((1, 2), jnp.int32),
  )
  np.testing.assert_array_equal(crops, 0)
