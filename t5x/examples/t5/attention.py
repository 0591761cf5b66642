"""Attention of T5: no 1/√d, relative biases, a cache for decoding.

RefA: T5 (arXiv 1910.10683); RefB: google-research/t5x
`examples/t5/layers.py` (names, cache layout).
"""

from typing import Any

from flax import linen as nn
from flax.linen import spmd
import jax
from jax import lax
from jax import random
import jax.numpy as jnp

from t5x.examples.t5 import dense
from t5x.examples.t5 import masks

Array = jax.Array

# Added to the logits of masked positions. A row whose keys are all masked
# attends to all of them equally: float32 forgets the logits beside it.
MASKED_LOGIT = -1e10

dynamic_vector_slice_in_dim = jax.vmap(
    lax.dynamic_slice_in_dim, in_axes=(None, 0, None, None)
)


def dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None = None,
    dropout_rng: Array | None = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: Any = jnp.float32,
    float32_logits: bool = False,
) -> Array:
  """Averages values with softmax(query · key + bias), without scaling.

  Args:
    query: [batch, query length, heads, head width].
    key: [batch, key length, heads, head width].
    value: as `key`.
    bias: added to the logits, broadcasts to [batch, heads, q, k].
    dropout_rng: random key of the weights' dropout.
    dropout_rate: its rate; one mask serves all query positions.
    deterministic: turns dropout off.
    dtype: type of the weights and of the result.
    float32_logits: sums logits and computes the softmax in float32.

  Returns:
    [batch, query length, heads, head width].

  Raises:
    ValueError: if shapes do not fit, or dropout lacks a random key.
  """

  def batch_heads(x):
    return (x.shape[0], x.shape[2])

  if (
      not query.ndim == key.ndim == value.ndim == 4
      or not batch_heads(query) == batch_heads(key) == batch_heads(value)
      or key.shape[1] != value.shape[1]
      or query.shape[-1] != key.shape[-1]
  ):
    raise ValueError(
        'query, key and value must be [batch, length, heads, head width] with'
        ' equal batch and heads; key and value of equal length, query and key'
        f' of equal width. Got {query.shape}, {key.shape}, {value.shape}.'
    )
  # Products of halves are exact in float32, so they need no cast before.
  logits = jnp.einsum(
      'bqhd,bkhd->bhqk',
      query,
      key,
      preferred_element_type=jnp.float32 if float32_logits else None,
  )
  if bias is not None:
    logits += bias.astype(logits.dtype)
  weights = jax.nn.softmax(logits).astype(dtype)
  if not deterministic and dropout_rate > 0.0:
    if dropout_rng is None:
      raise ValueError(
          f'dropout_rate is {dropout_rate}: pass dropout_rng, or'
          ' deterministic=True.'
      )
    batch, heads, _, keys = weights.shape
    keep = random.bernoulli(
        dropout_rng, 1.0 - dropout_rate, (batch, heads, 1, keys)
    )
    weights *= keep.astype(dtype) / jnp.asarray(1.0 - dropout_rate, dtype)
  return jnp.einsum('bhqk,bkhd->bqhd', weights, value)


class MultiHeadDotProductAttention(nn.Module):
  """Multi-head attention, one position at a time with a cache if `decode`.

  Attributes:
    num_heads: number of heads.
    head_dim: width of a head.
    dtype: compute type.
    dropout_rate: dropout rate of the attention weights.
    kernel_init: initialiser; the query's is divided by √head_dim, which stands
      in for scaling the logits.
    float32_logits: computes logits and softmax in float32.
  """

  num_heads: int
  head_dim: int
  dtype: Any = jnp.float32
  dropout_rate: float = 0.0
  kernel_init: dense.Initializer = nn.initializers.variance_scaling(
      1.0, 'fan_in', 'normal'
  )
  float32_logits: bool = False

  def _scaled_query_init(self, *args) -> Array:
    """Draws a query kernel small enough that logits need no scaling."""
    return self.kernel_init(*args) / jnp.sqrt(self.head_dim).astype(self.dtype)

  def _project(self, name: str, inputs: Array, init) -> Array:
    """Projects [batch, length, embed] to [batch, length, heads, width]."""
    projected = dense.DenseGeneral(
        features=(self.num_heads, self.head_dim),
        kernel_init=init,
        kernel_axes=('embed', 'joined_kv'),
        dtype=self.dtype,
        name=name,
    )(inputs)
    return spmd.with_logical_constraint(
        projected, ('batch', 'length', 'heads', 'kv')
    )

  @nn.compact
  def __call__(
      self,
      inputs_q: Array,
      inputs_kv: Array,
      mask: Array | None = None,
      bias: Array | None = None,
      *,
      decode: bool = False,
      deterministic: bool = False,
  ) -> Array:
    """Attends from `inputs_q` to `inputs_kv`.

    The first call with `decode` makes the cache at full length; each later one
    takes one position, writes it behind the previous ones and sees only those.

    Args:
      inputs_q: [batch, query length, embed].
      inputs_kv: [batch, key length, embed].
      mask: [batch, 1, query length, key length], non-zero may attend.
      bias: [1, heads, query length, key length]; while decoding it has full
        length and the row of the current position is cut out.
      decode: whether to use the cache.
      deterministic: turns dropout off.

    Returns:
      [batch, query length, embed].
    """
    query = self._project('query', inputs_q, self._scaled_query_init)
    key = self._project('key', inputs_kv, self.kernel_init)
    value = self._project('value', inputs_kv, self.kernel_init)
    if decode:
      key, value, mask, bias = self._use_cache(query, key, value, mask, bias)
    if mask is not None:
      mask_bias = jnp.where(mask > 0, 0.0, MASKED_LOGIT).astype(self.dtype)
      bias = masks.combine_biases(bias, mask_bias)
    drop = not deterministic and self.dropout_rate > 0.0
    attended = dot_product_attention(
        query,
        key,
        value,
        bias=bias,
        dropout_rng=self.make_rng('dropout') if drop else None,
        dropout_rate=self.dropout_rate,
        deterministic=deterministic,
        dtype=self.dtype,
        float32_logits=self.float32_logits,
    )
    return dense.DenseGeneral(
        features=inputs_q.shape[-1],
        axis=(-2, -1),
        kernel_init=self.kernel_init,
        kernel_axes=('joined_kv', 'embed'),
        dtype=self.dtype,
        name='out',
    )(attended)

  def _use_cache(self, query, key, value, mask, bias):
    """Adds one position to the cache; gives keys, values, mask, bias to use."""
    ready = self.has_variable('cache', 'cached_key')

    # The length comes last: TPUs tile the last two axes.
    def to_cache(x):
      return jnp.moveaxis(x, 1, -1)

    def from_cache(x):
      return jnp.moveaxis(x, -1, 1)

    def zeros(x):
      return jnp.zeros(to_cache(x).shape, x.dtype)

    cached_key = self.variable('cache', 'cached_key', zeros, key)
    cached_value = self.variable('cache', 'cached_value', zeros, value)
    cache_index = self.variable(
        'cache', 'cache_index', lambda: jnp.array(0, dtype=jnp.int32)
    )
    if not ready:
      return key, value, mask, bias
    batch, heads, head_dim, length = cached_key.value.shape
    if query.shape != (batch, 1, heads, head_dim):
      raise ValueError(
          'With a cache, attention takes one position a call: expected a query'
          f' of shape {(batch, 1, heads, head_dim)}, got {query.shape}.'
      )
    index = cache_index.value
    here = (jnp.arange(length) == index).reshape(1, 1, 1, length)
    cached_key.value = jnp.where(here, to_cache(key), cached_key.value)
    cached_value.value = jnp.where(here, to_cache(value), cached_value.value)
    cache_index.value = index + 1
    seen = (jnp.arange(length) <= index).reshape(1, 1, 1, length)
    mask = masks.combine_masks(
        mask, jnp.broadcast_to(seen, (batch, 1, 1, length))
    )
    if bias is not None:
      bias = dynamic_vector_slice_in_dim(
          jnp.squeeze(bias, axis=0), index.reshape(-1), 1, -2
      )
    return (
        from_cache(cached_key.value),
        from_cache(cached_value.value),
        mask,
        bias,
    )
