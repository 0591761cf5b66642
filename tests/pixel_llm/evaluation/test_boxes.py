"""Boxes of the evaluation."""

import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
import pytest

from pixel_llm.evaluation import boxes

_CORNER = st.floats(-100, 100, width=32)
_BOXES = hnp.arrays(np.float64, (3, 4), elements=_CORNER)


def test_frames_scale_each_axis_and_clip():
  # 10 x 20 pixels of the input are 100 x 400 of the original.
  scaled = boxes.boxes_image_to_orig(
      np.asarray([[1.0, 2.0, 3.0, 4.0], [-5.0, -5.0, 30.0, 30.0]]),
      image_hw=(10, 20),
      orig_hw=(100, 400),
  )
  np.testing.assert_allclose(scaled, [[20, 20, 60, 40], [0, 0, 400, 100]])


@hypothesis.given(_BOXES)
def test_sizes_and_corners_invert(xyxy):
  back = boxes.xywh_to_xyxy(boxes.xyxy_to_xywh(xyxy))
  np.testing.assert_allclose(back, xyxy, atol=1e-9)


def test_iou_by_hand():
  a = np.asarray([0.0, 0.0, 4.0, 2.0])
  assert boxes.box_iou(a, np.asarray([2.0, 0.0, 6.0, 2.0])) == pytest.approx(
      4 / 12
  )
  assert boxes.box_iou(a, a) == 1
  assert boxes.box_iou(a, np.asarray([4.0, 0.0, 6.0, 2.0])) == 0


@pytest.mark.parametrize('box', [[3, 1, 1, 3], [1, 3, 3, 1], [2, 2, 2, 2]])
def test_a_box_inside_out_or_empty_overlaps_nothing(box):
  whole = np.asarray([0.0, 0.0, 4.0, 4.0])
  box = np.asarray(box, np.float64)
  assert boxes.box_iou(box, whole) == 0
  assert boxes.box_iou(box, box) == 0


@hypothesis.given(_BOXES, _BOXES)
def test_iou_is_symmetric_and_at_most_one(a, b):
  iou = boxes.box_iou(a, b)
  assert np.all((iou >= 0) & (iou <= 1 + 1e-12))
  np.testing.assert_array_equal(iou, boxes.box_iou(b, a))
