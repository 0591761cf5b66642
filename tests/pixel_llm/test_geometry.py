import pathlib

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_llm import geometry
from pixel_llm.golden.case import load_case
from pixel_llm.golden.compare import compare_case
from pixel_llm.golden.runners import geometry as geometry_runner

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'

# XLA takes subnormal numbers for zero, NumPy does not.
coordinates = st.floats(-512, 512, width=32, allow_subnormal=False)
# One shape, so that JAX compiles each conversion once.
box_arrays = hnp.arrays(np.float32, (2, 3, 4), elements=coordinates)
quick = hypothesis.settings(max_examples=20, deadline=None)


@pytest.mark.golden
def test_matches_the_golden_figures():
  case = load_case(GOLDEN, 'utils')
  outputs = geometry_runner.RUNNERS['utils'](case)
  assert [r for r in compare_case(outputs, case.expected) if not r.passed] == []


@quick
@hypothesis.given(boxes=box_arrays)
def test_box_conversions_invert(boxes):
  for there, back in (
      (geometry.xyxy_to_cxcywh, geometry.cxcywh_to_xyxy),
      (geometry.xyxy_to_xywh, geometry.xywh_to_xyxy),
  ):
    np.testing.assert_allclose(back(there(boxes)), boxes, atol=1e-3)
    np.testing.assert_allclose(there(back(boxes)), boxes, atol=1e-3)


@quick
@hypothesis.given(boxes=box_arrays)
def test_numpy_stays_numpy_and_equals_jax(boxes):
  for convert in (
      geometry.xyxy_to_cxcywh,
      geometry.cxcywh_to_xyxy,
      geometry.xyxy_to_xywh,
      geometry.xywh_to_xyxy,
      geometry.box_is_valid,
      lambda b: geometry.boxes_to_points(b, 3),
      lambda b: geometry.points_to_boxes(b.reshape((*b.shape[:-1], 2, 2))),
  ):
    host, device = convert(boxes), convert(jnp.asarray(boxes))
    assert isinstance(host, np.ndarray) and isinstance(device, jax.Array)
    np.testing.assert_allclose(host, device, rtol=1e-5, atol=1e-3)


@quick
@hypothesis.given(boxes=box_arrays, side=st.integers(2, 4))
def test_a_box_is_the_box_around_its_cell_centres(boxes, side):
  # Sorted corners make a box that is not inverted.
  corners = np.sort(boxes.reshape((*boxes.shape[:-1], 2, 2)), axis=-2)
  boxes = corners.reshape(boxes.shape)
  points = geometry.boxes_to_points(boxes, side)
  np.testing.assert_allclose(
      geometry.points_to_boxes(points, points_per_side=side), boxes, atol=0.01
  )


def test_conversions_by_hand():
  box = np.array([10.0, 20.0, 14.0, 30.0], np.float32)
  assert geometry.xyxy_to_cxcywh(box).tolist() == [12, 25, 4, 10]
  assert geometry.xyxy_to_xywh(box).tolist() == [10, 20, 4, 10]


def test_a_box_around_no_point_is_not_valid():
  points = jnp.asarray([[[1.0, 2.0], [5.0, 8.0]]] * 2)
  valid = jnp.asarray([[False, False], [False, True]])
  boxes = geometry.points_to_boxes(points, valid)
  assert boxes.tolist() == [[6, 9, 0, 1], [5, 8, 5, 8]]
  assert geometry.box_is_valid(boxes).tolist() == [False, True]


def test_absolute_and_relative_undo_each_other():
  image_hw = jnp.asarray([[40, 60], [50, 30]])
  boxes = jnp.arange(24, dtype=jnp.float32).reshape(2, 3, 4)
  relative = geometry.boxes_to_relative(boxes, image_hw)
  assert relative[0, 1, 0] == pytest.approx(4 / 60)
  assert relative[1, 0, 1] == pytest.approx(13 / 50)
  np.testing.assert_allclose(
      geometry.boxes_to_absolute(relative, image_hw), boxes, rtol=1e-6
  )


@quick
@hypothesis.given(height=st.integers(1, 6), width=st.integers(1, 7))
def test_the_size_of_a_valid_mask_is_what_made_it(height, width):
  image_hw = np.array([[height, width]])
  mask = geometry.valid_mask(image_hw, 6, 7)
  assert mask.shape == (1, 6, 7) and mask.sum() == height * width
  np.testing.assert_array_equal(geometry.image_hw_from_mask(mask), image_hw)


def test_masked_prompts_have_ignored_points():
  labels = geometry.point_labels(jnp.asarray([[True, False]]), 3)
  assert labels.tolist() == [[[1, 1, 1], [-1, -1, -1]]]
  assert labels.dtype == jnp.int32


def test_token_mask_with_ids_that_differ():
  # BERT's: begin 101, end 102, padding 0.
  tokens = np.array([101, 7, 8, 102, 0])
  ids = {'begin_id': 101, 'end_id': 102, 'pad_id': 0}
  for ignore, expected in {
      'begin': [0, 1, 1, 1, 1],
      'pad': [1, 1, 1, 1, 0],
      'begin,end,pad': [0, 1, 1, 0, 0],
      '^end-1': [0, 0, 1, 0, 0],
      'text': [1, 0, 0, 1, 1],
  }.items():
    assert geometry.token_mask(tokens, ignore, **ids).tolist() == expected


def test_an_unknown_ignore_name_lists_the_nearest():
  with pytest.raises(ValueError, match="names 'ends'.*'end'"):
    geometry.token_mask(np.zeros(3, int), 'begin,ends', begin_id=0, end_id=1)


@pytest.mark.parametrize(
    ('side', 'thickness', 'num_points'), [(6, 2, 32), (5, 1, 16), (3, 2, 9)]
)
def test_a_donut_is_the_grid_without_its_hole(side, thickness, num_points):
  donut = geometry.donut_grid(side, thickness=thickness)
  solid = geometry.solid_grid(side)
  assert len(donut) == len({tuple(p) for p in donut.tolist()}) == num_points
  assert {tuple(p) for p in donut.tolist()} <= {
      tuple(p) for p in solid.tolist()
  }
