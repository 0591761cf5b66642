"""Losses of the box decoder as pure functions that return sums and counts.

RefA: Objects as Points (arXiv 1904.07850), Sec. 4: the heat map; RefB:
Probabilistic two-stage detection (CenterNet2, arXiv 2103.07461), Sec. 4: which
cells answer for a box; RefC: Generalized Intersection over Union (arXiv
1902.09630).

The original needs a named axis of devices for its normalisers. Sums and counts
need none: under jit they run over the global batch.
"""

from collections.abc import Sequence

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pixel_llm import losses
from pixel_llm import roi_ops
from pixel_llm.modules import box_decoder
from pixel_llm.modules import centernet
from pixel_llm.modules import roi_head

# RefB: boxes of half a diagonal within these pixels belong to the level.
SIZE_RANGES = ((0, 40), (32, 80), (64, 160), (128, 320), (256, 50000))
# RefA: a shifted box of this IoU still deserves some heat.
_MIN_OVERLAP = 0.8
_MIN_RADIUS = 4.0
_FOCAL_ALPHA = 0.25
_FOCAL_GAMMA = 2
_HEAT_BETA = 4
# The original clips probabilities, which also stops the gradient there.
_MIN_PROBABILITY = 1e-4
_TINY = 1e-9


@struct.dataclass
class CentreTargets:
  """What the proposal stage should say of each cell.

  Attributes:
    is_centre: whether the centre of a target is in the cell, on a level of its
      size; targets that share a cell count once.
    heat: 1 at such a cell, falling off with the distance to the next centre.
    distances: from the cell to the sides of its target, in strides.
    has_box: whether the cell answers for the box of a target.
  """

  is_centre: Bool[Array, 'B M']
  heat: Float[Array, 'B M']
  distances: Float[Array, 'B M 4']
  has_box: Bool[Array, 'B M']


@struct.dataclass
class DetectionLosses:
  """The parts of the detection loss, before weights.

  Attributes:
    positive: focal loss at centres, by the number of centres, at least one an
      image.
    negative: focal loss elsewhere, by the same number.
    box: generalised IoU loss, by the number of cells that answer for a box, at
      least one an image.
    roi_class: cross entropy of the RoI stage, by the number of sampled boxes.
    roi_box: distance of the coded boxes, by the slots of the sample.
    foreground_accuracy: no loss: how many positive boxes got their class.
  """

  positive: losses.LossTerm
  negative: losses.LossTerm
  box: losses.LossTerm
  roi_class: losses.LossTerm
  roi_box: losses.LossTerm
  foreground_accuracy: losses.LossTerm

  def mean(
      self, *, heatmap_weight: float = 0.5, box_weight: float = 1.0
  ) -> Float[Array, '']:
    """Returns the whole detection loss, each part by its own count."""
    heatmap = self.positive.mean() + self.negative.mean()
    return (
        heatmap_weight * heatmap
        + box_weight * self.box.mean()
        + self.roi_class.mean()
        + self.roi_box.mean()
    )


def detection_losses(
    outputs: box_decoder.BoxOutputs,
    boxes: Float[Array, 'B G 4'],
    weights: Float[Array, 'B'],
    *,
    size_ranges: Sequence[tuple[float, float]] = SIZE_RANGES,
) -> DetectionLosses:
  """Sums the losses of both stages.

  Args:
    outputs: of the box decoder on the same targets.
    boxes: target boxes in pixels, zeros are padding.
    weights: 1 for an image that joins the detection loss, 0 for others.
    size_ranges: see `centre_targets`.

  Returns:
    The parts.
  """
  targets = centre_targets(outputs.centres, boxes, size_ranges)
  positive, negative = heatmap_losses(outputs.centres, targets, weights)
  roi_class, roi_box = roi_losses(outputs.roi, outputs.sample, weights)
  return DetectionLosses(
      positive=positive,
      negative=negative,
      box=box_loss(outputs.centres, targets, weights),
      roi_class=roi_class,
      roi_box=roi_box,
      foreground_accuracy=foreground_accuracy(
          outputs.roi, outputs.sample, weights
      ),
  )


def centre_targets(
    maps: centernet.CentreMaps,
    boxes: Float[Array, 'B G 4'],
    size_ranges: Sequence[tuple[float, float]] = SIZE_RANGES,
) -> CentreTargets:
  """Says which cells answer for which box (RefB).

  The 3×3 cells around a centre answer for its box where they are inside it,
  each for the box whose centre is nearest in units of the box's size. Ranges of
  levels overlap, so a box may have centres on two levels. Heat does not ask for
  the level: a centre warms the cells of all levels.

  Args:
    maps: for the grids only.
    boxes: target boxes in pixels, zeros are padding.
    size_ranges: smallest and largest half diagonal of each level, in pixels.

  Returns:
    The targets.

  Raises:
    ValueError: if there is not one range for each level.
  """
  if len(size_ranges) != len(maps.grids):
    raise ValueError(
        f'centre_targets: size_ranges={tuple(size_ranges)} are'
        f' {len(size_ranges)}, but there are {len(maps.grids)} levels; give one'
        ' for each.'
    )
  ranges = jnp.asarray(size_ranges, jnp.float32)[maps.levels]
  cells, strides = jnp.asarray(maps.centres), jnp.asarray(maps.strides)
  return jax.vmap(lambda b: _centre_targets(cells, strides, ranges, b))(boxes)


def _centre_targets(
    cells: Float[Array, 'M 2'],
    strides: Float[Array, 'M'],
    ranges: Float[Array, 'M 2'],
    boxes: Float[Array, 'G 4'],
) -> CentreTargets:
  """Targets of one image; pairs are (cell, box)."""
  size = boxes[:, 2:] - boxes[:, :2]
  centres = boxes[:, :2] + 0.5 * size
  half_diagonal = jnp.sqrt(jnp.sum(jnp.square(size), axis=-1)) / 2
  is_right_level = (half_diagonal[None] >= ranges[:, :1]) & (
      half_diagonal[None] <= ranges[:, 1:]
  )
  is_right_level &= roi_ops.is_present(boxes)[None]
  offsets = cells[:, None] - centres[None]
  # Offset in whole cells to the cell that holds the centre.
  steps = jnp.floor(cells / strides[:, None])[:, None] - jnp.floor(
      centres[None] / strides[:, None, None]
  )
  steps = jnp.max(jnp.abs(steps), axis=-1)
  is_centre = is_right_level & (steps == 0)

  radius_sq = jnp.square((1 - _MIN_OVERLAP) / (1 + _MIN_OVERLAP)) * 2
  radius_sq = jnp.maximum(radius_sq * roi_ops.box_area(boxes), _MIN_RADIUS**2)
  distance = jnp.sum(jnp.square(offsets), axis=-1) / radius_sq[None]
  distance = jnp.where(is_centre, 0.0, distance)
  distance = jnp.where(roi_ops.is_present(boxes)[None], distance, jnp.inf)

  sides = jnp.concatenate(
      [
          cells[:, None] - boxes[None, :, :2],
          boxes[None, :, 2:] - cells[:, None],
      ],
      axis=-1,
  )
  is_inside = jnp.min(sides, axis=-1) > 0
  answers = is_right_level & is_inside & (steps <= 1)
  nearest = jnp.argmin(jnp.where(answers, distance, jnp.inf), axis=-1)
  sides = jnp.take_along_axis(sides, nearest[:, None, None], axis=1)[:, 0]
  return CentreTargets(
      is_centre=jnp.any(is_centre, axis=-1),
      heat=jnp.exp(-jnp.min(distance, axis=-1)),
      distances=sides / strides[:, None],
      has_box=jnp.any(answers, axis=-1),
  )


def heatmap_losses(
    maps: centernet.CentreMaps,
    targets: CentreTargets,
    weights: Float[Array, 'B'],
) -> tuple[losses.LossTerm, losses.LossTerm]:
  """Sums the focal loss at centres and elsewhere (RefA).

  Args:
    maps: of the proposal stage.
    targets: of the same cells.
    weights: 1 for an image that joins the loss, 0 for others.

  Returns:
    Both sums; both counts are the number of centres, at least one an image.
  """
  probability = jnp.clip(
      jax.nn.sigmoid(maps.logits), _MIN_PROBABILITY, 1 - _MIN_PROBABILITY
  )
  positive = -jnp.log(probability) * (1 - probability) ** _FOCAL_GAMMA
  positive *= _FOCAL_ALPHA * targets.is_centre
  negative = -jnp.log1p(-probability) * probability**_FOCAL_GAMMA
  negative *= (1 - _FOCAL_ALPHA) * (1 - targets.heat) ** _HEAT_BETA
  count = _count(targets.is_centre, weights)
  return (
      losses.LossTerm(total=_sum(positive, weights), count=count),
      losses.LossTerm(total=_sum(negative, weights), count=count),
  )


def box_loss(
    maps: centernet.CentreMaps,
    targets: CentreTargets,
    weights: Float[Array, 'B'],
) -> losses.LossTerm:
  """Sums 1 - generalised IoU over the cells that answer for a box (RefC).

  Both boxes hold the cell, so their overlap and hull follow from the distances.

  Args:
    maps: of the proposal stage.
    targets: of the same cells.
    weights: 1 for an image that joins the loss, 0 for others.

  Returns:
    The sum and the number of those cells, at least one an image.
  """
  # Cells that answer for nothing get a box, so that no gradient is NaN.
  wanted = jnp.where(targets.has_box[..., None], targets.distances, 1.0)
  shared = _area(jnp.minimum(maps.distances, wanted))
  hull = jnp.maximum(_area(jnp.maximum(maps.distances, wanted)), _TINY)
  union = _area(maps.distances) + _area(wanted) - shared
  giou = shared / jnp.maximum(union, _TINY) - (hull - union) / hull
  return losses.LossTerm(
      total=_sum(jnp.where(targets.has_box, 1 - giou, 0.0), weights),
      count=_count(targets.has_box, weights),
  )


def roi_losses(
    outputs: roi_head.RoiOutputs,
    sample: roi_head.RoiSample,
    weights: Float[Array, 'B'],
    *,
    box_weights: Sequence[float] = roi_ops.BOX_WEIGHTS,
) -> tuple[losses.LossTerm, losses.LossTerm]:
  """Sums the RoI stage's cross entropy, and L1 of coded boxes.

  Args:
    outputs: of the RoI stage.
    sample: boxes and targets.
    weights: 1 for an image that joins the loss, 0 for others.
    box_weights: factors of the coded boxes.

  Returns:
    Both sums. As in the original the cross entropy counts the sampled boxes,
    and L1 counts all slots of the sample, empty ones and background too.
  """
  log_probs = jax.nn.log_softmax(outputs.logits, axis=-1)
  at_label = jnp.take_along_axis(log_probs, sample.labels[..., None], axis=-1)
  cross_entropy = jnp.where(sample.mask, -at_label[..., 0], 0.0)
  wanted = roi_ops.encode_boxes(sample.target_boxes, sample.boxes, box_weights)
  wanted = jnp.where(sample.is_positive[..., None], wanted, 0.0)
  distance = jnp.sum(jnp.abs(outputs.deltas - wanted), axis=-1)
  distance = jnp.where(sample.is_positive, distance, 0.0)
  return (
      losses.LossTerm(
          total=_sum(cross_entropy, weights), count=_sum(sample.mask, weights)
      ),
      losses.LossTerm(
          total=_sum(distance, weights),
          count=_sum(jnp.ones(sample.mask.shape), weights),
      ),
  )


def is_correct(
    outputs: roi_head.RoiOutputs, sample: roi_head.RoiSample
) -> Bool[Array, 'B S']:
  """Whether the likeliest class is the label; False in empty slots."""
  found = jnp.argmax(outputs.logits, axis=-1)
  return sample.mask & (found == sample.labels)


def foreground_accuracy(
    outputs: roi_head.RoiOutputs,
    sample: roi_head.RoiSample,
    weights: Float[Array, 'B'],
) -> losses.LossTerm:
  """Counts positive boxes whose likeliest class is their own."""
  found = is_correct(outputs, sample) & sample.is_positive
  return losses.LossTerm(
      total=_sum(found, weights), count=_sum(sample.is_positive, weights)
  )


def _sum(
    values: Float[Array, 'B X'] | Bool[Array, 'B X'], weights: Float[Array, 'B']
) -> Float[Array, '']:
  return jnp.sum(values * weights[:, None], dtype=jnp.float32)


def _count(
    values: Float[Array, 'B X'] | Bool[Array, 'B X'], weights: Float[Array, 'B']
) -> Float[Array, '']:
  """Sums counts; as in the original at least one for each image on average."""
  return jnp.maximum(_sum(values, weights), jnp.sum(weights))


def _area(distances: Float[Array, '*L 4']) -> Float[Array, '*L']:
  """Area of boxes given as distances from a point inside."""
  size = distances[..., :2] + distances[..., 2:]
  return size[..., 0] * size[..., 1]
