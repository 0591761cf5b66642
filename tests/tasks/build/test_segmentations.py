"""Polygons and both kinds of run lengths give the same mask."""

import io

import numpy as np
from PIL import Image
from pycocotools import mask as mask_lib
import pytest

from tasks.build import segmentations

# Columns 2 to 4 and rows 1 to 3 of a picture of 6 rows and 8 columns.
_POLYGON = [2.0, 1.0, 5.0, 1.0, 5.0, 4.0, 2.0, 4.0]


def _pixels(mask):
  return np.asarray(Image.open(io.BytesIO(mask.png)))


def _square():
  pixels = np.zeros((6, 8), np.uint8)
  pixels[1:4, 2:5] = 1
  return pixels


def _uncompressed(pixels):
  flat = pixels.flatten(order='F')
  edges = np.flatnonzero(np.diff(flat)) + 1
  return np.diff([0, *edges, len(flat)]).tolist()


def test_all_three_kinds_draw_the_same_pixels():
  square = _square()
  compressed = mask_lib.encode(np.asfortranarray(square))['counts'].decode()
  kinds = [
      [_POLYGON],
      {'size': [6, 8], 'counts': _uncompressed(square)},
      {'size': [6, 8], 'counts': compressed},
  ]
  for kind in kinds:
    mask = segmentations.to_mask(kind, 6, 8)
    np.testing.assert_array_equal(_pixels(mask), square * 255)
    assert mask.rle_counts == compressed.encode()


def test_a_polygon_of_two_points_is_dropped_beside_a_good_one():
  mask = segmentations.to_mask([[1.0, 1.0, 2.0, 2.0], _POLYGON], 6, 8)
  assert mask.dropped_polygons == 1
  np.testing.assert_array_equal(_pixels(mask), _square() * 255)


@pytest.mark.parametrize(
    ('segmentation', 'reason'),
    [
        (None, 'mask_missing'),
        ([], 'mask_missing'),
        ([[1.0, 1.0, 2.0, 2.0]], 'mask_missing'),
        ({'size': [8, 6], 'counts': [48]}, 'mask_size'),
        ({'size': [6, 8], 'counts': [47]}, 'mask_broken'),
        ({'size': [6, 8], 'counts': None}, 'mask_missing'),
    ],
)
def test_what_cannot_be_drawn_has_a_reason(segmentation, reason):
  with pytest.raises(segmentations.SegmentationError) as error:
    segmentations.to_mask(segmentation, 6, 8)
  assert error.value.reason == reason
