"""The T5 text head: reads visual tokens and context, writes text.

RefA: "Pixel Aligned Language Models" (arXiv 2312.09237), section 3.1; RefB: T5
(arXiv 1910.10683), Flan-T5 uses T5.1.1; RefC: LoRA (arXiv 2106.09685).

Prompts are folded into the batch: a row `M` is one prompt of one image. The
parameters lie in `t5_module/{token_embedder,encoder,decoder}` with the names of
public T5X checkpoints.
"""

from flax import linen as nn
from flax import struct
from flax.linen import partitioning
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
from t5x.examples.t5 import layers
from t5x.examples.t5 import network

from pixel_llm import axes
from pixel_llm.modules import decode_cache
from pixel_llm.modules import lora
from pixel_llm.modules import t5_layers


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
class EncodedPrompt:
  """What the decoder reads.

  Attributes:
    features: encoder output.
    mask: True for visual tokens and for context that is not padding.
  """

  features: Float[Array, 'M S D']
  mask: Bool[Array, 'M S']


@struct.dataclass
class TextOutput:
  """What the decoder gives at every position.

  Attributes:
    logits: of the next token, float32.
    features: after the final norm, before dropout and logits; the point head
      and the mask adapter read them.
  """

  logits: Float[Array, '*rows V']
  features: Float[Array, '*rows D']


def next_token_mask(tokens: Int[Array, '*rows T']) -> Bool[Array, '*rows T']:
  """Tells which positions of the decoder see and are seen.

  A position is hidden if the *next* token is padding (0), as in the original:
  [0, 7, 9, 1, 0, 0] gives [True, True, True, False, False, False]. The last
  position is always hidden.

  Args:
    tokens: text with the begin token.

  Returns:
    True for visible positions.
  """
  hidden_last = jnp.zeros_like(tokens[..., :1])
  return jnp.concatenate([tokens[..., 1:], hidden_last], axis=-1) > 0


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
    for i in range(cfg.num_encoder_layers):
      x = t5_layers.EncoderLayer(
          cfg, cfg.encoder_adapter(), name=f'layers_{i}'
      )(x, bias, deterministic)
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

  def _outputs(self, x: Array, deterministic: bool) -> TextOutput:
    """Norms the last layer's output and scores the vocabulary."""
    features = self.decoder_norm(x)
    y = self.dropout(features, deterministic=deterministic)
    if self.config.logits_via_embedding:
      logits = self.token_embedder.attend(y) / jnp.sqrt(float(y.shape[-1]))
    else:
      logits = self.logits_dense(y)
    return TextOutput(logits=logits.astype(jnp.float32), features=features)

  def __call__(
      self,
      encoded: EncodedPrompt,
      tokens: Int[Array, 'M T'],
      deterministic: bool,
  ) -> TextOutput:
    """Decodes a whole text, teacher forced."""
    cfg = self.config
    length = tokens.shape[1]
    visible = next_token_mask(tokens)
    causal = jnp.tril(jnp.ones((1, length, length), bool))
    pairs = visible[:, :, None] & visible[:, None, :] & causal
    self_bias = self.relpos_bias(length, length, False)
    self_bias += t5_layers.mask_bias(pairs[:, None], cfg.dtype)
    cross = visible[:, :, None] & encoded.mask[:, None, :]
    cross_bias = t5_layers.mask_bias(cross[:, None], cfg.dtype)
    x = self.token_embedder(tokens)
    x = self.dropout(x, deterministic=deterministic).astype(cfg.dtype)
    for layer in self.layers:
      x = layer(x, encoded.features, self_bias, cross_bias, deterministic)
    return self._outputs(x, deterministic)

  def start(
      self, encoded: EncodedPrompt, num_beams: int, length: int
  ) -> decode_cache.DecodeCache:
    """Projects the encoded prompt and makes room for the text."""
    cfg = self.config
    rows = encoded.features.shape[0]
    shape = (rows, num_beams, length, cfg.num_heads, cfg.head_dim)
    shared = {
        'cross': [l.cross_keys_values(encoded.features) for l in self.layers],
        'cross_bias': t5_layers.mask_bias(
            encoded.mask[:, None, None, :], cfg.dtype
        ),
        'positions': self.relpos_bias(length, length, False),
    }
    empty = lambda: jnp.zeros(shape, cfg.dtype)
    beams = [{'key': empty(), 'value': empty()} for _ in self.layers]
    return decode_cache.DecodeCache(shared=shared, beams=beams)

  def step(
      self,
      cache: decode_cache.DecodeCache,
      sequences: Int[Array, 'M K T'],
      index: Int[Array, ''],
  ) -> tuple[TextOutput, decode_cache.DecodeCache]:
    """Decodes position `index` of every beam."""
    cfg = self.config
    rows, beams, length = sequences.shape
    positions = jnp.arange(length).reshape(1, 1, length)
    # A decoded 0 hides the position before it. The position itself shows:
    # in the original the state behind it holds end tokens.
    seen = (next_token_mask(sequences) & (positions < index)) | (
        positions == index
    )
    self_bias = jax.lax.dynamic_slice_in_dim(
        cache.shared['positions'], index, 1, axis=2
    ) + t5_layers.mask_bias(seen.reshape(rows * beams, 1, 1, length), cfg.dtype)
    tokens = jax.lax.dynamic_index_in_dim(
        sequences, index, axis=2, keepdims=False
    )
    x = self.token_embedder(tokens).astype(cfg.dtype)
    text = []
    for i, layer in enumerate(self.layers):
      x, layer_text = layer.step(
          x,
          index,
          cache.shared['cross'][i],
          cache.beams[i],
          self_bias,
          cache.shared['cross_bias'],
      )
      text.append(layer_text)
    return self._outputs(x, True), cache.replace(beams=text)


class T5Module(nn.Module):
  """Token table, encoder and decoder under the names of a T5X checkpoint.

  Attributes:
    config: sizes.
  """

  config: T5TextConfig

  def setup(self):
    """Makes the token table and the stacks."""
    cfg = self.config
    self.token_embedder = layers.Embed(
        num_embeddings=cfg.vocab_size,
        features=cfg.emb_dim,
        dtype=cfg.dtype,
        attend_dtype=jnp.float32,
        embedding_init=nn.initializers.normal(stddev=1.0),
    )
    self.encoder = Encoder(cfg)
    self.decoder = Decoder(cfg, self.token_embedder)


class T5TextHead(nn.Module):
  """Encodes a prompt (visual tokens, context) and decodes its text.

  Attributes:
    config: sizes.
  """

  config: T5TextConfig

  def setup(self):
    """Makes the T5 network."""
    self.t5_module = T5Module(self.config)

  def encode(
      self,
      visual: Float[Array, 'M L D'],
      context_tokens: Int[Array, 'M C'] | None = None,
      *,
      deterministic: bool = True,
  ) -> EncodedPrompt:
    """Encodes visual tokens, then context, as one sequence.

    Args:
      visual: visual tokens, already of the width of the language model.
      context_tokens: without begin token, 0 is padding; None for no context.
      deterministic: turns dropout off.

    Returns:
      The encoded sequence and its mask.

    Raises:
      ValueError: if `visual` has another width than the language model.
    """
    cfg = self.config
    if visual.shape[-1] != cfg.emb_dim:
      raise ValueError(
          f'Visual tokens have width {visual.shape[-1]}, the text head'
          f" emb_dim={cfg.emb_dim}. Set the projection to the head's width."
      )
    x = visual.astype(cfg.dtype)
    mask = jnp.ones(x.shape[:2], bool)
    if context_tokens is not None:
      context = self.t5_module.token_embedder(context_tokens)
      x = jnp.concatenate([x, context.astype(cfg.dtype)], axis=1)
      mask = jnp.concatenate([mask, context_tokens > 0], axis=1)
    x = partitioning.with_sharding_constraint(
        x, (axes.BATCH, axes.LENGTH, axes.EMBED)
    )
    features = self.t5_module.encoder(x, mask, deterministic)
    return EncodedPrompt(features=features, mask=mask)

  def decode(
      self,
      encoded: EncodedPrompt,
      text_tokens: Int[Array, 'M T'],
      *,
      deterministic: bool = True,
  ) -> TextOutput:
    """Decodes a given text.

    Args:
      encoded: the encoded prompt.
      text_tokens: begin … end, 0 is padding; not shifted: position t gives the
        logits of token t + 1.
      deterministic: turns dropout off.

    Returns:
      Logits and features of all positions. Positions whose next token is
      padding are masked: their numbers are defined, but mean nothing.
    """
    return self.t5_module.decoder(encoded, text_tokens, deterministic)

  def __call__(
      self,
      visual: Float[Array, 'M L D'],
      text_tokens: Int[Array, 'M T'],
      context_tokens: Int[Array, 'M C'] | None = None,
      *,
      deterministic: bool = True,
  ) -> TextOutput:
    """Encodes and decodes; see `encode` and `decode`."""
    encoded = self.encode(visual, context_tokens, deterministic=deterministic)
    return self.decode(encoded, text_tokens, deterministic=deterministic)

  def start_decode(
      self, encoded: EncodedPrompt, num_beams: int, length: int
  ) -> decode_cache.DecodeCache:
    """Prepares decoding: keys and values of the prompt, room for the text.

    Args:
      encoded: the encoded prompt.
      num_beams: beams a row, 1 for greedy.
      length: tokens of the longest text, `T`.

    Returns:
      The cache before the first step.
    """
    return self.t5_module.decoder.start(encoded, num_beams, length)

  def decode_step(
      self,
      cache: decode_cache.DecodeCache,
      sequences: Int[Array, 'M K T'],
      index: Int[Array, ''],
  ) -> tuple[Float[Array, 'M K V'], decode_cache.DecodeCache]:
    """Scores the token behind position `index`; a step of `generation`.

    Args:
      cache: after the steps before `index`.
      sequences: tokens so far; those behind `index` do not matter.
      index: the position to read.

    Returns:
      Logits of the next token, and the cache for the next step.
    """
    output, cache = self.t5_module.decoder.step(cache, sequences, index)
    return output.logits, cache


def merge_adapters(params: dict, config: T5TextConfig) -> dict:
  """Folds the adapters of a text head into its kernels.

  Args:
    params: parameters of a `T5TextHead` of this config.
    config: gives the scales.

  Returns:
    Parameters for the same head with both ranks 0.
  """
  t5_params = dict(params['t5_module'])
  t5_params['encoder'] = lora.merge(
      t5_params['encoder'], config.encoder_lora_scale
  )
  t5_params['decoder'] = lora.merge(
      t5_params['decoder'], config.decoder_lora_scale
  )
  return {**params, 't5_module': t5_params}
