"""Writes text over a step function with a cache; the greedy decoder.

The other decoders are `beam_search` and `sampling`.

RefA: the habits of the original decoder, which released checkpoints and
published numbers depend on.

A step function reads one position and scores the next token, so the image, the
prompt and the encoder run once a batch. A row `M` is one prompt of one image;
its `K` beams lie beside it. The state starts as begin, end, end, …; tokens
1 … T-2 are decoded, the last slot never is (RefA).
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, Protocol

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from pixel_llm.modules import decode_cache

# Logit of a token that greedy decoding must not write (RefA).
FORBIDDEN_LOGIT = -1e4


def module_step(
    module: nn.Module,
    variables: Mapping[str, Any],
    method: str | Callable[..., Any] = 'decode_step',
) -> decode_cache.StepFn:
  """Makes a step function of a text head, or of a network that holds one.

  Args:
    module: has a method of the step's signature, as `T5TextHead.decode_step`.
    variables: its variables, `{'params': …}`.
    method: the method or its name.

  Returns:
    The step function.
  """

  def step(cache, sequences, index):
    scored: Any = module.apply(
        variables, cache, sequences, index, method=method
    )
    return scored

  return step


@struct.dataclass
class Decoded:
  """Decoded texts, the worst beam first and the best last.

  Attributes:
    tokens: begin, text, end tokens to the end.
    scores: see the decoder.
  """

  tokens: Int[Array, 'M K T']
  scores: Float[Array, 'M K']

  @property
  def best_tokens(self) -> Int[Array, 'M T']:
    """Tokens of the best beam."""
    return self.tokens[:, -1]

  @property
  def best_scores(self) -> Float[Array, ' M']:
    """Score of the best beam."""
    return self.scores[:, -1]


def start_tokens(
    num_rows: int, length: int, begin_id: int, end_id: int
) -> Int[Array, 'M T']:
  """Gives the start state: begin, end, end, …"""
  if length < 2:
    raise ValueError(
        f'A text has a begin and an end token; length is {length}.'
    )
  tokens = jnp.full((num_rows, length), end_id, jnp.int32)
  return tokens.at[:, 0].set(begin_id)


def zero_after_end(
    tokens: Int[Array, '*rows T'], end_id: int
) -> Int[Array, '*rows T']:
  """Zeroes everything behind the first end token.

  The decoder leaves end tokens there; teacher forcing, which gives the features
  of a text, wants padding: [0, 7, 1, 1] becomes [0, 7, 1, 0].

  Args:
    tokens: decoded tokens; a begin token is not an end token.
    end_id: the end token.

  Returns:
    The tokens, padded with 0.
  """
  ends = (tokens == end_id).astype(jnp.int32)
  ended_before = jnp.cumsum(ends, axis=-1) - ends > 0
  return jnp.where(ended_before, 0, tokens)


class Decoder(Protocol):
  """Writes texts over a step function; gin names one of these."""

  @property
  def num_beams(self) -> int:
    """Texts a row."""
    ...

  def __call__(
      self,
      step: decode_cache.StepFn,
      cache: decode_cache.DecodeCache,
      start: Int[Array, 'M T'],
      end_id: int,
      row_mask: Bool[Array, ' M'] | None = None,
      keys: Key[Array, ' M'] | None = None,
  ) -> Decoded:
    """Writes until no row can gain by another token, or all are full.

    Args:
      step: scores the next token.
      cache: before the first step, for `num_beams` beams.
      start: the start state.
      end_id: the end token.
      row_mask: False for a row that needs no text: it keeps the start state,
        scores 0 and is waited for by nobody. None for all rows.
      keys: of a row's draws, for decoders that draw.

    Returns:
      `num_beams` texts a row.
    """
    ...


def write_at(
    sequences: Int[Array, 'M K T'],
    index: int | Int[Array, ''],
    tokens: Int[Array, 'M K'],
) -> Int[Array, 'M K T']:
  """Writes one token a beam at `index`."""
  return jax.lax.dynamic_update_index_in_dim(sequences, tokens, index, axis=2)


def needed_rows(
    row_mask: Bool[Array, ' M'] | None, start: Int[Array, 'M T']
) -> Bool[Array, 'M 1']:
  """Gives the rows that need a text."""
  if row_mask is None:
    return jnp.ones((start.shape[0], 1), bool)
  return row_mask[:, None]


def log_normaliser(logits: Float[Array, 'M K V']) -> Float[Array, 'M K']:
  """Gives what a logit exceeds its log probability by."""
  return jax.nn.logsumexp(logits, axis=-1)


# Chooses a token a beam: (logits, tokens at `index`, `index`) give the tokens
# at `index + 1` and what each adds to its text's log probability.
Choice = Callable[
    [Float[Array, 'M K V'], Int[Array, 'M K'], Int[Array, '']],
    tuple[Int[Array, 'M K'], Float[Array, 'M K']],
]


def write_each(
    step: decode_cache.StepFn,
    cache: decode_cache.DecodeCache,
    start: Int[Array, 'M K T'],
    end_id: int,
    row_mask: Bool[Array, ' M'] | None,
    choose: Choice,
) -> Decoded:
  """Writes texts that do not compete, until all have ended or are full.

  The score is the summed log probability over max(1, tokens that are not the
  end token - 1), which is the number of words behind the begin token (RefA).

  Args:
    step: scores the next token.
    cache: before the first step.
    start: the start state of every beam.
    end_id: the end token.
    row_mask: see `Decoder`.
    choose: chooses the next tokens.

  Returns:
    The texts, in the order of the beams.
  """
  length = start.shape[-1]

  def not_done(state):
    index, _, _, ended, _ = state
    return (index < length - 2) & ~jnp.all(ended)

  def write_one(state):
    index, sequences, log_prob, ended, beams = state
    logits, new = step(cache.replace(beams=beams), sequences, index)
    previous = jax.lax.dynamic_index_in_dim(sequences, index, 2, keepdims=False)
    token, gain = choose(logits.astype(jnp.float32), previous, index)
    token = jnp.where(ended, end_id, token.astype(sequences.dtype))
    return (
        index + 1,
        write_at(sequences, index + 1, token),
        log_prob + jnp.where(ended, 0.0, gain),
        ended | (token == end_id),
        new.beams,
    )

  shape = start.shape[:2]
  needless = ~needed_rows(row_mask, start[:, 0])
  state = (
      jnp.int32(0),
      start,
      jnp.zeros(shape, jnp.float32),
      jnp.broadcast_to(needless, shape),
      cache.beams,
  )
  _, sequences, log_prob, _, _ = jax.lax.while_loop(not_done, write_one, state)
  words = jnp.sum(sequences != end_id, axis=-1) - 1
  return Decoded(tokens=sequences, scores=log_prob / jnp.maximum(words, 1))


@dataclasses.dataclass(frozen=True)
class Greedy:
  """Writes the likeliest token, but never the one just written (RefA).

  Scores are those of `write_each`; what the forbidden token would have had goes
  to the others.
  """

  num_beams: int = dataclasses.field(default=1, init=False)

  def __call__(
      self,
      step: decode_cache.StepFn,
      cache: decode_cache.DecodeCache,
      start: Int[Array, 'M T'],
      end_id: int,
      row_mask: Bool[Array, ' M'] | None = None,
      keys: Key[Array, ' M'] | None = None,
  ) -> Decoded:
    """Writes one text a row; see `Decoder`."""
    del keys  # Nothing is drawn.

    def likeliest(logits, previous, index):
      del index
      repeats = jnp.arange(logits.shape[-1]) == previous[..., None]
      logits = jnp.where(repeats, jnp.minimum(logits, FORBIDDEN_LOGIT), logits)
      gain = jnp.max(logits, axis=-1) - log_normaliser(logits)
      return jnp.argmax(logits, axis=-1), gain

    return write_each(step, cache, start[:, None], end_id, row_mask, likeliest)
