"""What every text head takes and gives, so that the network holds any of them.

A row `M` is one prompt of one image: the network folds prompts into the batch.
"""

from typing import Protocol, Self, runtime_checkable

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pixel_llm.modules import decode_cache


def next_token_mask(tokens: Int[Array, '*rows T']) -> Bool[Array, '*rows T']:
  """Tells which positions have a token behind them, padding (0) being none.

  [0, 7, 9, 1, 0, 0] gives [True, True, True, False, False, False]. The last
  position never has. T5's decoder hides the others, as in the original, so only
  features at these positions are the same for any length of the text.

  Args:
    tokens: text with the begin token.

  Returns:
    True where the next token is not padding.
  """
  hidden_last = jnp.zeros_like(tokens[..., :1])
  return jnp.concatenate([tokens[..., 1:], hidden_last], axis=-1) > 0


def take_folded(x: Array, slots: Int[Array, 'B N'], axis: int = 0) -> Array:
  """Takes rows of an array whose axis `axis` holds images times prompts.

  With two images of two prompts, slots [[1], [0]] of [a, b, c, d] are [b, c].

  Args:
    x: an array of an encoded prompt.
    slots: which prompts of each image.
    axis: where the rows are.

  Returns:
    The array with B·N rows.
  """
  shape = x.shape
  num_images = slots.shape[0]
  x = x.reshape(*shape[:axis], num_images, -1, *shape[axis + 1 :])
  # vmap keeps the images a batch axis, so sharded images stay where they are.
  x = jax.vmap(
      lambda rows, index: jnp.take(rows, index, axis=axis),
      in_axes=(axis, 0),
      out_axes=axis,
  )(x, slots)
  return x.reshape(*shape[:axis], -1, *shape[axis + 1 :])


@struct.dataclass
class EncodedPrompt:
  """What a text depends on, encoded once; each head adds its own arrays.

  All arrays have the rows first, unless the head says otherwise.

  Attributes:
    mask: True for visual tokens and for context that is not padding.
  """

  mask: Bool[Array, 'M S']

  def take_prompts(self, slots: Int[Array, 'B N']) -> Self:
    """Takes prompts of each image by their slot, in the order of `slots`."""
    return jax.tree.map(lambda x: take_folded(x, slots), self)


@struct.dataclass
class TextOutput:
  """What a text head gives at every position of a text.

  Attributes:
    logits: of the next token, float32.
    features: what the point head and the mask adapter read.
  """

  logits: Float[Array, '*rows V']
  features: Float[Array, '*rows D']


@runtime_checkable
class TextHead(Protocol):
  """A language model that reads visual tokens and context and writes text."""

  def encode(
      self,
      visual: Float[Array, 'M L Dv'],
      context_tokens: Int[Array, 'M C'] | None = None,
      *,
      deterministic: bool = True,
  ) -> EncodedPrompt:
    """Encodes what the text depends on.

    Args:
      visual: visual tokens.
      context_tokens: without begin token, 0 is padding; None for no context.
      deterministic: turns dropout off.

    Returns:
      The encoded prompt, in the head's own form.
    """
    ...

  def decode(
      self,
      encoded: EncodedPrompt,
      text_tokens: Int[Array, 'M T'],
      *,
      deterministic: bool = True,
  ) -> TextOutput:
    """Reads a given text.

    Args:
      encoded: from `encode` of the same head.
      text_tokens: begin … end, 0 is padding; not shifted: position t gives the
        logits of token t + 1.
      deterministic: turns dropout off.

    Returns:
      Logits and features of all positions.
    """
    ...

  def start_decode(
      self, encoded: EncodedPrompt, num_beams: int, length: int
  ) -> decode_cache.DecodeCache:
    """Prepares decoding.

    Args:
      encoded: from `encode` of the same head.
      num_beams: beams a row, 1 for greedy.
      length: tokens of the longest text, `T`.

    Returns:
      The cache before the first step.
    """
    ...

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
    ...
