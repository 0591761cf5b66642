"""Non-maximum suppression of fixed shape, for any threshold.

The greedy rule reads: a box is kept unless a better box that is kept overlaps
it too much. That is an equation for the set of kept boxes with exactly one
solution, so it can be solved for all boxes at once: start from "all are kept"
and apply the rule until nothing changes. Round n settles every box whose chain
of better overlapping boxes is at most n long, so few rounds are needed, and the
result is the greedy one exactly.

The original compared with 0.5 inside its loop, whatever the threshold; here a
threshold below 0.5 works as well.
"""

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pixel_llm import roi_ops


@struct.dataclass
class Kept:
  """Boxes that survive, best first.

  Attributes:
    index: which box of the input; where `mask` is False, the input's worst.
    mask: whether the slot holds a survivor.
  """

  index: Int[Array, '*L n']
  mask: Bool[Array, '*L n']


def suppress(
    boxes: Float[Array, 'K 4'],
    candidates: Bool[Array, 'K'],
    threshold: float,
    classes: Int[Array, 'K'] | None = None,
) -> Bool[Array, 'K']:
  """Returns which boxes survive.

  Args:
    boxes: best first.
    candidates: False for boxes that neither survive nor suppress.
    threshold: a better box suppresses one of this IoU or more.
    classes: boxes of different classes leave each other alone; None: one class.

  Returns:
    True for survivors.
  """
  boxes = jax.lax.stop_gradient(boxes)
  order = jnp.arange(boxes.shape[0])
  suppresses = roi_ops.pairwise_iou(boxes, boxes) >= threshold
  suppresses &= order[:, None] < order[None, :]
  suppresses &= candidates[:, None]
  if classes is not None:
    suppresses &= classes[:, None] == classes[None, :]

  def apply_rule(kept: Bool[Array, 'K']) -> Bool[Array, 'K']:
    return candidates & ~jnp.any(suppresses & kept[:, None], axis=0)

  def has_changed(state: tuple[Array, Array]) -> Bool[Array, '']:
    return jnp.any(state[0] != state[1])

  def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
    return state[1], apply_rule(state[1])

  _, kept = jax.lax.while_loop(
      has_changed, step, (candidates, apply_rule(candidates))
  )
  return kept


def non_max_suppression(
    boxes: Float[Array, 'K 4'],
    scores: Float[Array, 'K'],
    *,
    threshold: float,
    num_kept: int,
    candidates: Bool[Array, 'K'] | None = None,
    classes: Int[Array, 'K'] | None = None,
) -> Kept:
  """Keeps the best boxes that do not overlap much; vmap it over images.

  Args:
    boxes: in any order.
    scores: the larger the better; of equals the first is better.
    threshold: a better box suppresses one of this IoU or more.
    num_kept: slots of the result.
    candidates: False for boxes that do not take part; None: all do.
    classes: boxes of different classes leave each other alone; None: one class.

  Returns:
    The survivors, best first, as many as there are slots.

  Raises:
    ValueError: if the threshold is not in (0, 1].
  """
  if not 0.0 < threshold <= 1.0:
    raise ValueError(
        f'non_max_suppression: threshold is {threshold}; an IoU in (0, 1] is'
        ' wanted.'
    )
  if candidates is None:
    candidates = jnp.ones(scores.shape, bool)
  order = jnp.argsort(-scores, stable=True)
  kept = suppress(
      boxes[order],
      candidates[order],
      threshold,
      None if classes is None else classes[order],
  )
  (slots,) = jnp.nonzero(kept, size=num_kept, fill_value=scores.shape[0] - 1)
  return Kept(index=order[slots], mask=jnp.arange(num_kept) < jnp.sum(kept))
