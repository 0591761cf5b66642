"""Attention of the BERT text head, to several sources in one softmax.

The text looks at the prefix and at itself; a step of decoding looks at the
prefix, at the text so far and at itself. The keys and values of the prefix are
computed once, and the beams of a row share them without copies.
"""

from collections.abc import Sequence
import itertools

from flax import linen as nn
from flax import struct
from flax.linen import spmd
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pixel_llm import axes
from pixel_llm.modules import layers

# Beside it float32 forgets the score. Every query sees a visual token, so no
# row is masked throughout.
_MASKED_SCORE = -1e10


@struct.dataclass
class KeysValues:
  """What one layer keeps of positions that later ones look at.

  The length comes last: heads are multiplied as matrices [E, S], so a step of
  decoding need not transpose all that was kept.

  Attributes:
    keys: projected, cut into heads.
    values: the same.
  """

  keys: Float[Array, '*rows A E S']
  values: Float[Array, '*rows A E S']


@struct.dataclass
class Source:
  """Positions that queries look at.

  Attributes:
    keys_values: of the positions; rows of size one are shared.
    mask: True where a query sees a position.
  """

  keys_values: KeysValues
  mask: Bool[Array, '*#rows #A #q S']


def attention_scores(
    query: Float[Array, '*rows q A E'], source: Source
) -> Float[Array, '*rows A q S']:
  """Scores the positions of one source in float32, before the softmax."""
  scores = jnp.einsum(
      '...qae,...aek->...aqk',
      query,
      source.keys_values.keys,
      preferred_element_type=jnp.float32,
  )
  return jnp.where(source.mask, scores * query.shape[-1] ** -0.5, _MASKED_SCORE)


class SelfAttention(nn.Module):
  """Attention to given sources and to the queries' own positions.

  Attributes:
    num_heads: heads.
    dropout_rate: of the attention weights.
    dtype: type of the computation.
  """

  num_heads: int
  dropout_rate: float
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(
      self,
      x: Float[Array, '*rows q D'],
      mask: Bool[Array, '*#rows #A #q q'],
      before: Sequence[Source],
      deterministic: bool,
  ) -> tuple[Float[Array, '*rows q D'], KeysValues]:
    """Attends, and gives the keys and values of the own positions."""

    def heads(name: str) -> Float[Array, '*rows q A E']:
      y = layers.Dense(
          x.shape[-1],
          kernel_axes=(axes.EMBED, axes.JOINED_KV),
          kernel_init=layers.table_init,
          dtype=self.dtype,
          name=name,
      )(x)
      y = layers.split_heads(y, self.num_heads)
      # A step of decoding has the beams behind the rows.
      beams = (None,) * (y.ndim - 4)
      return spmd.with_logical_constraint(
          y, (axes.BATCH, *beams, axes.LENGTH, axes.HEADS, axes.KV)
      )

    own = KeysValues(
        keys=jnp.moveaxis(heads('key'), -3, -1),
        values=jnp.moveaxis(heads('value'), -3, -1),
    )
    sources = [*before, Source(own, mask)]
    query = heads('query')
    scores = [attention_scores(query, source) for source in sources]
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1)
    weights = nn.Dropout(self.dropout_rate)(
        weights, deterministic=deterministic
    ).astype(self.dtype)
    ends = list(itertools.accumulate(s.shape[-1] for s in scores))[:-1]
    attended = sum(
        jnp.einsum('...aqk,...aek->...qae', part, source.keys_values.values)
        for part, source in zip(jnp.split(weights, ends, axis=-1), sources)
    )
    return jnp.reshape(attended, x.shape), own
