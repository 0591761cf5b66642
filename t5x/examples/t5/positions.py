"""Relative position biases of T5 (arXiv 1910.10683, section 2.1)."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
from flax.linen import partitioning
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def relative_position_bucket(
    relative_position: np.ndarray,
    bidirectional: bool,
    num_buckets: int,
    max_distance: int,
) -> np.ndarray:
  """Maps relative positions to buckets, exact near and logarithmic far.

  Causal, 32 buckets, distance 128: 0, -1, … -15 have buckets 0 … 15, then
  ever longer spans share one, and -128 or less is bucket 31. The future is 0.

  Args:
    relative_position: key position minus query position, any shape.
    bidirectional: whether the future counts; the past then has the lower half
      of the buckets, the future the upper half.
    num_buckets: number of buckets.
    max_distance: distance from which on all share the last bucket.

  Returns:
    Bucket ids, int32, of the same shape.
  """
  distance = -relative_position
  offset = np.zeros_like(distance)
  if bidirectional:
    num_buckets //= 2
    offset = np.where(distance < 0, num_buckets, 0)
    distance = np.abs(distance)
  else:
    distance = np.maximum(distance, 0)
  num_exact = num_buckets // 2
  # float32 as in the original: a boundary case must round the same way.
  ratio = np.log(
      np.maximum(distance, 1).astype(np.float32) / num_exact
      + np.finfo(np.float32).eps
  ) / np.log(max_distance / num_exact)
  far = num_exact + (ratio * (num_buckets - num_exact)).astype(np.int32)
  far = np.minimum(far, num_buckets - 1)
  return (offset + np.where(distance < num_exact, distance, far)).astype(
      np.int32
  )


class RelativePositionBiases(nn.Module):
  """A learned number per head and bucket of relative positions.

  One instance serves all layers of a stack.

  Attributes:
    num_buckets: number of buckets.
    max_distance: distance from which on all share the last bucket.
    num_heads: attention heads.
    dtype: type of the biases.
    embedding_init: initialiser of the table [heads, buckets].
  """

  num_buckets: int
  max_distance: int
  num_heads: int
  dtype: Any
  embedding_init: Callable[..., Array] = nn.linear.default_embed_init

  @nn.compact
  def __call__(self, qlen: int, klen: int, bidirectional: bool = True) -> Array:
    """Gives the biases [1, heads, qlen, klen], to be added to the logits."""
    relative = np.arange(klen)[None, :] - np.arange(qlen)[:, None]
    buckets = relative_position_bucket(
        relative, bidirectional, self.num_buckets, self.max_distance
    )
    table = partitioning.param_with_axes(
        'rel_embedding',
        self.embedding_init,
        (self.num_heads, self.num_buckets),
        jnp.float32,
        axes=('heads', 'relpos_buckets'),
    )
    # A product with a one-hot array, so that a table sharded over heads
    # needs no gather.
    one_hot = jax.nn.one_hot(buckets, self.num_buckets, dtype=self.dtype)
    biases = jnp.einsum('hn,qkn->hqk', jnp.asarray(table, self.dtype), one_hot)
    return biases[None]
