"""Regions that say where the same thing is: merged by their boxes (RefA).

Visual Genome's annotators drew many boxes around one thing, so an evaluation
first joins the regions of a picture that overlap enough.

RefA: densecap (Johnson et al. 2016), eval/eval_utils.lua and box_utils.lua.
"""

from collections.abc import Sequence
import dataclasses

from jaxtyping import Float
import numpy as np

from pixel_llm.evaluation import boxes as boxes_lib

# RefA.
MERGE_IOU = 0.7


@dataclasses.dataclass(frozen=True)
class Region:
  """One thing in a picture.

  Attributes:
    box: x0 y0 x1 y1 in pixels, the mean of the joined boxes.
    captions: what the annotators said of it, in their order.
  """

  box: Float[np.ndarray, '4']
  captions: tuple[str, ...]


def iou_matrix(
    boxes: Float[np.ndarray, 'n 4'], others: Float[np.ndarray, 'm 4']
) -> Float[np.ndarray, 'n m']:
  """Intersection over union of every box with every other one."""
  return boxes_lib.box_iou(boxes[:, None], others[None])


def clusters(
    ious: Float[np.ndarray, 'n n'], threshold: float = MERGE_IOU
) -> list[list[int]]:
  """Joins what overlaps, the largest cluster first (RefA).

  A box and all boxes that overlap it enough are one cluster, whether or not
  those overlap each other; then the rest is searched again. For example, with
  a row of boxes in which neighbours overlap, the middle one of three takes
  both others.

  Args:
    ious: overlap of every pair.
    threshold: least overlap that joins.

  Returns:
    The members of each cluster in ascending order. A box that does not even
    overlap itself, having no area, is in none.
  """
  joins = ious >= threshold
  found = []
  while joins.any():
    members = np.flatnonzero(joins[np.argmax(joins.sum(axis=1))])
    found.append(members.tolist())
    joins[members] = False
    joins[:, members] = False
  return found


def merge_regions(
    boxes: Float[np.ndarray, 'n 4'], captions: Sequence[str]
) -> list[Region]:
  """Merges the regions of one picture.

  Args:
    boxes: x0 y0 x1 y1 in pixels.
    captions: one a box.

  Returns:
    The merged regions, the one of most boxes first. A box without area is no
    region.
  """
  return [
      Region(boxes[members].mean(axis=0), tuple(captions[m] for m in members))
      for members in clusters(iou_matrix(boxes, boxes))
  ]
