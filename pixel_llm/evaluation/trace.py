"""Traces: how far are a token's points from the speaker's mouse? (RefA)

The distance needs a target for each predicted token, so the points must belong
to the true caption's tokens (`gt_text_points`: the true caption is given to the
decoder). Points of a decoded caption are compared only as far as it agrees with
the true one, token by token from the beginning; what share of the true tokens
that reaches is reported beside.

RefA: the published trace evaluation, L1 to the nearest target point.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from jaxtyping import Bool, Float, Int
import numpy as np

from pixel_llm.evaluation.boxes import HeightWidth


def point_tokens(
    text_tokens: Int[np.ndarray, 'n T'], targets: Float[np.ndarray, 'n T P 2']
) -> Bool[np.ndarray, 'n T']:
  """Tokens that count: no padding, and a target with a positive coordinate."""
  return (text_tokens > 0) & np.any(targets > 0, axis=(-2, -1))


def point_distances(
    points: Float[np.ndarray, 'n T P 2'],
    targets: Float[np.ndarray, 'n T Q 2'],
    image_hw: HeightWidth,
) -> Float[np.ndarray, 'n T']:
  """L1 distance of each token's points to its nearest target points (RefA).

  Args:
    points: predicted (x, y) in pixels of the network input.
    targets: the same frame; their number may differ.
    image_hw: height and width of the valid area, which is 1 by 1 here.

  Returns:
    Mean over x and y, least over the targets, mean over the points.
  """
  scale_xy = np.asarray(image_hw, np.float64)[::-1]
  differences = points[..., :, None, :] - targets[..., None, :, :]
  return np.abs(differences / scale_xy).mean(-1).min(-1).mean(-1)


def common_prefix(
    tokens: Int[np.ndarray, 'n T'], others: Int[np.ndarray, 'n T']
) -> Bool[np.ndarray, 'n T']:
  """True as long as both rows have agreed from their first token on."""
  return np.logical_and.accumulate(tokens == others, axis=-1)


@dataclasses.dataclass
class TraceScores:
  """Collects examples one by one; `summary` may be asked at any time.

  Attributes:
    counts_empty: whether an example without a counting token is an error of 0,
      as in the original; else it is left out of the mean and counted.
    errors: mean distance over the counting tokens of each example.
    num_empty: examples without a counting token.
    num_tokens: counting tokens of all examples.
  """

  counts_empty: bool = False
  errors: list[float] = dataclasses.field(default_factory=list)
  num_empty: int = 0
  num_tokens: int = 0

  def add(
      self, distances: Float[np.ndarray, 'n T'], mask: Bool[np.ndarray, 'n T']
  ) -> None:
    """Adds an example: its tokens' distances, and which of them count."""
    count = int(np.sum(mask))
    self.num_tokens += count
    self.num_empty += not count
    if count:
      self.errors.append(float(np.sum(distances, where=mask)) / count)
    elif self.counts_empty:
      self.errors.append(0.0)

  def summary(self) -> float:
    """The mean error of the examples; NaN if none has a counting token."""
    return float(np.mean(self.errors)) if self.errors else float('nan')


def trace_metrics(
    targets: Sequence[Mapping[str, Any]],
    predictions: Sequence[Any],
    aux_values: Mapping[str, Any],
) -> dict[str, float | int]:
  """Scores a whole data set; a SeqIO metric function.

  Args:
    targets: a dict an example with `image_hw`, `text_tokens` (n, T) and
      `points` (n, T, P, 2) in pixels of the network input.
    predictions: the decoded token ids (N, T) of every example.
    aux_values: `gt_text_points` (N, T, P, 2), points of the true caption's
      tokens, or `points`, those of the decoded caption, or both.

  Returns:
    `trace_l1` for the true caption; `trace_decoded_l1` for the agreeing part of
    the decoded one and `trace_decoded_coverage`, the share of tokens in it; the
    number of examples, and of those without a token that counts.

  Raises:
    ValueError: if there are no points, or only those of a decoded caption whose
      token ids are not known.
  """
  has_tokens = not _is_text(predictions)
  if 'gt_text_points' not in aux_values and not (
      has_tokens and 'points' in aux_values
  ):
    raise ValueError(
        f'Trace metrics got aux values {sorted(aux_values)} and predictions as'
        f' {"token ids" if has_tokens else "text"}; they need'
        " 'gt_text_points', or 'points' together with token ids."
    )
  given, decoded = TraceScores(), TraceScores()
  num_tokens = num_empty = 0
  for index, target in enumerate(targets):
    tokens = np.asarray(target['text_tokens'])
    points = np.asarray(target['points'], np.float64)
    image_hw = target['image_hw']
    mask = point_tokens(tokens, points)
    num_tokens += int(np.sum(mask))
    num_empty += not np.any(mask)
    num_prompts = len(tokens)
    if 'gt_text_points' in aux_values:
      predicted = np.asarray(aux_values['gt_text_points'][index])[:num_prompts]
      given.add(point_distances(predicted, points, image_hw), mask)
    if has_tokens and 'points' in aux_values:
      predicted = np.asarray(aux_values['points'][index])[:num_prompts]
      agrees = common_prefix(
          np.asarray(predictions[index])[:num_prompts], tokens
      )
      decoded.add(point_distances(predicted, points, image_hw), mask & agrees)
  scores: dict[str, float | int] = {
      'num_trace_examples': len(targets),
      'num_trace_examples_without_points': num_empty,
  }
  if given.errors:
    scores['trace_l1'] = given.summary()
  if has_tokens and 'points' in aux_values and num_tokens:
    scores['trace_decoded_coverage'] = decoded.num_tokens / num_tokens
    if decoded.errors:
      scores['trace_decoded_l1'] = decoded.summary()
  return scores


def _is_text(predictions: Sequence[Any]) -> bool:
  """Whether the task's postprocessing turned token ids into strings."""
  if not len(predictions) or not len(predictions[0]):
    return False
  return isinstance(predictions[0], str) or isinstance(predictions[0][0], str)
