"""Token cross entropy with label smoothing and z-loss, and its normalisation.

The z-loss pulls log Z, the log of the softmax normaliser, to zero:
`z_loss · log Z ²` (RefA, section 5). Label smoothing gives every other token
`ε / (V − 1)`; the entropy of the smoothed targets is subtracted, so a perfect
prediction has loss 0.

RefA: PaLM, arXiv 2204.02311.
"""

from collections.abc import Mapping
import enum
import math
from typing import Any

import jax
import jax.numpy as jnp


@enum.unique
class SpecialLossNormalizingFactor(enum.Enum):
  """Normalising factors that depend on the batch.

  Attributes:
    NUM_REAL_TARGET_TOKENS: the number of targets, or the sum of weights.
    NUM_TOTAL_TARGET_TOKENS: batch times length, padding included.
    AVERAGE_PER_SEQUENCE: each sequence (each segment, if packed) counts alike.
  """

  NUM_REAL_TARGET_TOKENS = 1
  NUM_TOTAL_TARGET_TOKENS = 2
  AVERAGE_PER_SEQUENCE = 3


def cross_entropy_with_logits(
    logits: jax.Array, soft_targets: jax.Array, z_loss: float
) -> tuple[jax.Array, jax.Array]:
  """Computes the cross entropy of each token.

  Args:
    logits: [..., V].
    soft_targets: [..., V] probabilities.
    z_loss: weight of the z-loss.

  Returns:
    ([...] loss with the z-loss included, [...] the z-loss).
  """
  weight = jnp.asarray(z_loss, logits.dtype)
  return _cross_entropy(logits, soft_targets, weight)


@jax.custom_vjp
def _cross_entropy(logits, soft_targets, z_loss):
  """Computes `cross_entropy_with_logits`, with a gradient of its own."""
  log_z = jax.scipy.special.logsumexp(logits, axis=-1)
  log_probs = logits - log_z[..., None]
  total_z_loss = z_loss * jnp.square(log_z)
  return total_z_loss - jnp.sum(soft_targets * log_probs, -1), total_z_loss


def _cross_entropy_forward(logits, soft_targets, z_loss):
  output = _cross_entropy(logits, soft_targets, z_loss)
  return output, (logits, soft_targets, z_loss)


def _cross_entropy_backward(residuals, cotangents):
  # Keeps the logits alone: autodiff would keep several [..., V] arrays.
  logits, soft_targets, z_loss = residuals
  loss_bar, z_bar = cotangents
  log_z = jax.scipy.special.logsumexp(logits, axis=-1)
  log_probs = logits - log_z[..., None]
  both_bar = loss_bar + z_bar
  mass = jnp.sum(soft_targets, axis=-1)
  on_softmax = loss_bar * mass + both_bar * 2 * z_loss * log_z
  logits_bar = on_softmax[..., None] * jnp.exp(log_probs)
  logits_bar -= loss_bar[..., None] * soft_targets
  targets_bar = -loss_bar[..., None] * log_probs
  z_loss_bar = jnp.sum(both_bar * jnp.square(log_z))
  return (
      logits_bar.astype(logits.dtype),
      targets_bar.astype(soft_targets.dtype),
      z_loss_bar.astype(z_loss.dtype),
  )


_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def compute_weighted_cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    weights: jax.Array | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    loss_normalizing_factor: float | jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array | int]:
  """Sums the weighted cross entropy of a batch.

  Args:
    logits: [B, T, V].
    targets: [B, T] token ids.
    weights: [B, T], or None for 1.
    label_smoothing: probability ε taken from the target.
    z_loss: weight of the z-loss.
    loss_normalizing_factor: number that divides both losses.

  Returns:
    (loss with the z-loss, z-loss, sum of the weights).

  Raises:
    ValueError: if the ranks do not fit.
  """
  if logits.ndim != targets.ndim + 1:
    raise ValueError(
        f'logits {logits.shape} must have one dimension more than targets'
        f' {targets.shape}.'
    )
  num_others = logits.shape[-1] - 1
  on_value = 1.0 - label_smoothing
  off_value = label_smoothing / num_others
  entropy = -sum(
      count * p * math.log(p)
      for count, p in ((1, on_value), (num_others, off_value))
      if p > 0
  )
  one_hot = jax.nn.one_hot(targets, logits.shape[-1], dtype=logits.dtype)
  soft_targets = off_value + (on_value - off_value) * one_hot
  loss, total_z_loss = cross_entropy_with_logits(logits, soft_targets, z_loss)
  loss -= entropy
  weight_sum = math.prod(targets.shape)
  if weights is not None:
    loss, total_z_loss = loss * weights, total_z_loss * weights
    weight_sum = jnp.sum(weights)
  if loss_normalizing_factor is not None:
    loss /= loss_normalizing_factor
    total_z_loss /= loss_normalizing_factor
  return jnp.sum(loss), jnp.sum(total_z_loss), weight_sum


def convert_special_loss_normalizing_factor_to_enum(
    factor: str,
) -> SpecialLossNormalizingFactor:
  """Reads the name of a special factor, in any case (as gin files write it).

  Args:
    factor: such as `num_real_target_tokens`.

  Returns:
    The enum's member.

  Raises:
    ValueError: for an unknown name.
  """
  members = SpecialLossNormalizingFactor.__members__
  name = factor.strip().upper()
  if name not in members:
    raise ValueError(
        f'loss_normalizing_factor {factor!r} is not known; use a number or one'
        f' of {list(members)}.'
    )
  return members[name]


def _sum_weights_per_segment(
    positions: jax.Array, segment_ids: jax.Array, weights: jax.Array
) -> jax.Array:
  """Gives each token the sum of the weights of its packed segment.

  Example: ids (1 1 2 0), weights (1 2 3 4) give (3 3 3 0).

  Args:
    positions: [B, T], the place of a token in its segment. Ids tell segments
      apart already; it stands here because callers pass it.
    segment_ids: [B, T], from 1, 0 for padding.
    weights: [B, T].

  Returns:
    [B, T], 0 at padding.
  """
  del positions

  def row(ids, row_weights):
    totals = jax.ops.segment_sum(row_weights, ids, ids.shape[0] + 1)
    return totals[ids] * (ids > 0)

  return jax.vmap(row)(segment_ids, weights)


def get_loss_normalizing_factor_and_weights(
    loss_normalizing_factor: float | str | SpecialLossNormalizingFactor | None,
    batch: Mapping[str, Any],
) -> tuple[float | jax.Array | None, jax.Array | None]:
  """Resolves the factor for a batch.

  Args:
    loss_normalizing_factor: a number, a special factor, or None.
    batch: with `decoder_target_tokens` [B, T], and where the data has them
      `decoder_loss_weights`, `decoder_segment_ids`, `decoder_positions`.

  Returns:
    (the number, the token weights [B, T] or None).

  Raises:
    ValueError: for an unknown name.
  """
  weights = batch.get('decoder_loss_weights')
  factor = loss_normalizing_factor
  if isinstance(factor, str):
    factor = convert_special_loss_normalizing_factor_to_enum(factor)
  if not isinstance(factor, SpecialLossNormalizingFactor):
    return factor, weights
  targets = batch['decoder_target_tokens']
  if weights is None:
    weights = jnp.asarray(targets > 0, jnp.float32)
  if factor is SpecialLossNormalizingFactor.NUM_REAL_TARGET_TOKENS:
    return jnp.sum(weights), weights
  if factor is SpecialLossNormalizingFactor.NUM_TOTAL_TARGET_TOKENS:
    return math.prod(targets.shape), weights
  if 'decoder_segment_ids' in batch:
    sums = _sum_weights_per_segment(
        batch['decoder_positions'], batch['decoder_segment_ids'], weights
    )
  else:
    sums = jnp.sum(weights, axis=-1, keepdims=True)
  # An empty sequence has sum 0 and weight 0, and stays at 0.
  weights = jnp.where(sums == 0, 0.0, weights / jnp.where(sums == 0, 1, sums))
  return jnp.sum(weights), weights
