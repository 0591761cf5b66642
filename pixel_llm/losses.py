"""Losses as pure functions that return sums and counts.

RefA: "Pixel Aligned Language Models" (arXiv 2312.09237), section 3.3; RefB:
Segment Anything (arXiv 2304.02643), appendix A, for the mask loss.

Averaging happens once, where a loss is used: `LossTerm.mean()`. Which losses an
example joins is a weight in the batch, so a batch may mix tasks.
"""

import difflib

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

# RefB: weights of the focal and the dice loss, and the focal exponent is 2.
FOCAL_WEIGHT = 20.0
_FOCAL_ALPHA = 0.5
_DICE_SMOOTHING = 1.0

POINT_LOSSES = ('l1', 'l1_nonzero', 'l2')


@struct.dataclass
class LossTerm:
  """A summed loss and the summed weights of what it was summed over.

  Attributes:
    total: weighted sum.
    count: sum of the weights.
  """

  total: Float[Array, '']
  count: Float[Array, '']

  def mean(self) -> Float[Array, '']:
    """Returns the weighted mean, 0 where nothing takes part."""
    return self.total / jnp.where(self.count > 0, self.count, 1.0)


def text_token_weights(
    tokens: Int[Array, 'B N T'],
    weights: Float[Array, 'B N'],
    *,
    end_id: int = 1,
    pad_id: int = 0,
) -> Float[Array, 'B N S']:
  """Weight of every token behind the begin token in the text loss.

  Padding counts for nothing, nor does a caption whose first token behind the
  begin token is the end token: such a row is an empty slot (RefA).

  Args:
    tokens: begin … end, then padding.
    weights: 1 for a prompt that joins the loss, 0 for others.
    end_id: the end token.
    pad_id: the padding.

  Returns:
    Weights of the tokens 1 … T-1.
  """
  targets = tokens[:, :, 1:]
  counts = (targets != pad_id) & (targets[..., :1] != end_id)
  return counts * weights[..., None]


def text_loss(
    logits: Float[Array, 'B N T V'],
    tokens: Int[Array, 'B N T'],
    weights: Float[Array, 'B N'],
    *,
    label_smoothing: float = 0.1,
    end_id: int = 1,
    pad_id: int = 0,
) -> LossTerm:
  """Sums the cross entropy of each token given those before it (RefA).

  Args:
    logits: position t scores token t + 1; the last position is unused.
    tokens: begin … end, then padding.
    weights: 1 for a prompt that joins the loss, 0 for others.
    label_smoothing: probability s that is taken from the target and spread
      evenly, s/(V-1), over all other tokens.
    end_id: the end token.
    pad_id: the padding.

  Returns:
    The summed cross entropy and the summed weights of the tokens.

  Raises:
    ValueError: if `label_smoothing` is no probability.
  """
  if not 0.0 <= label_smoothing < 1.0:
    raise ValueError(
        f'label_smoothing is {label_smoothing}; it must lie in [0, 1).'
    )
  logits = logits[:, :, :-1].astype(jnp.float32)
  targets = tokens[:, :, 1:]
  spread = label_smoothing / (logits.shape[-1] - 1)
  # -Σ target·log p with the normaliser taken out: no one-hot array of size V.
  normaliser = jax.nn.logsumexp(logits, axis=-1)
  at_target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  everywhere = jnp.sum(logits, axis=-1)
  cross_entropy = (
      normaliser
      - (1.0 - label_smoothing - spread) * at_target
      - spread * everywhere
  )
  token_weights = text_token_weights(
      tokens, weights, end_id=end_id, pad_id=pad_id
  )
  return LossTerm(
      total=jnp.sum(cross_entropy * token_weights), count=jnp.sum(token_weights)
  )


def point_token_weights(
    targets: Float[Array, 'B N T P 2'],
    weights: Float[Array, 'B N T'],
    kind: str,
) -> Float[Array, 'B N T']:
  """Weight of every token in the point loss of that kind; see `point_loss`."""
  if kind not in POINT_LOSSES:
    nearest = difflib.get_close_matches(str(kind), POINT_LOSSES, n=1)
    hint = f' Did you mean {nearest[0]!r}?' if nearest else ''
    raise ValueError(
        f'Unknown point loss {kind!r}; known are {POINT_LOSSES}.{hint}'
    )
  if kind == 'l1_nonzero':
    weights = weights * jnp.any(targets != 0, axis=(-1, -2))
  return weights


def point_loss(
    points: Float[Array, 'B N T P 2'],
    targets: Float[Array, 'B N T P 2'],
    weights: Float[Array, 'B N T'],
    *,
    kind: str = 'l1_nonzero',
) -> LossTerm:
  """Sums the distance between predicted and target points (RefA).

  A token without a trace weighs 0, so captions of any length share a batch.

  Args:
    points: (x, y) in pixels of the network input.
    targets: the same frame; 0 where there is no target.
    weights: 1 for a token that counts, 0 for padding and special tokens.
    kind: 'l1', 'l2' (squared), or 'l1_nonzero', which drops tokens whose target
      coordinates are all 0. That drops a real point at the origin too, as the
      original does.

  Returns:
    The summed distance, averaged over P and xy, and the summed weights.

  Raises:
    ValueError: if `kind` is unknown.
  """
  weights = point_token_weights(targets, weights, kind)
  difference = points.astype(jnp.float32) - targets
  distance = jnp.square(difference) if kind == 'l2' else jnp.abs(difference)
  return LossTerm(
      total=jnp.sum(jnp.mean(distance, axis=(-1, -2)) * weights),
      count=jnp.sum(weights),
  )


@struct.dataclass
class MaskLosses:
  """The parts of the mask loss, weights included.

  Attributes:
    focal: `FOCAL_WEIGHT` times the focal loss.
    dice: the dice loss.
    iou: squared error of the predicted IoU.
  """

  focal: LossTerm
  dice: LossTerm
  iou: LossTerm

  def sum(self) -> LossTerm:
    """Returns the whole mask loss."""
    return LossTerm(
        total=self.focal.total + self.dice.total + self.iou.total,
        count=self.dice.count,
    )


def mask_loss(
    mask_logits: Float[Array, 'B N Q h w'],
    mask_iou: Float[Array, 'B N Q'],
    targets: UInt8[Array, 'B N H W'],
    valid: Bool[Array, 'B H W'],
    weights: Float[Array, 'B N'],
) -> MaskLosses:
  """Sums focal, dice and IoU-prediction losses over prompts (RefB).

  Of the Q masks of a prompt only the one of least focal + dice loss counts; the
  IoU term averages over all. As in the original the focal term is a mean over
  valid pixels, while dice and IoU see the padding too.

  Args:
    mask_logits: low-resolution masks of the whole padded input.
    mask_iou: predicted IoU of each mask.
    targets: 0 or 1, full resolution.
    valid: True inside the image, False in the padding.
    weights: 1 for a prompt that joins the loss, 0 for others.

  Returns:
    The parts, each summed over prompts, with the summed weights.
  """
  # The backward pass works the full-resolution arrays out again, so the
  # forward pass keeps the low-resolution logits only.
  focal, dice, iou = jax.checkpoint(_mask_terms)(mask_logits, targets, valid)
  best = jnp.argmin(focal + dice, axis=-1, keepdims=True)

  def pick(x):
    return jnp.take_along_axis(x, best, axis=-1)[..., 0]

  iou_error = jnp.mean(jnp.square(mask_iou.astype(jnp.float32) - iou), axis=-1)

  def term(x):
    return LossTerm(total=jnp.sum(x * weights), count=jnp.sum(weights))

  return MaskLosses(
      focal=term(pick(focal)), dice=term(pick(dice)), iou=term(iou_error)
  )


def _mask_terms(
    mask_logits: Float[Array, 'B N Q h w'],
    targets: UInt8[Array, 'B N H W'],
    valid: Bool[Array, 'B H W'],
) -> tuple[Float[Array, 'B N Q'], Float[Array, 'B N Q'], Float[Array, 'B N Q']]:
  """Computes weighted focal loss, dice loss and true IoU of every mask."""
  logits = jax.image.resize(
      mask_logits.astype(jnp.float32),
      (*mask_logits.shape[:3], *targets.shape[2:]),
      'bilinear',
  )
  inside = (targets > 0)[:, :, None]

  def pixels(x):
    return jnp.sum(x, axis=(-1, -2), dtype=jnp.float32)

  # Both -log p and 1 - p of the true class come from one signed logit.
  wrong = jnp.where(inside, -logits, logits)
  focal = jax.nn.softplus(wrong) * jnp.square(jax.nn.sigmoid(wrong))
  focal = pixels(jnp.where(valid[:, None, None], focal, 0.0))
  area = jnp.maximum(pixels(valid), 1.0)[:, None, None]
  focal *= FOCAL_WEIGHT * _FOCAL_ALPHA / area

  probability = jax.nn.sigmoid(logits)
  overlap = pixels(jnp.where(inside, probability, 0.0))
  size = pixels(probability) + pixels(inside)
  dice = 1.0 - (2.0 * overlap + _DICE_SMOOTHING) / (size + _DICE_SMOOTHING)

  predicted = logits > 0
  intersection = pixels(predicted & inside)
  union = pixels(predicted | inside)
  return focal, dice, intersection / jnp.maximum(union, 1.0)
