"""Referring expressions: is the object in the box, and in the mask? (RefA)

Every expression counts, also one for which the model gave no box: the original
divided by the predicted ones only. An expression that comes twice, such as
padding of a last batch, counts once; its name is (image id, prompt id).

RefA: the published evaluation: precision at IoU > 0.5, cIoU = mean intersection
/ mean union, gIoU = mean of the ratios.
"""

from collections.abc import Hashable, Mapping, Sequence
import dataclasses
from typing import Any

from jaxtyping import Bool, Float
import numpy as np

from pixel_llm.evaluation import boxes as boxes_lib
from pixel_llm.evaluation import masks as masks_lib

# RefA: strictly above.
IOU_THRESHOLD = 0.5
# RefA: keeps empty unions finite, in pixels.
EPSILON = 1e-5


@dataclasses.dataclass
class RefexpScores:
  """Collects expressions one by one; `summary` may be asked at any time.

  Attributes:
    box_ious: IoU of the predicted box by expression; 0 if there is none.
    no_box: expressions without a predicted box.
    mask_areas: (intersection, union) in pixels by expression.
    mask_box_ious: IoU of the box around the predicted mask by expression.
  """

  box_ious: dict[Hashable, float] = dataclasses.field(default_factory=dict)
  no_box: set[Hashable] = dataclasses.field(default_factory=set)
  mask_areas: dict[Hashable, tuple[int, int]] = dataclasses.field(
      default_factory=dict
  )
  mask_box_ious: dict[Hashable, float] = dataclasses.field(default_factory=dict)

  def add_box(
      self,
      expression: Hashable,
      box: Float[np.ndarray, '4'] | None,
      true_box: Float[np.ndarray, '4'],
  ) -> None:
    """Adds an expression unless it was added before.

    Args:
      expression: its name, unique over the data set.
      box: predicted x0 y0 x1 y1 in pixels of the original, or None.
      true_box: the target in the same frame.
    """
    if expression in self.box_ious:
      return
    if box is None:
      self.no_box.add(expression)
      self.box_ious[expression] = 0.0
    else:
      self.box_ious[expression] = float(boxes_lib.box_iou(box, true_box))

  def add_mask(
      self,
      expression: Hashable,
      mask: Bool[np.ndarray, 'H W'] | None,
      true_mask: Bool[np.ndarray, 'H W'],
      true_box: Float[np.ndarray, '4'],
  ) -> None:
    """Adds an expression's mask unless it was added before.

    Args:
      expression: its name, unique over the data set.
      mask: predicted mask of the original picture, or None.
      true_mask: the target.
      true_box: the target box, for the box around the predicted mask.
    """
    if expression in self.mask_areas:
      return
    if mask is None:
      mask = np.zeros_like(true_mask)
    box = masks_lib.mask_box(mask)
    self.mask_areas[expression] = (
        int(np.sum(mask & true_mask)),
        int(np.sum(mask | true_mask)),
    )
    self.mask_box_ious[expression] = (
        0.0 if box is None else float(boxes_lib.box_iou(box, true_box))
    )

  def summary(self) -> dict[str, float | int]:
    """Scores of all expressions so far; mask scores if there are masks.

    Returns:
      Scores by name, all from 0 to 1, and counts.

    Raises:
      ValueError: if no expression was added.
    """
    if not self.box_ious:
      raise ValueError(
          'No referring expression was evaluated; is the evaluation split'
          ' empty, or `num_examples` 0?'
      )
    ious = np.asarray(list(self.box_ious.values()))
    scores = {
        'box_precision_at_0.5': float(np.mean(ious > IOU_THRESHOLD)),
        'box_mean_iou': float(np.mean(ious)),
        'num_expressions': len(ious),
        'num_no_box': len(self.no_box),
    }
    if self.mask_areas:
      intersections, unions = np.asarray(
          list(self.mask_areas.values()), np.float64
      ).T
      ratios = intersections / (unions + EPSILON)
      box_ious = np.asarray(list(self.mask_box_ious.values()))
      scores |= {
          'mask_cIoU': float(
              np.mean(intersections) / (np.mean(unions) + EPSILON)
          ),
          'mask_gIoU': float(np.mean(ratios)),
          'mask_precision_at_0.5': float(np.mean(ratios > IOU_THRESHOLD)),
          'mask_box_precision_at_0.5': float(np.mean(box_ious > IOU_THRESHOLD)),
          'num_masks': len(ratios),
      }
    return scores


def predicted_boxes(
    target: Mapping[str, Any],
    boxes: Float[np.ndarray, 'N 4'],
    box_mask: Bool[np.ndarray, 'N'],
) -> list[Float[np.ndarray, '4'] | None]:
  """Boxes of an example's real prompts in the original picture.

  Args:
    target: the example's target; `prompt_ids`, `image_hw`, `orig_hw` are used.
    boxes: predicted boxes in pixels of the network input.
    box_mask: False where the model gave no box.

  Returns:
    A box a prompt, clipped to the picture; None for "no box", which a box with
    a number that is not finite is too.
  """
  num_prompts = len(target['prompt_ids'])
  box_mask = box_mask & np.all(np.isfinite(boxes), axis=-1)
  boxes_orig = boxes_lib.boxes_image_to_orig(
      boxes[:num_prompts], target['image_hw'], target['orig_hw']
  )
  return [box if given else None for box, given in zip(boxes_orig, box_mask)]


def predicted_masks(
    target: Mapping[str, Any],
    mask_logits: Float[np.ndarray, 'N h w'],
    box_mask: Bool[np.ndarray, 'N'],
) -> list[Bool[np.ndarray, 'H W'] | None]:
  """Masks of an example's real prompts in the original picture.

  Args:
    target: the example's target; `prompt_ids`, `image_hw`, `padded_hw` and
      `orig_hw` are used.
    mask_logits: low resolution, over the padded network input.
    box_mask: False where the model gave no box, and so prompted no mask.

  Returns:
    A mask a prompt, or None where there is no box.

  Raises:
    ValueError: if the target does not tell the size of the network input.
  """
  if 'padded_hw' not in target:
    raise ValueError(
        f"Target of image {target['image_id']!r} has no 'padded_hw'; mask"
        ' logits cover the padded network input, so the task must give its'
        ' height and width (the first two axes of the feature `image`).'
    )
  num_prompts = len(target['prompt_ids'])
  return [
      masks_lib.logits_to_mask(
          logits, target['image_hw'], target['padded_hw'], target['orig_hw']
      )
      if given
      else None
      for logits, given in zip(mask_logits[:num_prompts], box_mask)
  ]


def refexp_metrics(
    targets: Sequence[Mapping[str, Any]],
    predictions: Sequence[Any],
    aux_values: Mapping[str, Any],
) -> dict[str, float | int]:
  """Scores a whole data set; a SeqIO metric function.

  Args:
    targets: a dict an example with `image_id`, `prompt_ids`, `image_hw`,
      `orig_hw`, `boxes_orig` (K, 4) and, with masks, `masks_rle` and
      `padded_hw` (height and width of the padded network input).
    predictions: not used; the text of a referring task is given.
    aux_values: `boxes` and `box_mask` of every example, in pixels of the
      network input, and `mask_logits` if the model has a mask decoder.

  Returns:
    As `RefexpScores.summary`.
  """
  del predictions
  scores = RefexpScores()
  for index, target in enumerate(targets):
    box_mask = np.asarray(aux_values['box_mask'][index])
    true_boxes = np.asarray(target['boxes_orig'], np.float64).reshape(-1, 4)
    names = [(target['image_id'], prompt) for prompt in target['prompt_ids']]
    boxes = predicted_boxes(
        target, np.asarray(aux_values['boxes'][index]), box_mask
    )
    for name, box, true_box in zip(names, boxes, true_boxes):
      scores.add_box(name, box, true_box)
    if 'mask_logits' not in aux_values or 'masks_rle' not in target:
      continue
    masks = predicted_masks(
        target, np.asarray(aux_values['mask_logits'][index]), box_mask
    )
    for name, mask, rle, true_box in zip(
        names, masks, target['masks_rle'], true_boxes
    ):
      true_mask = masks_lib.decode_mask(rle, target['orig_hw'])
      scores.add_mask(name, mask, true_mask, true_box)
  return scores.summary()
