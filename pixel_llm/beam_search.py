"""Beam search over a step function with a cache.

RefA: the habits of the original decoder, which released checkpoints and
published numbers depend on; RefB: GNMT (arXiv 1609.08144), section 7, for the
length penalty.

The beams of a row share what its text depends on; only the keys and values of
the text itself move when a beam takes another's place.
"""

import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from pixel_llm import generation
from pixel_llm.modules import decode_cache

# Score of a slot that holds nothing yet (RefA).
EMPTY_SCORE = -1e7


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


def _candidates(
    logits: Float[Array, 'M K V'],
    log_probs: Float[Array, 'M K'],
    count: int,
) -> tuple[Float[Array, 'M C'], Int[Array, 'M C'], Int[Array, 'M C']]:
  """Finds the likeliest texts with one token more, the best first.

  First the best tokens of each beam, then the best of those: no array of all
  beams' vocabularies is normalised or searched.

  Args:
    logits: of the next token.
    log_probs: of the texts so far.
    count: candidates to find, `C`.

  Returns:
    Their log probabilities, beams and tokens.
  """
  rows, beams, vocabulary = logits.shape
  each = min(count, vocabulary)
  best, tokens = jax.lax.top_k(logits, each)
  best += (log_probs - generation.log_normaliser(logits))[..., None]
  best, flat = jax.lax.top_k(best.reshape(rows, beams * each), count)
  return best, flat // each, _pick(tokens.reshape(rows, beams * each), flat)


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
      step: decode_cache.StepFn,
      cache: decode_cache.DecodeCache,
      start: Int[Array, 'M T'],
      end_id: int,
      row_mask: Bool[Array, ' M'] | None = None,
      keys: Key[Array, ' M'] | None = None,
  ) -> generation.Decoded:
    """Searches until no live text beats a finished one; see `Decoder`."""
    del keys  # Nothing is drawn.
    length = start.shape[1]

    def not_done(state: _BeamState):
      best_possible = state.live_log_probs[:, -1:] / self._penalty(length)
      worst = jnp.min(state.finished_scores, axis=1, keepdims=True)
      # Slot by slot: an empty slot keeps the search going (RefA).
      worst = jnp.where(state.is_finished, worst, EMPTY_SCORE)
      return (state.index < length - 2) & ~jnp.all(worst > best_possible)

    def write_one(state: _BeamState) -> _BeamState:
      return self._grow(state, step, cache, start, end_id)

    state = jax.lax.while_loop(
        not_done,
        write_one,
        self._start(start, cache, generation.needed_rows(row_mask, start)),
    )
    any_finished = jnp.any(state.is_finished, axis=1, keepdims=True)
    return generation.Decoded(
        tokens=jnp.where(any_finished[..., None], state.finished, state.live),
        scores=jnp.where(
            any_finished, state.finished_scores, state.live_log_probs
        ),
    )

  def _start(
      self,
      start: Int[Array, 'M T'],
      cache: decode_cache.DecodeCache,
      row_mask: Bool[Array, 'M 1'],
  ) -> _BeamState:
    """Puts the start state into one live slot; the others are empty.

    A row that needs no text starts with all slots finished and none live, which
    no candidate can change.
    """
    rows, length = start.shape
    shape = (rows, self.num_beams)
    lives = row_mask & (jnp.arange(self.num_beams) == 0)
    live = jnp.broadcast_to(start[:, None], (*shape, length))
    return _BeamState(
        index=jnp.int32(0),
        live=live,
        live_log_probs=jnp.where(lives, 0.0, EMPTY_SCORE),
        finished=jnp.where(row_mask[..., None], 0, live),
        finished_scores=jnp.broadcast_to(
            jnp.where(row_mask, EMPTY_SCORE, 0.0), shape
        ),
        is_finished=jnp.broadcast_to(~row_mask, shape),
        beams=cache.beams,
    )

  def _grow(self, state, step, cache, start, end_id) -> _BeamState:
    """Adds one token to the live texts and files those that ended."""
    beams = self.num_beams
    place = state.index + 1
    logits, new = step(
        cache.replace(beams=state.beams), state.live, state.index
    )
    log_probs, parents, tokens = _candidates(
        logits.astype(jnp.float32),
        state.live_log_probs,
        beams * self.per_node_beam_size,
    )
    tokens = tokens.astype(start.dtype)
    texts = generation.write_at(_pick(state.live, parents), place, tokens)
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
