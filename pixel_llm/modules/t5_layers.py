"""Layers of the T5 text head: T5's, with adapters and a decoding step.

They compute what `t5x.examples.t5` computes (whose parts they use) and have the
same parameter names, plus the adapters of `lora`. A T5X cache cannot serve the
text head: its key mask depends on the next token, and beams share the encoded
image; so the state of decoding is passed in and out.
"""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
from flax import struct
from flax.linen import spmd
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pixel_llm import axes
from pixel_llm.modules import lora
from t5x.examples.t5 import layers
from t5x.examples.t5 import network

# As in T5X: beside it float32 forgets the logit, so a row whose keys are all
# masked attends to all of them equally. Released weights saw such rows.
MASKED_LOGIT = -1e10

_PROJECTIONS = {'q': 'query', 'k': 'key', 'v': 'value', 'o': 'out'}


@struct.dataclass
class Adapter:
  """Low-rank adapters of one stack.

  Attributes:
    rank: rank, 0 for none.
    scale: factor of the correction.
    modules: adapted projections, a comma list of q, k, v, o.
  """

  rank: int = struct.field(pytree_node=False, default=0)
  scale: float = struct.field(pytree_node=False, default=2.0)
  modules: str = struct.field(pytree_node=False, default='q,v')

  def projections(self) -> frozenset[str]:
    """Returns the adapted children of an attention block.

    Raises:
      ValueError: if `modules` names an unknown projection.
    """
    letters = [m.strip() for m in self.modules.split(',') if m.strip()]
    unknown = [m for m in letters if m not in _PROJECTIONS]
    if unknown:
      raise ValueError(
          f'LoRA modules {self.modules!r} name {unknown}; known are'
          f' {sorted(_PROJECTIONS)}, separated by commas.'
      )
    return (
        frozenset(_PROJECTIONS[m] for m in letters)
        if self.rank
        else frozenset()
    )


def mask_bias(mask: Bool[Array, '...'], dtype: Any) -> Float[Array, '...']:
  """Turns a mask (True attends) into numbers to add to the logits."""
  return jnp.where(mask, 0.0, MASKED_LOGIT).astype(dtype)


def relative_biases(
    config: network.T5Config, name: str | None = None
) -> nn.Module:
  """Makes the relative position table of a stack (T5: 32 buckets to 128)."""
  return layers.RelativePositionBiases(
      num_buckets=32,
      max_distance=128,
      num_heads=config.num_heads,
      dtype=config.dtype,
      embedding_init=nn.initializers.variance_scaling(
          1.0, 'fan_avg', 'uniform'
      ),
      name=name,
  )


def dropout(config: network.T5Config) -> nn.Module:
  """Makes a dropout whose mask all positions share."""
  return nn.Dropout(rate=config.dropout_rate, broadcast_dims=(-2,))


def mlp(config: network.T5Config, name: str | None = None) -> nn.Module:
  """Makes the MLP of a layer."""
  return layers.MlpBlock(
      intermediate_dim=config.mlp_dim,
      activations=config.mlp_activations,
      intermediate_dropout_rate=config.dropout_rate,
      dtype=config.dtype,
      name=name,
  )


class Attention(nn.Module):
  """T5's attention with adapters, in three parts that a cache can split.

  Attributes:
    config: sizes.
    adapter: low-rank adapters.
  """

  config: network.T5Config
  adapter: Adapter

  def setup(self):
    """Makes the projections."""
    cfg = self.config
    init = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')
    adapted = self.adapter.projections()

    def query_init(*args):
      # Stands in for scaling the logits by 1/√(head width).
      return init(*args) / jnp.sqrt(float(cfg.head_dim))

    def projection(name):
      into_heads = name != 'out'
      return lora.DenseGeneral(
          features=(cfg.num_heads, cfg.head_dim) if into_heads else cfg.emb_dim,
          axis=-1 if into_heads else (-2, -1),
          kernel_init=query_init if name == 'query' else init,
          kernel_axes=(axes.EMBED, axes.JOINED_KV)
          if into_heads
          else (axes.JOINED_KV, axes.EMBED),
          dtype=cfg.dtype,
          rank=self.adapter.rank if name in adapted else 0,
          scale=self.adapter.scale,
      )

    self.query = projection('query')
    self.key = projection('key')
    self.value = projection('value')
    self.out = projection('out')

  def queries(self, x: Float[Array, 'M T D']) -> Float[Array, 'M T A E']:
    """Projects to queries."""
    return _constrain(self.query(x))

  def keys_values(
      self, x: Float[Array, 'M S D']
  ) -> tuple[Float[Array, 'M S A E'], Float[Array, 'M S A E']]:
    """Projects to keys and values."""
    return _constrain(self.key(x)), _constrain(self.value(x))

  def attend(
      self,
      queries: Float[Array, 'M T A E'],
      keys: Float[Array, 'M S A E'],
      values: Float[Array, 'M S A E'],
      bias: Float[Array, '#M #A #T S'],
      deterministic: bool,
  ) -> Float[Array, 'M T D']:
    """Averages values and projects back."""
    cfg = self.config
    drop = not deterministic and cfg.dropout_rate > 0.0
    attended = layers.dot_product_attention(
        queries,
        keys,
        values,
        bias=bias,
        dropout_rng=self.make_rng('dropout') if drop else None,
        dropout_rate=cfg.dropout_rate,
        deterministic=deterministic,
        dtype=cfg.dtype,
        float32_logits=cfg.float32_attention_logits,
    )
    return self.out(attended)

  def __call__(
      self,
      x: Float[Array, 'M T D'],
      source: Float[Array, 'M S D'],
      bias: Float[Array, '#M #A #T S'],
      deterministic: bool,
  ) -> Float[Array, 'M T D']:
    """Attends from `x` to `source`."""
    keys, values = self.keys_values(source)
    return self.attend(self.queries(x), keys, values, bias, deterministic)


def _constrain(x):
  """Names the axes of projected heads for the partitioner."""
  return spmd.with_logical_constraint(
      x, (axes.BATCH, axes.LENGTH, axes.HEADS, axes.KV)
  )


def _constrain_residual(x):
  """Names the axes of a layer's input for the partitioner."""
  return spmd.with_logical_constraint(x, (axes.BATCH, axes.LENGTH, axes.EMBED))


class EncoderLayer(nn.Module):
  """Self-attention and MLP, each normed before and added.

  Attributes:
    config: sizes.
    adapter: low-rank adapters.
  """

  config: network.T5Config
  adapter: Adapter

  @nn.compact
  def __call__(
      self,
      x: Float[Array, 'M S D'],
      bias: Float[Array, '#M #A S S'],
      deterministic: bool,
  ) -> Float[Array, 'M S D']:
    """Maps a sequence; `bias` holds mask and relative positions."""
    cfg = self.config
    x = _constrain_residual(x)

    def norm(name):
      return layers.LayerNorm(dtype=cfg.dtype, name=name)

    y = norm('pre_attention_layer_norm')(x)
    y = Attention(cfg, self.adapter, name='attention')(
        y, y, bias, deterministic
    )
    x = x + dropout(cfg)(y, deterministic=deterministic)
    y = norm('pre_mlp_layer_norm')(x)
    y = mlp(cfg, 'mlp')(y, deterministic=deterministic)
    return x + dropout(cfg)(y, deterministic=deterministic)


class DecoderLayer(nn.Module):
  """Self-attention, cross attention and MLP, normed before and added.

  Attributes:
    config: sizes.
    adapter: low-rank adapters.
  """

  config: network.T5Config
  adapter: Adapter

  def setup(self):
    """Makes the blocks."""
    cfg = self.config
    self.pre_self_attention_layer_norm = layers.LayerNorm(dtype=cfg.dtype)
    self.self_attention = Attention(cfg, self.adapter)
    self.pre_cross_attention_layer_norm = layers.LayerNorm(dtype=cfg.dtype)
    self.encoder_decoder_attention = Attention(cfg, self.adapter)
    self.pre_mlp_layer_norm = layers.LayerNorm(dtype=cfg.dtype)
    self.mlp = mlp(cfg)
    self.dropout = dropout(cfg)

  def __call__(
      self,
      x: Float[Array, 'M T D'],
      encoded: Float[Array, 'M S D'],
      self_bias: Float[Array, '#M #A T T'],
      cross_bias: Float[Array, 'M 1 T S'],
      deterministic: bool,
  ) -> Float[Array, 'M T D']:
    """Maps a sequence; the biases hold masks and relative positions."""
    x = _constrain_residual(x)
    y = self.pre_self_attention_layer_norm(x)
    y = self.self_attention(y, y, self_bias, deterministic)
    x = x + self.dropout(y, deterministic=deterministic)
    y = self.pre_cross_attention_layer_norm(x)
    y = self.encoder_decoder_attention(y, encoded, cross_bias, deterministic)
    x = x + self.dropout(y, deterministic=deterministic)
    y = self.mlp(self.pre_mlp_layer_norm(x), deterministic=deterministic)
    return x + self.dropout(y, deterministic=deterministic)

  def cross_keys_values(
      self, encoded: Float[Array, 'M S D']
  ) -> dict[str, Float[Array, 'M S A E']]:
    """Projects the encoded input, once for all steps and beams."""
    keys, values = self.encoder_decoder_attention.keys_values(encoded)
    return {'key': keys, 'value': values}

  def step(
      self,
      x: Float[Array, 'M K D'],
      index: int | Int[Array, ''],
      cross: Mapping[str, Float[Array, 'M S A E']],
      text: Mapping[str, Float[Array, 'M K T A E']],
      self_bias: Float[Array, 'MK A 1 T'],
      cross_bias: Float[Array, 'M 1 1 S'],
  ) -> tuple[Float[Array, 'M K D'], dict[str, Float[Array, 'M K T A E']]]:
    """Maps one position of every beam, without dropout.

    Args:
      x: the position's vectors.
      index: the position, from 0.
      cross: keys and values of the encoded input.
      text: keys and values of the positions before `index`.
      self_bias: mask and relative positions of this position's row.
      cross_bias: mask of the encoded input.

    Returns:
      The mapped vectors, and `text` with this position written.
    """
    rows, beams, width = x.shape
    attention = self.self_attention
    y = self.pre_self_attention_layer_norm(x).reshape(rows * beams, 1, width)
    new = dict(zip(('key', 'value'), attention.keys_values(y)))
    text = {
        name: jax.lax.dynamic_update_slice_in_dim(
            text[name],
            new[name].reshape(rows, beams, *new[name].shape[1:]),
            index,
            axis=2,
        )
        for name in new
    }
    merged = {n: v.reshape(rows * beams, *v.shape[2:]) for n, v in text.items()}
    y = attention.attend(
        attention.queries(y), merged['key'], merged['value'], self_bias, True
    )
    x = x + y.reshape(x.shape)
    # The beams of a row stand as query positions, so they share its keys.
    attention = self.encoder_decoder_attention
    y = self.pre_cross_attention_layer_norm(x)
    x = x + attention.attend(
        attention.queries(y), cross['key'], cross['value'], cross_bias, True
    )
    y = self.mlp(self.pre_mlp_layer_norm(x), deterministic=True)
    return x + y, text
