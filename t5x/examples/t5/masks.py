"""Attention masks of T5.

A mask has shape [batch, 1, query length, key length]; non-zero may attend.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array


def make_attention_mask(
    query_input: Array,
    key_input: Array,
    pairwise_fn: Callable[..., Array] = jnp.multiply,
    extra_batch_dims: int = 0,
    dtype=jnp.float32,
) -> Array:
  """Compares every query position with every key position.

  With `pairwise_fn=jnp.equal` and segment ids, [1, 1, 2] and [1, 1, 2] give
  [[1, 1, 0], [1, 1, 0], [0, 0, 1]].

  Args:
    query_input: [batch, query length], for instance `tokens > 0`.
    key_input: [batch, key length].
    pairwise_fn: elementwise function of a query and a key entry.
    extra_batch_dims: axes of size 1 to put in front.
    dtype: type of the mask.

  Returns:
    [batch, 1, query length, key length], extra axes in front.
  """
  mask = pairwise_fn(query_input[..., :, None], key_input[..., None, :])
  mask = jnp.expand_dims(mask, axis=-3)
  mask = mask.reshape((1,) * extra_batch_dims + mask.shape)
  return mask.astype(dtype)


def make_causal_mask(
    x: Array, extra_batch_dims: int = 0, dtype=jnp.float32
) -> Array:
  """Lets every position see itself and those before it.

  Args:
    x: [batch, length]; only the shape counts.
    extra_batch_dims: axes of size 1 to put in front.
    dtype: type of the mask.

  Returns:
    [batch, 1, length, length].
  """
  positions = jnp.broadcast_to(
      jnp.arange(x.shape[-1], dtype=jnp.int32).reshape(
          (1,) * (x.ndim - 1) + (-1,)
      ),
      x.shape,
  )
  return make_attention_mask(
      positions, positions, jnp.greater_equal, extra_batch_dims, dtype
  )


def combine_masks(*masks: Array | None, dtype=jnp.float32) -> Array | None:
  """Combines masks of equal rank with a logical and; None where all are."""
  present = [m for m in masks if m is not None]
  if not present:
    return None
  _check_ranks(present, 'masks')
  result = present[0]
  for mask in present[1:]:
    result = jnp.logical_and(result, mask)
  return result.astype(dtype)


def combine_biases(*biases: Array | None) -> Array | None:
  """Adds biases of equal rank; None where all are."""
  present = [b for b in biases if b is not None]
  if not present:
    return None
  _check_ranks(present, 'biases')
  return sum(present[1:], start=present[0])


def _check_ranks(arrays: list[Array], what: str):
  """Checks that arrays to be combined have one rank."""
  ranks = [a.ndim for a in arrays]
  if len(set(ranks)) > 1:
    raise ValueError(
        f'{what} to combine must have the same rank; got {ranks}, shapes'
        f' {[a.shape for a in arrays]}.'
    )


def make_decoder_mask(
    decoder_target_tokens: Array,
    dtype,
    decoder_causal_attention: Array | None = None,
    decoder_segment_ids: Array | None = None,
) -> Array:
  """Combines causality, padding and packing of a decoder.

  Args:
    decoder_target_tokens: [batch, length]; a position whose target is 0 neither
      sees nor is seen.
    dtype: type of the mask.
    decoder_causal_attention: [batch, length]; positions flagged 1 (a prefix)
      see each other in both directions.
    decoder_segment_ids: [batch, length]; positions see their own segment only.

  Returns:
    [batch, 1, length, length].
  """
  visible = make_causal_mask(decoder_target_tokens, dtype=dtype)
  if decoder_causal_attention is not None:
    prefix = make_attention_mask(
        decoder_causal_attention, decoder_causal_attention, dtype=dtype
    )
    visible = jnp.logical_or(visible, prefix)
  real = decoder_target_tokens > 0
  mask = jnp.logical_and(visible, make_attention_mask(real, real, dtype=dtype))
  if decoder_segment_ids is not None:
    same = make_attention_mask(
        decoder_segment_ids, decoder_segment_ids, jnp.equal, dtype=dtype
    )
    mask = jnp.logical_and(mask, same)
  return mask.astype(dtype)
