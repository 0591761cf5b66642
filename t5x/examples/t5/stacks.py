"""Config, layers and stacks of the T5 encoder-decoder; see `network`.

RefA: google-research/t5x `examples/t5/network.py` (names of classes, keywords
and parameters; public checkpoints depend on them).
"""

from collections.abc import Callable, Sequence
from typing import Any

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp

from t5x import layer_stack
from t5x.examples.t5 import layers

Array = jax.Array


@struct.dataclass
class T5Config:
  """Sizes of a T5 network; subclasses add fields.

  Attributes:
    vocab_size: rows of the embedding table and number of logits.
    dtype: compute type; a name such as 'bfloat16' will do.
    emb_dim: width of the residual stream.
    num_heads: attention heads.
    num_encoder_layers: layers of the encoder.
    num_decoder_layers: layers of the decoder.
    head_dim: width of a head.
    mlp_dim: hidden width of an MLP.
    mlp_activations: activations that are multiplied.
    dropout_rate: rate of all dropouts.
    logits_via_embedding: ties the logits to the embedding table (T5 1.0).
    float32_attention_logits: computes attention logits in float32.
    scan_layers: whether a stack is one scanned layer, whose parameters (and
      cache) hold all layers.
    remat_policy: what the backward pass recomputes; see `t5x.layer_stack`.
  """

  vocab_size: int
  dtype: Any = jnp.float32
  emb_dim: int = 512
  num_heads: int = 8
  num_encoder_layers: int = 6
  num_decoder_layers: int = 6
  head_dim: int = 64
  mlp_dim: int = 2048
  mlp_activations: Sequence[str] = ('relu',)
  dropout_rate: float = 0.1
  logits_via_embedding: bool = False
  float32_attention_logits: bool = False
  scan_layers: bool = False
  remat_policy: str = layer_stack.NO_REMAT


def _norm(cfg: T5Config, name: str) -> nn.Module:
  """Makes a norm."""
  return layers.LayerNorm(dtype=cfg.dtype, name=name)


def _dropout(cfg: T5Config) -> nn.Module:
  """Makes a dropout whose mask all positions share."""
  return nn.Dropout(rate=cfg.dropout_rate, broadcast_dims=(-2,))


def _attention(cfg: T5Config, name: str) -> nn.Module:
  """Makes an attention block."""
  return layers.MultiHeadDotProductAttention(
      num_heads=cfg.num_heads,
      head_dim=cfg.head_dim,
      dtype=cfg.dtype,
      dropout_rate=cfg.dropout_rate,
      float32_logits=cfg.float32_attention_logits,
      name=name,
  )


def _mlp(cfg: T5Config) -> nn.Module:
  """Makes an MLP."""
  return layers.MlpBlock(
      intermediate_dim=cfg.mlp_dim,
      activations=cfg.mlp_activations,
      intermediate_dropout_rate=cfg.dropout_rate,
      dtype=cfg.dtype,
      name='mlp',
  )


def _relative_embedding(cfg: T5Config) -> nn.Module:
  """Makes the relative position table of a stack."""
  return layers.RelativePositionBiases(
      num_buckets=32,
      max_distance=128,
      num_heads=cfg.num_heads,
      dtype=cfg.dtype,
      embedding_init=nn.initializers.variance_scaling(
          1.0, 'fan_avg', 'uniform'
      ),
      name='relpos_bias',
  )


def _given(bias: Array) -> Callable[..., Array]:
  """Stands in for the table in a layer: one lookup serves the whole stack."""
  return lambda *_: bias


def _run_layers(
    cfg: T5Config,
    num_layers: int,
    make_layer: Callable[[str], nn.Module],
    scanned_name: str,
    body: Callable[[nn.Module, Array], Array],
    x: Array,
) -> Array:
  """Passes `x` through `layers_0`, `layers_1` … or through one scanned layer."""
  if cfg.scan_layers:
    stack = make_layer(scanned_name)
  else:
    stack = [make_layer(f'layers_{i}') for i in range(num_layers)]
  x, _ = layer_stack.run(
      lambda layer, x: (body(layer, x), None),
      stack,
      x,
      num_layers=num_layers,
      remat_policy=cfg.remat_policy,
  )
  return x


def _check_rank(name: str, x: Array, rank: int):
  """Checks the rank of an input."""
  if x.ndim != rank:
    raise ValueError(f'{name} must have rank {rank}; got shape {x.shape}.')


class EncoderLayer(nn.Module):
  """Self-attention and MLP, each normed before and added.

  Attributes:
    config: sizes.
    relative_embedding: position biases, shared by the stack; takes query
      length, key length and whether both directions differ.
  """

  config: T5Config
  relative_embedding: Callable[[int, int, bool], Array]

  @nn.compact
  def __call__(
      self,
      inputs: Array,
      encoder_mask: Array | None = None,
      deterministic: bool = False,
  ) -> Array:
    """Maps [batch, length, embed] to the same shape."""
    cfg = self.config
    _check_rank('inputs', inputs, 3)
    length = inputs.shape[-2]
    bias = self.relative_embedding(length, length, True)
    x = _norm(cfg, 'pre_attention_layer_norm')(inputs)
    x = _attention(cfg, 'attention')(
        x, x, encoder_mask, bias, deterministic=deterministic
    )
    x = inputs + _dropout(cfg)(x, deterministic=deterministic)
    y = _norm(cfg, 'pre_mlp_layer_norm')(x)
    y = _mlp(cfg)(y, deterministic=deterministic)
    return x + _dropout(cfg)(y, deterministic=deterministic)


class DecoderLayer(nn.Module):
  """Causal self-attention, cross attention and MLP, normed before and added.

  Attributes:
    config: sizes.
    relative_embedding: position biases, shared by the stack; takes query
      length, key length and whether both directions differ.
  """

  config: T5Config
  relative_embedding: Callable[[int, int, bool], Array]

  @nn.compact
  def __call__(
      self,
      inputs: Array,
      encoded: Array,
      decoder_mask: Array | None = None,
      encoder_decoder_mask: Array | None = None,
      deterministic: bool = False,
      decode: bool = False,
      max_decode_length: int | None = None,
  ) -> Array:
    """Maps [batch, length, embed] to the same shape.

    Args:
      inputs: [batch, length, embed]; while decoding of length 1.
      encoded: [batch, encoder length, embed].
      decoder_mask: [batch, 1, length, length].
      encoder_decoder_mask: [batch, 1, length, encoder length].
      deterministic: turns dropout off.
      decode: uses the cache of the self-attention.
      max_decode_length: length of the cache, for the position biases.

    Returns:
      [batch, length, embed].
    """
    cfg = self.config
    _check_rank('inputs', inputs, 3)
    length = inputs.shape[-2]
    if decode and max_decode_length:
      length = max_decode_length
    bias = self.relative_embedding(length, length, False)
    x = _norm(cfg, 'pre_self_attention_layer_norm')(inputs)
    x = _attention(cfg, 'self_attention')(
        x, x, decoder_mask, bias, deterministic=deterministic, decode=decode
    )
    x = inputs + _dropout(cfg)(x, deterministic=deterministic)
    y = _norm(cfg, 'pre_cross_attention_layer_norm')(x)
    y = _attention(cfg, 'encoder_decoder_attention')(
        y, encoded, encoder_decoder_mask, deterministic=deterministic
    )
    y = x + _dropout(cfg)(y, deterministic=deterministic)
    z = _norm(cfg, 'pre_mlp_layer_norm')(y)
    z = _mlp(cfg)(z, deterministic=deterministic)
    return y + _dropout(cfg)(z, deterministic=deterministic)


class Encoder(nn.Module):
  """The stack of encoder layers.

  Attributes:
    config: sizes.
    shared_embedding: token table, shared with the decoder.
  """

  config: T5Config
  shared_embedding: nn.Module

  @nn.compact
  def __call__(
      self,
      encoder_input_tokens: Array,
      encoder_mask: Array | None = None,
      deterministic: bool = False,
  ) -> Array:
    """Encodes token ids [batch, length] to [batch, length, embed]."""
    cfg = self.config
    _check_rank('encoder_input_tokens', encoder_input_tokens, 2)
    length = encoder_input_tokens.shape[-1]
    bias = _relative_embedding(cfg)(length, length, True)
    x = self.shared_embedding(encoder_input_tokens.astype(jnp.int32))
    x = _dropout(cfg)(x, deterministic=deterministic).astype(cfg.dtype)
    x = _run_layers(
        cfg,
        cfg.num_encoder_layers,
        lambda name: EncoderLayer(cfg, _given(bias), name=name),
        'encoder',
        lambda layer, x: layer(x, encoder_mask, deterministic),
        x,
    )
    x = _norm(cfg, 'encoder_norm')(x)
    # Elementwise, unlike all other dropouts of T5.
    return nn.Dropout(rate=cfg.dropout_rate)(x, deterministic=deterministic)


class Decoder(nn.Module):
  """The stack of decoder layers and the logits.

  Attributes:
    config: sizes.
    shared_embedding: token table, shared with the encoder.
  """

  config: T5Config
  shared_embedding: nn.Module

  @nn.compact
  def __call__(
      self,
      encoded: Array,
      decoder_input_tokens: Array,
      decoder_positions: Array | None = None,
      decoder_mask: Array | None = None,
      encoder_decoder_mask: Array | None = None,
      deterministic: bool = False,
      decode: bool = False,
      max_decode_length: int | None = None,
  ) -> Array:
    """Decodes to logits.

    Args:
      encoded: [batch, encoder length, embed].
      decoder_input_tokens: [batch, length]; while decoding of length 1.
      decoder_positions: unused, T5's positions are relative.
      decoder_mask: [batch, 1, length, length].
      encoder_decoder_mask: [batch, 1, length, encoder length].
      deterministic: turns dropout off.
      decode: uses the cache.
      max_decode_length: length of the cache.

    Returns:
      Logits [batch, length, vocabulary] in float32.
    """
    del decoder_positions
    cfg = self.config
    _check_rank('decoder_input_tokens', decoder_input_tokens, 2)
    length = decoder_input_tokens.shape[-1]
    if decode and max_decode_length:
      length = max_decode_length
    bias = _relative_embedding(cfg)(length, length, False)
    y = self.shared_embedding(decoder_input_tokens.astype(jnp.int32))
    y = _dropout(cfg)(y, deterministic=deterministic).astype(cfg.dtype)
    y = _run_layers(
        cfg,
        cfg.num_decoder_layers,
        lambda name: DecoderLayer(cfg, _given(bias), name=name),
        'decoder',
        lambda layer, y: layer(
            y,
            encoded,
            decoder_mask=decoder_mask,
            encoder_decoder_mask=encoder_decoder_mask,
            deterministic=deterministic,
            decode=decode,
            max_decode_length=max_decode_length,
        ),
        y,
    )
    y = _norm(cfg, 'decoder_norm')(y)
    y = _dropout(cfg)(y, deterministic=deterministic)
    if cfg.logits_via_embedding:
      # Embeddings have variance 1, so their products grow with √width.
      return self.shared_embedding.attend(y) / jnp.sqrt(y.shape[-1])
    return layers.DenseGeneral(
        cfg.vocab_size,
        dtype=jnp.float32,
        kernel_axes=('embed', 'vocab'),
        name='logits_dense',
    )(y)
