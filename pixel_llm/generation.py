"""Writes text, greedily or with beams, over a step function with a cache.

RefA: the habits of the original decoder, which released checkpoints and
published numbers depend on; RefB: GNMT (arXiv 1609.08144), section 7, for beams
with a length penalty.

A step function reads one position and scores the next token, so the image, the
prompt and the encoder run once a batch. A row `M` is one prompt of one image;
its `K` beams lie beside it. The state starts as begin, end, end, …; tokens
1 … T-2 are decoded, the last slot never is (RefA).
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, Protocol, runtime_checkable

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pixel_llm.modules import decode_cache

# Score of a slot that holds nothing yet (RefA).
EMPTY_SCORE = -1e7
# Logit of a token that greedy decoding must not write (RefA).
FORBIDDEN_LOGIT = -1e4


@runtime_checkable
class StepFn(Protocol):
  """Scores the token behind a position."""

  def __call__(
      self,
      cache: decode_cache.DecodeCache,
      sequences: Int[Array, 'M K T'],
      index: int | Int[Array, ''],
  ) -> tuple[Float[Array, 'M K V'], decode_cache.DecodeCache]:
    """Reads position `index` of all beams.

    Args:
      cache: after the steps 0 … index - 1.
      sequences: tokens up to `index`, end tokens behind.
      index: the position.

    Returns:
      Logits of the token at `index + 1`, and the cache for that step.
    """
    ...


def module_step(
    module: nn.Module,
    variables: Mapping[str, Any],
    method: str | Callable[..., Any] = 'decode_step',
) -> StepFn:
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


def _write(
    sequences: Int[Array, 'M K T'],
    index: int | Int[Array, ''],
    tokens: Int[Array, 'M K'],
) -> Int[Array, 'M K T']:
  """Writes one token a beam at `index`."""
  return jax.lax.dynamic_update_index_in_dim(sequences, tokens, index, axis=2)


@dataclasses.dataclass(frozen=True)
class Greedy:
  """Writes the likeliest token, but never the one just written (RefA).

  The score is the summed log probability over max(1, tokens that are not the
  end token - 1), which is the number of words behind the begin token.
  """

  num_beams: int = dataclasses.field(default=1, init=False)

  def __call__(
      self,
      step: StepFn,
      cache: decode_cache.DecodeCache,
      start: Int[Array, 'M T'],
      end_id: int,
  ) -> Decoded:
    """Decodes until every row has ended or is full.

    Args:
      step: scores the next token.
      cache: before the first step, for one beam.
      start: the start state.
      end_id: the end token.

    Returns:
      One beam a row.
    """
    rows, length = start.shape

    def not_done(state):
      index, _, _, ended, _ = state
      return (index < length - 2) & ~jnp.all(ended)

    def write_one(state):
      index, sequences, log_prob, ended, beams = state
      logits, new = step(cache.replace(beams=beams), sequences, index)
      logits = logits.astype(jnp.float32)
      previous = jax.lax.dynamic_index_in_dim(sequences, index, 2)
      repeats = jnp.arange(logits.shape[-1]).reshape(1, 1, -1) == previous
      logits = jnp.where(repeats, jnp.minimum(logits, FORBIDDEN_LOGIT), logits)
      log_probs = jax.nn.log_softmax(logits)
      token = jnp.argmax(log_probs, axis=-1).astype(sequences.dtype)
      gain = jnp.max(log_probs, axis=-1)
      token = jnp.where(ended, end_id, token)
      return (
          index + 1,
          _write(sequences, index + 1, token),
          log_prob + jnp.where(ended, 0.0, gain),
          ended | (token == end_id),
          new.beams,
      )

    state = (
        jnp.int32(0),
        start[:, None, :],
        jnp.zeros((rows, 1), jnp.float32),
        jnp.zeros((rows, 1), bool),
        cache.beams,
    )
    _, sequences, log_prob, _, _ = jax.lax.while_loop(
        not_done, write_one, state
    )
    words = jnp.sum(sequences != end_id, axis=-1) - 1
    return Decoded(tokens=sequences, scores=log_prob / jnp.maximum(words, 1))


@struct.dataclass
class _BeamState:
  """Beam search between two tokens; slots are sorted, the best last.

  Attributes:
    index: position that is read next.
    live: unfinished texts.
    live_log_probs: their log probabilities.
    finished: texts with an end token, zeros where there is none yet.
    finished_scores: their penalised log probabilities.
    is_finished: which finished slots hold a text.
    beams: per-beam cache of the live texts.
  """

  index: Int[Array, '']
  live: Int[Array, 'M K T']
  live_log_probs: Float[Array, 'M K']
  finished: Int[Array, 'M K T']
  finished_scores: Float[Array, 'M K']
  is_finished: Bool[Array, 'M K']
  beams: Any


def _pick(x: Array, slots: Int[Array, 'M K']) -> Array:
  """Takes slots of [M, K, …] row by row."""
  return jax.vmap(lambda row, index: row[index])(x, slots)


def _best_slots(scores: Float[Array, 'M C'], count: int) -> Int[Array, 'M K']:
  """Finds the `count` best slots, the best last."""
  return jnp.flip(jax.lax.top_k(scores, count)[1], axis=-1)


@dataclasses.dataclass(frozen=True)
class BeamSearch:
  """Keeps the `num_beams` best texts (RefA, RefB).

  A score is log probability / ((5 + n) / 6)^alpha, n the index of the end
  token. A row without any finished text gives its live ones with plain log
  probabilities; a finished slot that was never filled holds zeros and
  `EMPTY_SCORE` (RefA).

  Attributes:
    num_beams: live and finished texts a row.
    per_node_beam_size: candidates a beam. With 1, texts that end leave their
      live slots empty, so fewer words are tried.
    alpha: exponent of the length penalty, 0 for none.
  """

  num_beams: int = 4
  per_node_beam_size: int = 2
  alpha: float = 0.6

  def __post_init__(self):
    if self.num_beams < 1 or self.per_node_beam_size < 1:
      raise ValueError(
          f'BeamSearch needs num_beams >= 1 and per_node_beam_size >= 1; got'
          f' {self.num_beams} and {self.per_node_beam_size}.'
      )

  def _penalty(self, length) -> Float[Array, '']:
    """Gives the divisor of a text's log probability."""
    return jnp.power((5.0 + length) / 6.0, self.alpha).astype(jnp.float32)

  def __call__(
      self,
      step: StepFn,
      cache: decode_cache.DecodeCache,
      start: Int[Array, 'M T'],
      end_id: int,
  ) -> Decoded:
    """Searches until no live text can beat a finished one, or all are full.

    Args:
      step: scores the next token.
      cache: before the first step, for `num_beams` beams.
      start: the start state.
      end_id: the end token.

    Returns:
      `num_beams` texts a row.
    """
    length = start.shape[1]

    def not_done(state: _BeamState):
      best_possible = state.live_log_probs[:, -1:] / self._penalty(length)
      worst = jnp.min(state.finished_scores, axis=1, keepdims=True)
      # Slot by slot: an empty slot keeps the search going (RefA).
      worst = jnp.where(state.is_finished, worst, EMPTY_SCORE)
      return (state.index < length - 2) & ~jnp.all(worst > best_possible)

    def write_one(state: _BeamState) -> _BeamState:
      return self._grow(state, step, cache, start, end_id)

    state = jax.lax.while_loop(not_done, write_one, self._start(start, cache))
    any_finished = jnp.any(state.is_finished, axis=1, keepdims=True)
    return Decoded(
        tokens=jnp.where(any_finished[..., None], state.finished, state.live),
        scores=jnp.where(
            any_finished, state.finished_scores, state.live_log_probs
        ),
    )

  def _start(
      self, start: Int[Array, 'M T'], cache: decode_cache.DecodeCache
  ) -> _BeamState:
    """Puts the start state into one live slot; the others are empty."""
    rows, length = start.shape
    shape = (rows, self.num_beams)
    live_log_probs = jnp.full(shape, EMPTY_SCORE, jnp.float32)
    return _BeamState(
        index=jnp.int32(0),
        live=jnp.broadcast_to(start[:, None], (*shape, length)),
        live_log_probs=live_log_probs.at[:, 0].set(0.0),
        finished=jnp.zeros((*shape, length), start.dtype),
        finished_scores=jnp.full(shape, EMPTY_SCORE, jnp.float32),
        is_finished=jnp.zeros(shape, bool),
        beams=cache.beams,
    )

  def _grow(self, state, step, cache, start, end_id) -> _BeamState:
    """Adds one token to the live texts and files those that ended."""
    beams = self.num_beams
    place = state.index + 1
    logits, new = step(
        cache.replace(beams=state.beams), state.live, state.index
    )
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    log_probs += state.live_log_probs[..., None]
    rows, _, vocabulary = log_probs.shape
    # Candidates: tokens of any beam, the best of all.
    log_probs, flat = jax.lax.top_k(
        log_probs.reshape(rows, beams * vocabulary),
        beams * self.per_node_beam_size,
    )
    parents, tokens = flat // vocabulary, flat % vocabulary
    tokens = tokens.astype(start.dtype)
    texts = _write(_pick(state.live, parents), place, tokens)
    ended = tokens == end_id

    live_log_probs = log_probs + jnp.where(ended, EMPTY_SCORE, 0.0)
    slots = _best_slots(live_log_probs, beams)
    scores = log_probs / self._penalty(place)
    scores += jnp.where(ended, 0.0, EMPTY_SCORE)
    all_scores = jnp.concatenate([state.finished_scores, scores], axis=1)
    kept = _best_slots(all_scores, beams)
    return _BeamState(
        index=place,
        live=_pick(texts, slots),
        live_log_probs=_pick(live_log_probs, slots),
        finished=_pick(jnp.concatenate([state.finished, texts], axis=1), kept),
        finished_scores=_pick(all_scores, kept),
        is_finished=_pick(
            jnp.concatenate([state.is_finished, ended], axis=1), kept
        ),
        beams=new.reorder(_pick(parents, slots)).beams,
    )
