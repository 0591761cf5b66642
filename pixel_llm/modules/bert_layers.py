"""Layers of the BERT text head: embedding and post-norm transformer (RefA).

Parameter names are those of BERT (RefB) as the original stores them.

RefA: GIT (arXiv 2205.14100), Sec. 3.1; RefB: BERT (arXiv 1810.04805).
"""

from collections.abc import Sequence
from typing import Any

from flax import linen as nn
from flax import struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pixel_llm import axes
from pixel_llm.modules import bert_attention
from pixel_llm.modules import layers
from t5x import layer_stack

# Released weights expect exactly these; they differ by layer.
EMBEDDING_EPSILON = 1e-8
ATTENTION_EPSILON = 1e-5
MLP_EPSILON = 1e-12


@struct.dataclass
class StackSource:
  """Positions that the queries of all layers look at.

  Attributes:
    layers: keys and values of each layer, in the form of the stack: a list, or
      one `KeysValues` whose arrays have the layers as first axis.
    mask: True where a query sees a position.
  """

  layers: Any
  mask: Bool[Array, '*#rows #A #q S']


class Table(nn.Module):
  """Learned vectors, one a row.

  Attributes:
    num_rows: rows.
    features: width of a vector.
    row_axis: logical axis of the rows.
    dtype: type of the vectors that come out.
  """

  num_rows: int
  features: int
  row_axis: str
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(self, indices: Int[Array, '*rows']) -> Float[Array, '*rows D']:
    """Looks up rows."""
    table = layers.param(
        'embedding',
        layers.table_init,
        (self.num_rows, self.features),
        (self.row_axis, axes.EMBED),
    )
    return table.astype(self.dtype)[indices]


class Embedding(nn.Module):
  """Sum of word and position vectors, normed.

  Attributes:
    vocab_size: words.
    features: width.
    max_length: positions.
    dropout_rate: after the norm.
    dtype: type of the computation.
  """

  vocab_size: int
  features: int
  max_length: int
  dropout_rate: float
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(
      self,
      tokens: Int[Array, '*rows T'],
      positions: Int[Array, '*#rows T'],
      deterministic: bool,
  ) -> Float[Array, '*rows T D']:
    """Embeds tokens; padding is a word like any other."""
    words = Table(
        self.vocab_size, self.features, axes.VOCAB, self.dtype, name='words'
    )(tokens)
    places = Table(
        self.max_length,
        self.features,
        axes.ABSPOS_BUCKETS,
        self.dtype,
        name='positions',
    )(positions)
    x = layers.LayerNorm(EMBEDDING_EPSILON, self.dtype, name='layer_norm')(
        words + places
    )
    return nn.Dropout(self.dropout_rate)(x, deterministic=deterministic)


class NormedOutput(nn.Module):
  """Projects a branch, adds it to its input and norms the sum (post-norm).

  Attributes:
    epsilon: of the norm.
    in_axis: logical axis of the branch's width.
    dropout_rate: after the projection.
    dtype: type of the computation.
  """

  epsilon: float
  in_axis: str
  dropout_rate: float
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(
      self,
      branch: Float[Array, '*L Db'],
      x: Float[Array, '*L D'],
      deterministic: bool,
  ) -> Float[Array, '*L D']:
    """Closes a branch that started at `x`."""
    y = layers.Dense(
        x.shape[-1],
        kernel_axes=(self.in_axis, axes.EMBED),
        kernel_init=layers.table_init,
        dtype=self.dtype,
        name='dense',
    )(branch)
    y = nn.Dropout(self.dropout_rate)(y, deterministic=deterministic)
    return layers.LayerNorm(self.epsilon, self.dtype, name='LayerNorm')(x + y)


class Attention(nn.Module):
  """Self-attention and its output.

  Attributes:
    num_heads: heads.
    dropout_rate: of attention weights and output.
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
      before: Sequence[bert_attention.Source],
      deterministic: bool,
  ) -> tuple[Float[Array, '*rows q D'], bert_attention.KeysValues]:
    """Attends and norms; see `SelfAttention`."""
    y, own = bert_attention.SelfAttention(
        self.num_heads, self.dropout_rate, self.dtype, name='self'
    )(x, mask, before, deterministic)
    y = NormedOutput(
        ATTENTION_EPSILON,
        axes.JOINED_KV,
        self.dropout_rate,
        self.dtype,
        name='output',
    )(y, x, deterministic)
    return y, own


def _axes_before(x: Array, width: str) -> tuple[str | None, ...]:
  """Names the axes of positions; while decoding, beams stand behind the rows."""
  return (axes.BATCH, *(None,) * (x.ndim - 3), axes.LENGTH, width)


class Intermediate(nn.Module):
  """First half of the MLP.

  Attributes:
    features: hidden width.
    dtype: type of the computation.
  """

  features: int
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, '*L D']) -> Float[Array, '*L F']:
    """Widens, then applies the exact GELU."""
    y = layers.Dense(
        self.features,
        kernel_axes=(axes.EMBED, axes.MLP),
        kernel_init=layers.table_init,
        dtype=self.dtype,
        name='dense',
    )(x)
    y = layers.exact_gelu(y)
    return layers.constrain(y, *_axes_before(y, axes.MLP))


class Layer(nn.Module):
  """Attention and MLP, each normed behind its residual sum.

  Attributes:
    num_heads: heads.
    mlp_dim: hidden width of the MLP.
    dropout_rate: of attention weights and both outputs.
    dtype: type of the computation.
  """

  num_heads: int
  mlp_dim: int
  dropout_rate: float
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(
      self,
      x: Float[Array, '*rows q D'],
      mask: Bool[Array, '*#rows #A #q q'],
      before: Sequence[bert_attention.Source],
      deterministic: bool,
  ) -> tuple[Float[Array, '*rows q D'], bert_attention.KeysValues]:
    """Maps positions; see `SelfAttention`."""
    x = layers.constrain(x, *_axes_before(x, axes.EMBED))
    x, own = Attention(
        self.num_heads, self.dropout_rate, self.dtype, name='attention'
    )(x, mask, before, deterministic)
    y = Intermediate(self.mlp_dim, self.dtype, name='intermediate')(x)
    x = NormedOutput(
        MLP_EPSILON, axes.MLP, self.dropout_rate, self.dtype, name='output'
    )(y, x, deterministic)
    return x, own


class Encoder(nn.Module):
  """Layers `layer.0`, `layer.1` … over positions behind given ones.

  Attributes:
    num_layers: layers.
    num_heads: heads.
    mlp_dim: hidden width of the MLPs.
    dropout_rate: of attention weights and outputs.
    scan_layers: whether the layers are one scanned layer, named `layer`.
    remat_policy: what the backward pass recomputes; see `t5x.layer_stack`.
    dtype: type of the computation.
  """

  num_layers: int
  num_heads: int
  mlp_dim: int
  dropout_rate: float
  scan_layers: bool = False
  remat_policy: str = layer_stack.NO_REMAT
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(
      self,
      x: Float[Array, '*rows q D'],
      mask: Bool[Array, '*#rows #A #q q'],
      before: Sequence[StackSource],
      deterministic: bool,
  ) -> tuple[list[Float[Array, '*rows q D']], Any]:
    """Maps positions.

    Args:
      x: embedded positions.
      mask: which of them see each other.
      before: what else they see.
      deterministic: turns dropout off.

    Returns:
      Hidden states, the embeddings first, and the keys and values of each
      layer, in the form of the stack.
    """

    def make_layer(name):
      return Layer(
          self.num_heads,
          self.mlp_dim,
          self.dropout_rate,
          self.dtype,
          name=name,
      )

    def read(layer, x, *kept):
      sources = [
          bert_attention.Source(keys_values, source.mask)
          for keys_values, source in zip(kept, before)
      ]
      x, own = layer(x, mask, sources, deterministic)
      return x, (x, own)

    last, outputs = layer_stack.run(
        read,
        make_layer('layer')
        if self.scan_layers
        else [make_layer(f'layer.{i}') for i in range(self.num_layers)],
        x,
        *(source.layers for source in before),
        num_layers=self.num_layers,
        remat_policy=self.remat_policy,
    )
    states, kept = outputs if self.scan_layers else map(list, zip(*outputs))
    # If no other state is read, those of a scan are never written.
    hidden = [x, *(states[i] for i in range(self.num_layers - 1)), last]
    return hidden, kept


class Transformer(nn.Module):
  """Puts the encoder under the original's name, `transformer/encoder`.

  Attributes:
    encoder: the layers.
  """

  encoder: Encoder

  def __call__(
      self,
      x: Float[Array, '*rows q D'],
      mask: Bool[Array, '*#rows #A #q q'],
      before: Sequence[StackSource],
      deterministic: bool,
  ) -> tuple[list[Float[Array, '*rows q D']], Any]:
    """Maps positions; see `Encoder`."""
    return self.encoder(x, mask, before, deterministic)
