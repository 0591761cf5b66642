"""Which target box a proposal answers for, and which proposals train.

RefA: Faster R-CNN (arXiv 1506.01497), Sec. 3.1.3: sampling; RefB: Probabilistic
two-stage detection (CenterNet2, arXiv 2103.07461).

Pure functions of fixed shapes, written for one image; vmap them. A row without
a positive coordinate is no box: it matches nothing and is never sampled.
"""

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pixel_llm import roi_ops


@struct.dataclass
class Match:
  """The target of each proposal.

  Attributes:
    index: row of the target of largest IoU, the first of equals.
    iou: with that target; 0 if there is none.
  """

  index: Int[Array, '*L K']
  iou: Float[Array, '*L K']

  def classes(
      self, target_classes: Int[Array, '*L G'], min_iou: float
  ) -> Int[Array, '*L K']:
    """Class of the target, 0 where the overlap is below `min_iou`."""
    found = jnp.take_along_axis(target_classes, self.index, axis=-1)
    return jnp.where(self.iou >= min_iou, found, 0)


@struct.dataclass
class Sample:
  """Proposals that train the RoI stage, positive ones first.

  Attributes:
    index: row of the proposal.
    mask: False in slots that no proposal was sampled for; they come last.
    is_positive: whether the proposal has a target.
  """

  index: Int[Array, '*L S']
  mask: Bool[Array, '*L S']
  is_positive: Bool[Array, '*L S']


def match_boxes(
    boxes: Float[Array, 'K 4'], targets: Float[Array, 'G 4']
) -> Match:
  """Finds the target that each box overlaps most.

  Args:
    boxes: proposals.
    targets: rows of zeros are padding.

  Returns:
    The best target of each box, however little they overlap.
  """
  iou = roi_ops.pairwise_iou(boxes, targets)
  iou = jnp.where(roi_ops.is_present(targets)[None], iou, 0.0)
  return Match(index=jnp.argmax(iou, axis=-1), iou=jnp.max(iou, axis=-1))


def sample_boxes(
    boxes: Float[Array, 'K 4'],
    iou: Float[Array, 'K'],
    *,
    min_iou: float,
    num_samples: int,
    positive_fraction: float,
    rng: Array | None = None,
) -> Sample:
  """Draws positive and negative proposals for the RoI stage (RefA).

  At most `positive_fraction` of the samples are positive; negative ones fill
  the rest. With rng None the first ones are taken, which are the best scored.

  With 4 samples, half of them positive at most, and proposals
    index      0    1    2    3    4    5
    iou       .1   .9   .7    0   .8   .2
  the first sample is 1, 2 (positive), 0, 3 (negative).

  Args:
    boxes: proposals; rows without a positive coordinate are never sampled.
    iou: of each with its target.
    min_iou: a proposal of at least this IoU is positive.
    num_samples: slots of the sample; more slots than proposals stay empty.
    positive_fraction: of the slots.
    rng: key of the draw, or None.

  Returns:
    The sample, in the order of the proposals within each kind.
  """
  num_boxes = boxes.shape[0]
  present = roi_ops.is_present(boxes)
  is_positive = present & (iou >= min_iou)
  order = jnp.arange(num_boxes)
  if rng is not None:
    order = jax.random.permutation(rng, order)

  positive = is_positive & (
      _rank(is_positive, order) < int(positive_fraction * num_samples)
  )
  is_negative = present & ~is_positive
  negative = is_negative & (
      _rank(is_negative, order) < num_samples - jnp.sum(positive)
  )
  kind = jnp.where(positive, 0, jnp.where(negative, 1, 2))
  index = jnp.argsort(kind, stable=True)
  if num_samples > num_boxes:
    # The last one repeats; it is masked below.
    index = jnp.pad(index, (0, num_samples - num_boxes), mode='edge')
  index = index[:num_samples]
  is_slot = jnp.arange(num_samples) < num_boxes
  kind = jnp.where(is_slot, kind[index], 2)
  return Sample(index=index, mask=kind < 2, is_positive=kind == 0)


def _rank(chosen: Bool[Array, 'K'], order: Int[Array, 'K']) -> Int[Array, 'K']:
  """How many chosen rows stand before each row in that order."""
  count = jnp.cumsum(chosen[order]) - 1
  return jnp.zeros_like(count).at[order].set(count)
