"""Location-conditioned captioning: how well is the thing in a box described?

Every prompt is a box with its caption; the scores are those of captions
(`captions`), over all boxes of the data set. Where annotators drew several
boxes around one thing, each may take the captions of all as references
(`merge`, as Visual Genome's evaluation does).

RefA: scenic, projects/pixel_llm/evaluators.py, LocaEvaluator.
"""

from collections.abc import Hashable, Mapping, Sequence
import dataclasses
import functools
from typing import Any

from jaxtyping import Float
import numpy as np

from pixel_llm.evaluation import boxes as boxes_lib
from pixel_llm.evaluation import captions as captions_lib
from pixel_llm.evaluation import regions


@dataclasses.dataclass
class LocatedCaptions:
  """Collects captions with their references.

  Attributes:
    candidates: what the model wrote, by prompt; a prompt's name is (image id,
      prompt id).
    references: texts a prompt.
  """

  candidates: dict[Hashable, str] = dataclasses.field(default_factory=dict)
  references: dict[Hashable, list[str]] = dataclasses.field(
      default_factory=dict
  )

  def add_picture(
      self,
      names: Sequence[Hashable],
      captions: Sequence[str],
      texts: Sequence[str],
      boxes: Float[np.ndarray, 'n 4'],
      merge: bool = False,
      corners_from_sizes: bool = False,
  ) -> None:
    """Adds the prompts of one picture.

    Args:
      names: unique over the data set.
      captions: what the model wrote for each.
      texts: the true caption of each.
      boxes: x0 y0 x1 y1 in pixels of the original; zeros are padding.
      merge: whether boxes that overlap enough share their captions.
      corners_from_sizes: merges as the original did (RefA), which took boxes of
        corner and size for pairs of corners. Most then overlap not even
        themselves, and such prompts are left out.
    """
    kept = np.flatnonzero(boxes.max(axis=-1, initial=0) > 0)
    groups = [[i] for i in range(len(kept))]
    if merge:
      groups = _groups(boxes[kept], corners_from_sizes)
    for group in groups:
      shared = [texts[kept[i]] for i in group]
      for i in group:
        name = names[kept[i]]
        self.candidates[name] = captions[kept[i]]
        self.references[name] = shared

  def scores(self, **programs: Any) -> captions_lib.CaptionScores:
    """Scores all prompts so far.

    Args:
      **programs: `tokenize` and `meteor` of `captions.caption_scores`.

    Returns:
      The scores, in the order of `candidates`.
    """
    return captions_lib.caption_scores(
        list(self.candidates.values()),
        list(self.references.values()),
        **programs,
    )


def _groups(
    boxes: Float[np.ndarray, 'n 4'], corners_from_sizes: bool
) -> list[list[int]]:
  """Boxes that share their captions."""
  if corners_from_sizes:
    sizes = boxes_lib.xyxy_to_xywh(boxes)
    return regions.clusters(regions.iou_matrix(sizes, sizes))
  ious = regions.iou_matrix(boxes, boxes)
  # A box without area is one to describe too.
  np.fill_diagonal(ious, 1.0)
  return regions.clusters(ious)


def location_caption_metrics(
    targets: Sequence[Mapping[str, Any]],
    predictions: Sequence[Sequence[str]],
    merge: bool = False,
) -> dict[str, float]:
  """Scores a whole data set; a SeqIO metric function.

  A picture with more prompts than an example holds comes as several examples;
  a prompt that comes twice, such as padding of a last batch, counts once.

  Args:
    targets: a dict an example with `image_id` and, of its prompts,
      `prompt_ids`, `texts` and `boxes_orig` (xyxy pixels of the original).
    predictions: for each example the captions of its prompts.
    merge: whether boxes that overlap enough share their captions.

  Returns:
    As `captions.CaptionScores.corpus`.
  """
  pictures: dict[Hashable, dict[Hashable, tuple[str, str, np.ndarray]]] = {}
  for target, captions in zip(targets, predictions):
    rows = pictures.setdefault(target['image_id'], {})
    boxes = np.asarray(target['boxes_orig'], np.float64).reshape(-1, 4)
    for prompt, *row in zip(
        target['prompt_ids'], captions, target['texts'], boxes
    ):
      rows.setdefault((target['image_id'], prompt), tuple(row))
  located = LocatedCaptions()
  for rows in pictures.values():
    captions, texts, boxes = zip(*rows.values())
    located.add_picture(
        list(rows), captions, texts, np.stack(boxes), merge=merge
    )
  return dict(located.scores().corpus)


merged_location_caption_metrics = functools.partial(
    location_caption_metrics, merge=True
)
