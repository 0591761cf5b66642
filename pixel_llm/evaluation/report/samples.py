"""How good each row of a predictions file is, and which to look at first."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from pixel_llm.evaluation import boxes as boxes_lib
from pixel_llm.evaluation import masks as masks_lib
from pixel_llm.evaluation import refexp

ORDERS = ('worst', 'best', 'file')


@dataclasses.dataclass(frozen=True)
class Sample:
  """A row of a predictions file with its scores.

  Attributes:
    row: the row.
    box_iou: of predicted and true box; 0 for "no box"; None without true box.
    mask_iou: of the masks, None if there are not both.
    trace_l1: mean distance of the points, relative to the picture, or None.
  """

  row: Mapping[str, Any]
  box_iou: float | None
  mask_iou: float | None
  trace_l1: float | None

  @property
  def is_right(self) -> bool | None:
    """Whether the box counts as found; None without true box."""
    if self.box_iou is None:
      return None
    return self.box_iou > refexp.IOU_THRESHOLD

  @property
  def badness(self) -> float:
    """Larger is worse; comparable within a task."""
    if self.box_iou is not None:
      return 1 - self.box_iou + (self.row.get('bbox') is None)
    # Without a distance there is nothing to be seen as wrong.
    return 0.0 if self.trace_l1 is None else self.trace_l1


def score_row(row: Mapping[str, Any]) -> Sample:
  """Scores one row of a predictions file."""
  truth = row.get('truth', {})  # A detection has none.
  box_iou = mask_iou = None
  if truth.get('bbox') is not None:
    box_iou = 0.0
    if row.get('bbox') is not None:
      pair = np.asarray([row['bbox'], truth['bbox']], np.float64)
      predicted, true = boxes_lib.xywh_to_xyxy(pair)
      box_iou = float(boxes_lib.box_iou(predicted, true))
  if 'segmentation' in row and truth.get('segmentation'):
    size = [row['height'], row['width']]
    true_mask = masks_lib.decode_mask(truth['segmentation'], size)
    mask = np.zeros_like(true_mask)
    if row['segmentation']:
      mask = masks_lib.decode_mask(row['segmentation'], size)
    union = int(np.sum(mask | true_mask))
    mask_iou = float(np.sum(mask & true_mask)) / union if union else 0.0
  return Sample(row, box_iou, mask_iou, row.get('trace_l1'))


def choose(
    rows: Sequence[Mapping[str, Any]], order: str, limit: int
) -> tuple[list[Sample], list[Sample]]:
  """Scores all rows and chooses those to show.

  Args:
    rows: of a predictions file.
    order: one of `ORDERS`; equally good rows stay in the file's order.
    limit: how many to show.

  Returns:
    The samples to show, and all of them in the file's order.

  Raises:
    ValueError: if the order is unknown.
  """
  if order not in ORDERS:
    raise ValueError(f'--order={order}: expected one of {ORDERS}.')
  samples = [score_row(row) for row in rows]
  shown = list(samples)
  if order != 'file':
    shown.sort(key=lambda s: s.badness, reverse=order == 'worst')
  return shown[:limit], samples
