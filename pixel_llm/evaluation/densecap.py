"""Dense captioning: mean average precision over place and words (RefA).

A detection is right if it is the first, by score, that lies best on its true
region, overlaps it enough, and describes it well enough. Average precision is
taken at each of five overlaps (IoU) and six METEOR scores, and averaged. Kept
from the original (RefB, "copy 17" of its habits):

* A detection belongs to the region it overlaps most, even if that one is taken
  already, or if another free one would do.
* The overlap may equal its threshold, METEOR must exceed it.
* Recall is read at 0, 0.01, …, 0.99, not at 1.
* METEOR gets texts as they are, without the PTB tokenizer.

A detection that is wrong at any METEOR score (taken region, or less than the
least overlap) is not sent to METEOR, which spares most of the work.

RefA: densecap (Johnson et al. 2016), eval/eval_utils.lua.
RefB: scenic, projects/pixel_llm/densecap_evaluator.py.
"""

from collections.abc import Hashable, Mapping, Sequence
import dataclasses
from typing import Any

from jaxtyping import Bool, Float
import numpy as np

from pixel_llm.evaluation import boxes as boxes_lib
from pixel_llm.evaluation import meteor as meteor_lib
from pixel_llm.evaluation import regions

# RefA.
IOU_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
METEOR_THRESHOLDS = (0.0, 0.05, 0.10, 0.15, 0.20, 0.25)
_RECALLS = np.arange(100) / 100


@dataclasses.dataclass(frozen=True)
class Detections:
  """What a model found in one picture.

  Attributes:
    boxes: x0 y0 x1 y1 in the frame of the regions.
    scores: higher is surer.
    captions: one a box.
  """

  boxes: Float[np.ndarray, 'n 4']
  scores: Float[np.ndarray, 'n']
  captions: Sequence[str]


@dataclasses.dataclass(frozen=True)
class _Matches:
  """All detections of a data set, the surest first.

  Attributes:
    overlaps: IoU with the region taken; 0 if that was taken before.
    captions: of the detections.
    references: captions of the regions taken.
    empty: whether the region has an empty caption.
  """

  overlaps: Float[np.ndarray, 'n']
  captions: Sequence[str]
  references: Sequence[Sequence[str]]
  empty: Bool[np.ndarray, 'n']


def _match_picture(
    detections: Detections, truth: Sequence[regions.Region]
) -> list[tuple[float, float, str, tuple[str, ...]]]:
  """Score, overlap, caption and references of a picture's detections."""
  if not len(detections.scores):
    return []
  if truth:
    true_boxes = np.stack([region.box for region in truth])
    ious = regions.iou_matrix(detections.boxes, true_boxes)
  else:
    ious = np.zeros((len(detections.scores), 1))
  taken: set[int] = set()
  rows = []
  for i in np.argsort(-detections.scores, kind='stable'):
    best = int(np.argmax(ious[i]))
    overlap = float(ious[i, best])
    if overlap <= 0 or best in taken:
      rows.append((detections.scores[i], 0.0, detections.captions[i], ()))
      continue
    taken.add(best)
    rows.append(
        (
            detections.scores[i],
            overlap,
            detections.captions[i],
            truth[best].captions,
        )
    )
  return rows


def _match(
    truth: Mapping[Hashable, Sequence[regions.Region]],
    detections: Mapping[Hashable, Detections],
) -> _Matches:
  """Gives every detection its region, and sorts all by score."""
  # Equal scores stand in the order of the pictures' names, so that the order
  # of evaluation changes nothing.
  rows = [
      row
      for name in sorted(detections)
      for row in _match_picture(detections[name], truth[name])
  ]
  rows.sort(key=lambda row: -row[0])
  return _Matches(
      np.asarray([row[1] for row in rows]),
      [row[2] for row in rows],
      [row[3] for row in rows],
      np.asarray(['' in row[3] for row in rows], bool),
  )


def average_precision(right: Bool[np.ndarray, 'n'], num_regions: int) -> float:
  """Average precision of detections sorted by score (RefA).

  Args:
    right: whether each is right.
    num_regions: how many there are to find.

  Returns:
    Mean over recalls t = 0, 0.01, …, 0.99 of the best precision at a recall of
    t or more, 0 where that is not reached.
  """
  if not len(right):
    return 0.0
  found = np.cumsum(right)
  precision = found / np.arange(1, len(right) + 1)
  best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
  first = np.searchsorted(found / num_regions, _RECALLS)
  reached = first < len(right)
  return float(np.sum(best_from_here[first[reached]]) / len(_RECALLS))


def densecap_scores(
    truth: Mapping[Hashable, Sequence[regions.Region]],
    detections: Mapping[Hashable, Detections],
    meteor: meteor_lib.Scorer | None = meteor_lib.meteor_scores,
    count_empty: bool = True,
) -> dict[str, float]:
  """Scores all detections of a data set.

  Args:
    truth: merged regions by picture; a picture may have none.
    detections: by picture; a picture that is missing has none.
    meteor: scores texts; None leaves out what needs it.
    count_empty: what to do with a region that has an empty caption. True: it
      counts, and any caption of it is right. False: it is not among those to
      find, yet a detection of it is right if METEOR likes its other captions.

  Returns:
    `mAP_detection`, its parts `mAP_detection_iou0.3`, and with METEOR `mAP` and
    its parts `mAP_iou0.3_meteor0.00`, all from 0 to 1.

  Raises:
    ValueError: if there is no region to find, or a picture without truth.
  """
  unknown = sorted(set(detections) - set(truth))
  if unknown:
    raise ValueError(
        f'Detections of pictures without truth: {unknown[:5]} (of'
        f' {len(unknown)}). Give a picture without regions an empty list.'
    )
  num_regions = sum(
      count_empty or '' not in region.captions
      for found in truth.values()
      for region in found
  )
  if not num_regions:
    raise ValueError(
        f'No region to find in {len(truth)} pictures; is the evaluation split'
        ' empty, or `num_examples` 0?'
    )
  matches = _match(truth, detections)
  where = {f'iou{t:.1f}': matches.overlaps >= t for t in IOU_THRESHOLDS}
  located = {
      f'mAP_detection_{name}': average_precision(right, num_regions)
      for name, right in where.items()
  }
  scores = {'mAP_detection': _mean(located), **located}
  if meteor is None:
    return scores
  words = _word_scores(matches, meteor, count_empty)
  described = {
      f'mAP_{name}_meteor{t:.2f}': average_precision(
          right & (words > t), num_regions
      )
      for name, right in where.items()
      for t in METEOR_THRESHOLDS
  }
  return {'mAP': _mean(described), **scores, **described}


def _word_scores(
    matches: _Matches, meteor: meteor_lib.Scorer, count_empty: bool
) -> Float[np.ndarray, 'n']:
  """METEOR of the detections that it can make right, else 0."""
  words = np.zeros(len(matches.overlaps))
  asked = matches.overlaps >= min(IOU_THRESHOLDS)
  if count_empty:
    words[matches.empty] = 1.0
    asked &= ~matches.empty
  places = np.flatnonzero(asked)
  words[places] = meteor(
      [matches.captions[i] for i in places],
      [matches.references[i] for i in places],
  ).pairs
  return words


def _mean(scores: Mapping[str, float]) -> float:
  return float(np.mean(list(scores.values())))


def densecap_metrics(
    targets: Sequence[Mapping[str, Any]],
    predictions: Sequence[Sequence[str]],
    aux_values: Mapping[str, Any],
) -> dict[str, float]:
  """Scores a whole data set; a SeqIO metric function.

  A picture with more regions than an example holds comes as several examples:
  their regions are joined, and its detections count once.

  Args:
    targets: a dict an example with `image_id`, `image_hw`, `orig_hw`, and of
      its regions `prompt_ids`, `texts` and `boxes_orig` (xyxy pixels of the
      original picture).
    predictions: captions of the detections of each example.
    aux_values: of every example, `boxes` in pixels of the network input,
      `box_mask` and `detection_scores`.

  Returns:
    As `densecap_scores`.
  """
  found: dict[Hashable, dict[Hashable, tuple[np.ndarray, str]]] = {}
  detections: dict[Hashable, Detections] = {}
  for index, target in enumerate(targets):
    name = target['image_id']
    rows = found.setdefault(name, {})
    boxes_orig = np.asarray(target['boxes_orig'], np.float64).reshape(-1, 4)
    for row in zip(target['prompt_ids'], boxes_orig, target['texts']):
      rows.setdefault(row[0], row[1:])
    if name not in detections:
      detections[name] = _detections(
          target,
          predictions[index],
          {k: v[index] for k, v in aux_values.items()},
      )
  truth = {
      name: regions.merge_regions(
          np.asarray([box for box, _ in rows.values()]).reshape(-1, 4),
          [text for _, text in rows.values()],
      )
      for name, rows in found.items()
  }
  return densecap_scores(truth, detections)


def _detections(
    target: Mapping[str, Any], captions: Sequence[str], aux: Mapping[str, Any]
) -> Detections:
  """One picture's detections in the original frame."""
  boxes = np.asarray(aux['boxes'], np.float64)
  scores = np.asarray(aux['detection_scores'], np.float64)
  finite = np.isfinite(boxes).all(axis=-1) & np.isfinite(scores)
  kept = np.flatnonzero(np.asarray(aux['box_mask'], bool) & finite)
  return Detections(
      boxes_lib.boxes_image_to_orig(
          boxes[kept], target['image_hw'], target['orig_hw']
      ),
      scores[kept],
      [captions[i] for i in kept],
  )
