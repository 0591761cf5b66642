"""RoI stage: crops each proposal, names its class and corrects its box.

RefA: Faster R-CNN (arXiv 1506.01497); RefB: Probabilistic two-stage detection
(CenterNet2, arXiv 2103.07461), for the product of both stages' scores.

The original's cascade has one stage in every recipe, and so has this one.
Nothing learns through the coordinates of a proposal.
"""

from collections.abc import Sequence

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pixel_llm import axes
from pixel_llm import matching
from pixel_llm import roi_ops
from pixel_llm import suppression
from pixel_llm.modules import centernet
from pixel_llm.modules import layers


@struct.dataclass
class RoiOutputs:
  """What the head says of proposals.

  Attributes:
    logits: of the classes; 0 is background.
    deltas: correction of the box, coded relative to the proposal.
  """

  logits: Float[Array, 'B K V']
  deltas: Float[Array, 'B K 4']


@struct.dataclass
class RoiSample:
  """Proposals of a training step, those with a target first.

  Attributes:
    boxes: pixels, clipped to the network input.
    mask: False in slots that hold no proposal; they come last.
    is_positive: whether the proposal has a target in the RoI losses.
    match_index: row of the target box that it overlaps most.
    match_classes: class of that target if it may lend its text, else 0.
    labels: class of the target in the RoI losses, 0 for background.
    target_boxes: box of the target; without meaning where there is none.
  """

  boxes: Float[Array, 'B S 4']
  mask: Bool[Array, 'B S']
  is_positive: Bool[Array, 'B S']
  match_index: Int[Array, 'B S']
  match_classes: Int[Array, 'B S']
  labels: Int[Array, 'B S']
  target_boxes: Float[Array, 'B S 4']


@struct.dataclass
class Detections:
  """Final boxes, best first.

  Attributes:
    boxes: pixels, clipped to the network input; zeros in empty slots.
    scores: 0 to 1; 0 in empty slots.
    classes: from 1; an empty slot has class 1.
    mask: False in empty slots, which come last.
  """

  boxes: Float[Array, 'B K 4']
  scores: Float[Array, 'B K']
  classes: Int[Array, 'B K']
  mask: Bool[Array, 'B K']


class BoxHead(nn.Module):
  """Two linear layers over a crop, then class and box.

  Attributes:
    num_classes: without background.
    hidden_dims: widths of the layers.
    dtype: type of the computation; the outputs are float32.
  """

  num_classes: int
  hidden_dims: Sequence[int]
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(self, crops: Float[Array, 'B K S S D']) -> RoiOutputs:
    """Classifies crops and corrects their boxes."""
    x = crops.reshape(*crops.shape[:2], -1)
    for i, dim in enumerate(self.hidden_dims):
      x = layers.Dense(
          dim,
          # Widths take turns: no array has the same axis twice.
          kernel_axes=(axes.MLP, axes.EMBED)
          if i % 2
          else (axes.EMBED, axes.MLP),
          dtype=self.dtype,
          name=f'fc{i + 1}',
      )(x)
      x = nn.relu(x)

    def predict(features: int, stddev: float, name: str) -> Array:
      return layers.Dense(
          features,
          kernel_axes=(axes.EMBED, axes.OUTPUTS),
          kernel_init=nn.initializers.normal(stddev=stddev),
          dtype=self.dtype,
          name=name,
      )(x).astype(jnp.float32)

    # RefA: small initial values; a fresh head leaves boxes as they are.
    return RoiOutputs(
        logits=predict(self.num_classes + 1, 0.01, 'cls_score'),
        deltas=predict(4, 0.001, 'bbox_pred'),
    )


class RoiHead(nn.Module):
  """The RoI stage (RefB).

  Attributes:
    num_classes: without background.
    hidden_dims: widths of the head's layers.
    crop_size: bins of a crop's side.
    min_iou: overlap with a target that makes a proposal positive.
    text_min_iou: overlap at which a proposal takes its target's text.
    num_samples: proposals of an image in training.
    positive_fraction: at most this part of them is positive.
    box_weights: factors of the coded correction.
    score_threshold: boxes of a lower score are no detections.
    iou_threshold: detections that overlap a better one of their class this much
      are dropped.
    num_detections: slots for detections of an image.
    dtype: type of the computation; boxes and scores are float32.
  """

  num_classes: int = 1
  hidden_dims: Sequence[int] = (1024, 1024)
  crop_size: int = 7
  min_iou: float = 0.6
  text_min_iou: float = 0.6
  num_samples: int = 512
  positive_fraction: float = 0.5
  box_weights: Sequence[float] = roi_ops.BOX_WEIGHTS
  score_threshold: float = 0.05
  iou_threshold: float = 0.5
  num_detections: int = 100
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(
      self,
      levels: Sequence[Float[Array, 'B _h _w D']],
      boxes: Float[Array, 'B K 4'],
      finest_level: int = 3,
  ) -> RoiOutputs:
    """Looks at boxes.

    Args:
      levels: the pyramid, finest first, each half the size of the one before.
      boxes: pixels.
      finest_level: log2 of the first level's stride.

    Returns:
      Class and correction of each box.
    """
    boxes = jax.lax.stop_gradient(boxes)
    level = roi_ops.pyramid_levels(boxes, len(levels), finest_level)
    cells = (
        boxes * jnp.exp2(-(level + finest_level).astype(jnp.float32))[..., None]
    )
    crops = roi_ops.roi_align(levels, cells, level, output_size=self.crop_size)
    return BoxHead(
        self.num_classes, self.hidden_dims, self.dtype, name='box_head.0'
    )(crops)

  def sample(
      self,
      proposals: centernet.Proposals,
      target_boxes: Float[Array, 'B G 4'],
      target_classes: Int[Array, 'B G'],
      input_hw: tuple[int, int],
      *,
      rng: Array | None = None,
  ) -> RoiSample:
    """Chooses what trains, from proposals and targets; needs no parameters.

    Slots of suppression without a survivor take part with the copy they hold,
    as in the original.

    Args:
      proposals: of the first stage.
      target_boxes: rows of zeros are padding.
      target_classes: from 1; padding has 0.
      input_hw: height and width of the network input, which clips.
      rng: draws the sample; None takes the best scored ones.

    Returns:
      The sample with its targets.
    """
    boxes = jnp.concatenate([proposals.boxes, target_boxes], axis=1)
    boxes = roi_ops.clip_boxes(boxes, input_hw)
    match = jax.vmap(matching.match_boxes)(boxes, target_boxes)

    def sample_image(boxes: Array, iou: Array, rng: Array | None):
      return matching.sample_boxes(
          boxes,
          iou,
          min_iou=self.min_iou,
          num_samples=self.num_samples,
          positive_fraction=self.positive_fraction,
          rng=rng,
      )

    if rng is None:
      sample = jax.vmap(lambda b, i: sample_image(b, i, None))(boxes, match.iou)
    else:
      rngs = jax.random.split(rng, boxes.shape[0])
      sample = jax.vmap(sample_image)(boxes, match.iou, rngs)

    def take(x: Array) -> Array:
      index = sample.index.reshape(*sample.index.shape, *[1] * (x.ndim - 2))
      return jnp.take_along_axis(x, index, axis=1)

    match = jax.tree.map(take, match)
    return RoiSample(
        boxes=take(boxes),
        mask=sample.mask,
        is_positive=sample.is_positive,
        match_index=match.index,
        match_classes=match.classes(target_classes, self.text_min_iou),
        labels=jnp.where(
            sample.is_positive, match.classes(target_classes, self.min_iou), 0
        ),
        target_boxes=jnp.take_along_axis(
            target_boxes, match.index[..., None], axis=1
        ),
    )

  def detect(
      self,
      outputs: RoiOutputs,
      boxes: Float[Array, 'B K 4'],
      proposals: centernet.Proposals,
      input_hw: tuple[int, int],
  ) -> Detections:
    """Corrects boxes, scores them and suppresses; needs no parameters.

    A detection's score is the geometric mean of both stages' (RefB).

    Args:
      outputs: of the head on `boxes`.
      boxes: the clipped proposals.
      proposals: with the scores of the first stage.
      input_hw: height and width of the network input, which clips.

    Returns:
      The detections.
    """
    found = roi_ops.clip_boxes(
        roi_ops.decode_boxes(outputs.deltas, boxes, self.box_weights), input_hw
    )
    probabilities = jax.nn.softmax(outputs.logits, axis=-1)[..., 1:]
    scores = jnp.sqrt(probabilities * proposals.scores[..., None])
    candidates = (scores > self.score_threshold) & proposals.mask[..., None]
    # Each class of each box is a candidate of its own.
    batch, num_boxes = scores.shape[:2]
    flat = (batch, num_boxes * self.num_classes)
    found = jnp.repeat(found, self.num_classes, axis=1)
    classes = jnp.tile(jnp.arange(1, self.num_classes + 1), num_boxes)
    scores, candidates = scores.reshape(flat), candidates.reshape(flat)
    kept = jax.vmap(
        lambda b, s, c: suppression.non_max_suppression(
            b,
            s,
            threshold=self.iou_threshold,
            num_kept=self.num_detections,
            candidates=c,
            classes=classes,
        )
    )(found, scores, candidates)
    found = jnp.take_along_axis(found, kept.index[..., None], axis=1)
    scores = jnp.take_along_axis(scores, kept.index, axis=1)
    return Detections(
        boxes=jnp.where(kept.mask[..., None], found, 0.0),
        scores=jnp.where(kept.mask, scores, 0.0),
        classes=jnp.where(kept.mask, classes[kept.index], 1),
        mask=kept.mask,
    )
