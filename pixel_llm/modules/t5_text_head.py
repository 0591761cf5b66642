"""The T5 text head: reads visual tokens and context, writes text.

RefA: "Pixel Aligned Language Models" (arXiv 2312.09237), section 3.1.

Prompts are folded into the batch: a row `M` is one prompt of one image. The
parameters lie in `t5_module/{token_embedder,encoder,decoder}` with the names of
public T5X checkpoints (T5.1.1, Flan-T5), adapters beside their kernels.
"""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
from flax.linen import spmd
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pixel_llm import axes
from pixel_llm.modules import decode_cache
from pixel_llm.modules import lora
from pixel_llm.modules import text_head
from pixel_llm.modules.t5_stacks import Decoder
from pixel_llm.modules.t5_stacks import EncodedSource
from pixel_llm.modules.t5_stacks import Encoder
from pixel_llm.modules.t5_stacks import T5TextConfig
from t5x.examples.t5 import layers


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
  ) -> EncodedSource:
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
    x = spmd.with_logical_constraint(x, (axes.BATCH, axes.LENGTH, axes.EMBED))
    features = self.t5_module.encoder(x, mask, deterministic)
    return EncodedSource(features=features, mask=mask)

  def decode(
      self,
      encoded: EncodedSource,
      text_tokens: Int[Array, 'M T'],
      *,
      deterministic: bool = True,
  ) -> text_head.TextOutput:
    """Decodes a given text.

    Args:
      encoded: the encoded prompt.
      text_tokens: begin … end, 0 is padding; not shifted: position t gives the
        logits of token t + 1.
      deterministic: turns dropout off.

    Returns:
      Logits of all positions, and features: after the final norm, before
      dropout and logits. Positions whose next token is padding are masked:
      their numbers are defined, but mean nothing.
    """
    return self.t5_module.decoder(encoded, text_tokens, deterministic)

  def __call__(
      self,
      visual: Float[Array, 'M L D'],
      text_tokens: Int[Array, 'M T'],
      context_tokens: Int[Array, 'M C'] | None = None,
      *,
      deterministic: bool = True,
  ) -> text_head.TextOutput:
    """Encodes and decodes; see `encode` and `decode`."""
    encoded = self.encode(visual, context_tokens, deterministic=deterministic)
    return self.decode(encoded, text_tokens, deterministic=deterministic)

  def start_decode(
      self, encoded: EncodedSource, num_beams: int, length: int
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
      index: int | Int[Array, ''],
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


def merge_adapters(
    params: Mapping[str, Any], config: T5TextConfig
) -> dict[str, Any]:
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
