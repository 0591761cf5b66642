"""Rows that decode together: their state, their cache, and beams beside them.

A batch of `B` rows with `K` beams each is decoded as one batch of `B·K` rows,
the beams of a row beside each other: (a, b) becomes (a, a, b, b). A cache is
nested dicts of arrays whose batch axis is 0, or `offset` for scanned layers.

RefA: google-research/t5x `decoding.py` (names, shapes, the cache's leaves).
"""

from collections.abc import Callable, Mapping
from typing import Any

from flax import core as flax_core
from flax import struct
from flax import traverse_util
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

# Stands for the log of zero; sums of a few stay finite.
NEG_INF = np.array(-1.0e7)

# The count of a module that adds absolute positions.
POSITION_LEAF = 'position_embedder_index'
# Leaves of a cache that beams share.
_SHARED_LEAVES = frozenset({'cached_bias', POSITION_LEAF})
# The position in the cache: one for all rows, or after a prefill one a row.
INDEX_LEAF = 'cache_index'
# Rows of a register on a TPU, and the batch that fills no more than one.
_NUM_LANES = 128
_SMALL_BATCH = 8


@struct.dataclass
class DecodingState:
  """What the model sees of a decoding loop.

  Attributes:
    cur_index: position of the current token, scalar or [B·K].
    sequences: [B·K, L] tokens so far, 0 where there are none yet.
    cur_token: [B·K, 1] tokens to read.
    cache: the model's cache.
  """

  cur_index: jax.Array
  sequences: jax.Array
  cur_token: jax.Array
  cache: Mapping[str, Any]


# One step of a model: (logits [B·K, V], the cache behind the current token).
TokensToLogits = Callable[[DecodingState], tuple[jax.Array, Mapping[str, Any]]]


def cache_map(
    fn: Callable[[jax.Array], jax.Array],
    cache: Mapping[str, Any],
    apply_to_index: bool = False,
) -> Mapping[str, Any]:
  """Applies a function to what a cache holds of each row.

  Args:
    fn: the function.
    cache: nested dicts, frozen or not.
    apply_to_index: whether positions in the cache are per row as well.

  Returns:
    A cache of the same kind; leaves that all rows share come back as they are.
  """
  skipped = _SHARED_LEAVES if apply_to_index else {*_SHARED_LEAVES, INDEX_LEAF}
  flat = traverse_util.flatten_dict(flax_core.unfreeze(cache))
  flat = {
      path: leaf if path[-1] in skipped else jax.tree.map(fn, leaf)
      for path, leaf in flat.items()
  }
  return like_cache(cache, traverse_util.unflatten_dict(flat))


def like_cache(
    cache: Mapping[str, Any], new_cache: Mapping[str, Any]
) -> Mapping[str, Any]:
  """Freezes, or unfreezes, the new cache to be of the old one's kind.

  The caches of a loop must be, and Flax modules return what a global flag says.
  """
  if isinstance(cache, flax_core.FrozenDict):
    return flax_core.freeze(new_cache)
  return flax_core.unfreeze(new_cache)


def add_beam_dim(x: jax.Array, beam_size: int, offset: int = 0) -> jax.Array:
  """Repeats every row as beams: [B, …] becomes [B, K, …]."""
  x = jnp.expand_dims(x, axis=offset + 1)
  shape = (*x.shape[: offset + 1], beam_size, *x.shape[offset + 2 :])
  return jnp.broadcast_to(x, shape)


def flatten_beam_dim(x: jax.Array, offset: int = 0) -> jax.Array:
  """Puts beams into the batch: [B, K, …] becomes [B·K, …]."""
  return x.reshape(*x.shape[:offset], -1, *x.shape[offset + 2 :])


def unflatten_beam_dim(
    x: jax.Array, batch_size: int, beam_size: int, offset: int = 0
) -> jax.Array:
  """Takes beams out of the batch: [B·K, …] becomes [B, K, …]."""
  assert batch_size * beam_size == x.shape[offset], (x.shape, beam_size)
  return x.reshape(
      *x.shape[:offset], batch_size, beam_size, *x.shape[offset + 1 :]
  )


def flat_batch_beam_expand(
    x: jax.Array, beam_size: int, offset: int = 0
) -> jax.Array:
  """Repeats rows in place: (a, b) becomes (a, a, b, b) for two beams."""
  return flatten_beam_dim(add_beam_dim(x, beam_size, offset), offset)


def _gather_fn(
    beam_indices: jax.Array, old_beam_size: int, one_hot: bool, offset: int
) -> Callable[[jax.Array], jax.Array]:
  """Makes a function that picks beams [B, K'] of an array [B, K, …]."""
  assert offset in (0, 1), offset
  if not one_hot:

    def pick(x):
      indices = jnp.expand_dims(
          beam_indices,
          [*range(offset), *range(offset + 2, x.ndim)],
      )
      return jnp.take_along_axis(x, indices, axis=offset + 1)

    return pick

  # A product is partitioned like the arrays; an indexed read is gathered on
  # every device. Exact, since all but one factor of a sum are 0.
  choice = jax.nn.one_hot(beam_indices, old_beam_size, dtype=jnp.int32)
  spec = 'beo,lbo...->lbe...' if offset else 'beo,bo...->be...'
  return lambda x: jnp.einsum(spec, choice, x).astype(x.dtype)


def gather_beams(
    nested: Any,
    beam_indices: jax.Array,
    batch_size: int,
    old_beam_size: int,
    new_beam_size: int,
    one_hot: bool = True,
) -> Any:
  """Picks beams of every row.

  Args:
    nested: tree of [B, K, …].
    beam_indices: [B, K'], which beam comes where.
    batch_size: B.
    old_beam_size: K.
    new_beam_size: K'.
    one_hot: picks by a product rather than by indices.

  Returns:
    Tree of [B, K', …].
  """
  assert beam_indices.shape == (batch_size, new_beam_size), beam_indices.shape
  return jax.tree.map(
      _gather_fn(beam_indices, old_beam_size, one_hot, 0), nested
  )


def cache_gather_beams(
    nested: Mapping[str, Any],
    beam_indices: jax.Array,
    batch_size: int,
    old_beam_size: int,
    new_beam_size: int,
    one_hot: bool = True,
    offset: int = 0,
) -> Mapping[str, Any]:
  """Picks beams of a cache; see `gather_beams` and `cache_map`."""
  assert beam_indices.shape == (batch_size, new_beam_size), beam_indices.shape
  return cache_map(
      _gather_fn(beam_indices, old_beam_size, one_hot, offset), nested
  )


def gather_topk_beams(
    nested: Any,
    score_or_log_prob: jax.Array,
    batch_size: int,
    new_beam_size: int,
) -> Any:
  """Picks the best beams of every row, the best one last.

  Args:
    nested: tree of [B, K, …].
    score_or_log_prob: [B, K], larger is better.
    batch_size: B.
    new_beam_size: K'.

  Returns:
    Tree of [B, K', …].
  """
  _, indices = lax.top_k(score_or_log_prob, new_beam_size)
  return gather_beams(
      nested,
      jnp.flip(indices, axis=1),
      batch_size,
      score_or_log_prob.shape[1],
      new_beam_size,
  )


def top_k_two_stage(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """Computes `lax.top_k`, for few long rows on a TPU in two stages.

  A row alone would leave most lanes of a register empty. Cut into 128 parts,
  each part's best are found at once, and then the best of those.

  Args:
    x: [B, N].
    k: how many.

  Returns:
    (the largest values [B, k], their indices [B, k]), the largest first.
  """
  batch, length = x.shape
  if batch > _SMALL_BATCH or length <= 8 * _NUM_LANES * k:
    return lax.top_k(x, k)
  part = -(-length // _NUM_LANES)
  x = jnp.pad(
      x, ((0, 0), (0, part * _NUM_LANES - length)), constant_values=-jnp.inf
  )
  values, indices = lax.top_k(x.reshape(batch, _NUM_LANES, part), k)
  indices += part * jnp.arange(_NUM_LANES)[None, :, None]
  values, best = lax.top_k(values.reshape(batch, -1), k)
  indices = indices.reshape(batch, -1)
  return values, jnp.take_along_axis(indices, best, axis=1)
