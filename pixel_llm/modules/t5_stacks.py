"""Encoder and decoder stacks of the T5 text head.

The encoder reads vectors instead of tokens; the decoder reads a whole text at
once, or one position at a time over a cache.

RefA: T5 (arXiv 1910.10683); RefB: LoRA (arXiv 2106.09685).
"""

from typing import Any

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pixel_llm import axes
from pixel_llm.modules import decode_cache
from pixel_llm.modules import t5_layers
from pixel_llm.modules import text_head
from t5x import layer_stack
from t5x.examples.t5 import layers
from t5x.examples.t5 import network


@struct.dataclass
class T5TextConfig(network.T5Config):
  """Sizes of the T5 network and of its adapters.

  Attributes:
    encoder_lora_rank: rank of the encoder's adapters, 0 for none.
    decoder_lora_rank: rank of the decoder's adapters, 0 for none.
    encoder_lora_scale: factor of the encoder's adapters.
    decoder_lora_scale: factor of the decoder's adapters.
    encoder_lora_modules: adapted projections, a comma list of q, k, v, o.
    decoder_lora_modules: the same, in self and cross attention.
  """

  encoder_lora_rank: int = 0
  decoder_lora_rank: int = 0
  encoder_lora_scale: float = 2.0
  decoder_lora_scale: float = 2.0
  encoder_lora_modules: str = 'q,v'
  decoder_lora_modules: str = 'q,v'

  def encoder_adapter(self) -> t5_layers.Adapter:
    """Returns the encoder's adapters."""
    return t5_layers.Adapter(
        self.encoder_lora_rank,
        self.encoder_lora_scale,
        self.encoder_lora_modules,
    )

  def decoder_adapter(self) -> t5_layers.Adapter:
    """Returns the decoder's adapters."""
    return t5_layers.Adapter(
        self.decoder_lora_rank,
        self.decoder_lora_scale,
        self.decoder_lora_modules,
    )


@struct.dataclass
class EncodedSource(text_head.EncodedPrompt):
  """What the decoder reads.

  Attributes:
    features: encoder output.
  """

  features: Float[Array, 'M S D']


class Encoder(nn.Module):
  """T5's encoder over vectors instead of tokens.

  Attributes:
    config: sizes.
  """

  config: T5TextConfig

  @nn.compact
  def __call__(
      self,
      x: Float[Array, 'M S D'],
      mask: Bool[Array, 'M S'],
      deterministic: bool,
  ) -> Float[Array, 'M S D']:
    """Encodes vectors; masked ones neither see nor are seen."""
    cfg = self.config
    length = x.shape[1]
    # Rows and columns, as in the original. No row that is used sees the
    # difference, but a masked row would.
    pairs = (mask[:, :, None] & mask[:, None, :])[:, None]
    bias = t5_layers.relative_biases(cfg, 'relpos_bias')(
        length, length, True
    ) + t5_layers.mask_bias(pairs, cfg.dtype)
    x = t5_layers.dropout(cfg)(x, deterministic=deterministic)
    x = x.astype(cfg.dtype)

    def make_layer(name):
      return t5_layers.EncoderLayer(cfg, cfg.encoder_adapter(), name=name)

    x, _ = layer_stack.run(
        lambda layer, x: (layer(x, bias, deterministic), None),
        make_layer('encoder')
        if cfg.scan_layers
        else [make_layer(f'layers_{i}') for i in range(cfg.num_encoder_layers)],
        x,
        num_layers=cfg.num_encoder_layers,
        remat_policy=cfg.remat_policy,
    )
    x = layers.LayerNorm(dtype=cfg.dtype, name='encoder_norm')(x)
    # Elementwise, unlike all other dropouts of T5.
    return nn.Dropout(rate=cfg.dropout_rate)(x, deterministic=deterministic)


class Decoder(nn.Module):
  """T5's decoder: a whole text at once, or one position at a time.

  Attributes:
    config: sizes.
    token_embedder: token table, shared with the context.
  """

  config: T5TextConfig
  token_embedder: nn.Module

  def setup(self):
    """Makes the stack."""
    cfg = self.config
    self.relpos_bias = t5_layers.relative_biases(cfg)
    # The names of T5X's parameters: `layers_0`, `layers_1` … or `decoder`.
    if cfg.scan_layers:
      self.decoder = t5_layers.DecoderLayer(cfg, cfg.decoder_adapter())
    else:
      self.layers = [
          t5_layers.DecoderLayer(cfg, cfg.decoder_adapter())
          for _ in range(cfg.num_decoder_layers)
      ]
    self.decoder_norm = layers.LayerNorm(dtype=cfg.dtype)
    self.dropout = t5_layers.dropout(cfg)
    if not cfg.logits_via_embedding:
      self.logits_dense = layers.DenseGeneral(
          cfg.vocab_size,
          dtype=jnp.float32,
          kernel_axes=(axes.EMBED, axes.VOCAB),
      )

  def _run(
      self,
      body: layer_stack.Body,
      carry: Any,
      *per_layer: Any,
      remat_policy: str = layer_stack.NO_REMAT,
  ) -> tuple[Any, Any]:
    """Passes `carry` through the layers; see `layer_stack.run`."""
    cfg = self.config
    return layer_stack.run(
        body,
        self.decoder if cfg.scan_layers else self.layers,
        carry,
        *per_layer,
        num_layers=cfg.num_decoder_layers,
        remat_policy=remat_policy,
    )

  def _outputs(self, x: Array, deterministic: bool) -> text_head.TextOutput:
    """Norms the last layer's output and scores the vocabulary."""
    features = self.decoder_norm(x)
    y = self.dropout(features, deterministic=deterministic)
    if self.config.logits_via_embedding:
      logits = self.token_embedder.attend(y) / jnp.sqrt(float(y.shape[-1]))
    else:
      logits = self.logits_dense(y)
    return text_head.TextOutput(
        logits=logits.astype(jnp.float32), features=features
    )

  def __call__(
      self,
      encoded: EncodedSource,
      tokens: Int[Array, 'M T'],
      deterministic: bool,
  ) -> text_head.TextOutput:
    """Decodes a whole text, teacher forced."""
    cfg = self.config
    length = tokens.shape[1]
    visible = text_head.next_token_mask(tokens)
    causal = jnp.tril(jnp.ones((1, length, length), bool))
    pairs = visible[:, :, None] & visible[:, None, :] & causal
    self_bias = self.relpos_bias(length, length, False)
    self_bias += t5_layers.mask_bias(pairs[:, None], cfg.dtype)
    cross = visible[:, :, None] & encoded.mask[:, None, :]
    cross_bias = t5_layers.mask_bias(cross[:, None], cfg.dtype)
    x = self.token_embedder(tokens)
    x = self.dropout(x, deterministic=deterministic).astype(cfg.dtype)

    def decode(layer, x):
      y = layer(x, encoded.features, self_bias, cross_bias, deterministic)
      return y, None

    x, _ = self._run(decode, x, remat_policy=cfg.remat_policy)
    return self._outputs(x, deterministic)

  def start(
      self, encoded: EncodedSource, num_beams: int, length: int
  ) -> decode_cache.DecodeCache:
    """Projects the encoded prompt and makes room for the text."""
    cfg = self.config
    rows = encoded.features.shape[0]
    shape = (rows, num_beams, length, cfg.num_heads, cfg.head_dim)
    _, cross = self._run(
        lambda layer, _: (None, layer.cross_keys_values(encoded.features)), None
    )
    shared = {
        'cross': cross,
        'cross_bias': t5_layers.mask_bias(
            encoded.mask[:, None, None, :], cfg.dtype
        ),
        'positions': self.relpos_bias(length, length, False),
    }
    beams = layer_stack.repeat(
        {
            'key': jnp.zeros(shape, cfg.dtype),
            'value': jnp.zeros(shape, cfg.dtype),
        },
        num_layers=cfg.num_decoder_layers,
        scan_layers=cfg.scan_layers,
    )
    return decode_cache.DecodeCache(
        shared=shared, beams=beams, beams_axis=int(cfg.scan_layers)
    )

  def step(
      self,
      cache: decode_cache.DecodeCache,
      sequences: Int[Array, 'M K T'],
      index: int | Int[Array, ''],
  ) -> tuple[text_head.TextOutput, decode_cache.DecodeCache]:
    """Decodes position `index` of every beam."""
    cfg = self.config
    rows, beams, length = sequences.shape
    positions = jnp.arange(length).reshape(1, 1, length)
    # A decoded 0 hides the position before it. The position itself shows:
    # in the original the state behind it holds end tokens.
    seen = (text_head.next_token_mask(sequences) & (positions < index)) | (
        positions == index
    )
    self_bias = jax.lax.dynamic_slice_in_dim(
        cache.shared['positions'], index, 1, axis=2
    ) + t5_layers.mask_bias(seen.reshape(rows * beams, 1, 1, length), cfg.dtype)
    tokens = jax.lax.dynamic_index_in_dim(
        sequences, index, axis=2, keepdims=False
    )
    x = self.token_embedder(tokens).astype(cfg.dtype)

    def decode(layer, x, cross, text):
      return layer.step(
          x, index, cross, text, self_bias, cache.shared['cross_bias']
      )

    x, text = self._run(decode, x, cache.shared['cross'], cache.beams)
    return self._outputs(x, True), cache.replace(beams=text)
