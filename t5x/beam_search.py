"""Beam search with a penalty for brevity over a model with a cache.

Every row keeps `K` live beams and the `K` best finished sequences. A step
scores all continuations of the live beams and takes the 2·K best: enough for K
live ones even if K of them end.

RefA: Wu et al., arXiv 1609.08144, section 7 (length penalty);
RefB: google-research/t5x `decoding.py` (names, shapes, order of candidates).
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from flax import struct
import jax
from jax import lax
import jax.numpy as jnp

from t5x import beams
from t5x.beams import NEG_INF
from t5x.beams import DecodingState
from t5x.beams import TokensToLogits


@struct.dataclass
class BeamState:
  """State of the search; beams are ordered, the best one last.

  Attributes:
    cur_index: position of the token to read, scalar, or [B] after a prefill.
    live_logprobs: [B, K] log probabilities of live beams.
    finished_scores: [B, K].
    live_seqs: [B, K, L+1] tokens behind a start token.
    finished_seqs: [B, K, L+1].
    finished_flags: [B, K] whether a place holds a finished sequence.
    cache: the model's cache, [B, K, …].
  """

  cur_index: jax.Array
  live_logprobs: jax.Array
  finished_scores: jax.Array
  live_seqs: jax.Array
  finished_seqs: jax.Array
  finished_flags: jax.Array
  cache: Any


def brevity_penalty(alpha: float, length: Any) -> jax.Array:
  """Gives what a log probability is divided by: ((5 + length) / 6)^alpha.

  Args:
    alpha: 0 for none.
    length: tokens of the sequence, its end token and prompt included.

  Returns:
    The divisor, of the shape of `length`.
  """
  return jnp.power((5.0 + length) / 6.0, alpha)


def beam_init(
    batch_size: int,
    beam_size: int,
    max_decode_len: int,
    cache: Mapping[str, Any],
    offset: int = 0,
) -> BeamState:
  """Makes the state before the first step: one live beam a row.

  Args:
    batch_size: B.
    beam_size: K.
    max_decode_len: length of the sequences, the start token included.
    cache: the model's cache, [B, …].
    offset: batch axis of the cache.

  Returns:
    The state.
  """
  shape = (batch_size, beam_size)
  # Equal beams would give every continuation K times.
  live = jnp.where(jnp.arange(beam_size) == 0, 0.0, NEG_INF)
  return BeamState(
      cur_index=jnp.int32(0),
      live_logprobs=jnp.broadcast_to(live.astype(jnp.float32), shape),
      finished_scores=jnp.full(shape, NEG_INF, jnp.float32),
      live_seqs=jnp.zeros((*shape, max_decode_len), jnp.int32),
      finished_seqs=jnp.zeros((*shape, max_decode_len), jnp.int32),
      finished_flags=jnp.zeros(shape, bool),
      cache=beams.cache_map(
          lambda x: beams.add_beam_dim(x, beam_size, offset), cache
      ),
  )


def _prefilled(
    state: BeamState,
    prompts: jax.Array,
    initial_index: jax.Array,
    offset: int,
) -> BeamState:
  """Starts every row behind its own prompt, which the cache holds already."""
  beam_size = state.live_logprobs.shape[1]
  positions = jnp.arange(prompts.shape[1])[None]
  prompts = jnp.where(positions <= initial_index[:, None], prompts, 0)
  cache = state.cache

  def repeat_index(path, leaf):
    # Positions are one a row now, for rows of B·K; beams of a row agree.
    if getattr(path[-1], 'key', None) != beams.INDEX_LEAF:
      return leaf
    return beams.flat_batch_beam_expand(leaf, beam_size, offset)

  return state.replace(
      cur_index=initial_index,
      live_seqs=beams.add_beam_dim(prompts, beam_size),
      cache=jax.tree_util.tree_map_with_path(repeat_index, cache),
  )


@dataclasses.dataclass(frozen=True)
class _Search:
  """What stays the same from step to step; `beam_search` tells the fields."""

  tokens_to_logits: TokensToLogits
  prompts: jax.Array
  first_index: jax.Array
  eos_id: int
  alpha: float
  max_decode_step: int
  min_log_prob: float
  cache_offset: int

  @property
  def length(self) -> int:
    """Length of the sequences without the start token."""
    return self.prompts.shape[1] - 1

  def goes_on(self, state: BeamState) -> jax.Array:
    """Tells whether another step may change the result."""
    full = state.cur_index >= self.length
    # The best a live beam may hope for: that it ends at no further cost, where
    # the divisor is largest, now or (for a positive alpha) at full length.
    divisor = jnp.maximum(
        brevity_penalty(self.alpha, state.cur_index + 1.0),
        brevity_penalty(self.alpha, float(self.length)),
    )
    best_live = jnp.max(state.live_logprobs, axis=1) / divisor
    worst_finished = jnp.where(
        jnp.all(state.finished_flags, axis=1),
        jnp.min(state.finished_scores, axis=1),
        NEG_INF,
    )
    more = jnp.any(~full & ~(worst_finished > best_live))
    more &= jnp.any(state.live_logprobs >= self.min_log_prob)
    if self.max_decode_step > 0:
      num_steps = state.cur_index - self.first_index
      more &= jnp.all(num_steps < self.max_decode_step)
    return more

  def write_one(self, state: BeamState) -> BeamState:
    """Writes a token of every live beam."""
    batch_size, beam_size, _ = state.live_seqs.shape
    log_probs, cache = self._read(state)
    # A row that is full (after a prefill) waits: what it writes is dropped.
    full = jnp.broadcast_to(state.cur_index >= self.length, (batch_size,))
    next_index = jnp.broadcast_to(state.cur_index + 1, (batch_size,))
    next_index = jnp.minimum(next_index, self.length)
    sequences, totals, parents, ended = self._extend(
        state, log_probs, next_index
    )
    # Added, not put in its place: what has ended must stay behind the fillers.
    alive = totals + ended * NEG_INF
    live_seqs, live_logprobs, live_parents = beams.gather_topk_beams(
        (sequences, alive, parents), alive, batch_size, beam_size
    )
    scores = totals / brevity_penalty(self.alpha, next_index[:, None])
    pool = jax.tree.map(
        lambda *parts: jnp.concatenate(parts, axis=1),
        (state.finished_seqs, state.finished_scores, state.finished_flags),
        (sequences, scores + ~ended * NEG_INF, ended),
    )
    finished = beams.gather_topk_beams(pool, pool[1], batch_size, beam_size)

    def keep_full(old, new):
      return jnp.where(full.reshape(-1, *[1] * (new.ndim - 1)), old, new)

    return BeamState(
        cur_index=jnp.minimum(state.cur_index + 1, self.length),
        live_logprobs=keep_full(state.live_logprobs, live_logprobs),
        finished_scores=keep_full(state.finished_scores, finished[1]),
        live_seqs=keep_full(state.live_seqs, live_seqs),
        finished_seqs=keep_full(state.finished_seqs, finished[0]),
        finished_flags=keep_full(state.finished_flags, finished[2]),
        cache=beams.cache_gather_beams(
            cache,
            live_parents,
            batch_size,
            beam_size,
            beam_size,
            offset=self.cache_offset,
        ),
    )

  def _read(self, state: BeamState) -> tuple[jax.Array, Any]:
    """Reads one token of all live beams.

    Returns:
      (log probabilities [B, K, V] of the next token, the new cache).
    """
    batch_size, beam_size, _ = state.live_seqs.shape
    offset = self.cache_offset
    index, flat_index = state.cur_index, state.cur_index
    if index.ndim:
      index, flat_index = index[:, None, None], jnp.repeat(index, beam_size)
    tokens = jnp.take_along_axis(
        state.live_seqs,
        jnp.broadcast_to(index, (batch_size, beam_size, 1)),
        axis=2,
    )
    logits, cache = self.tokens_to_logits(
        DecodingState(
            cur_index=flat_index,
            sequences=beams.flatten_beam_dim(state.live_seqs),
            cur_token=beams.flatten_beam_dim(tokens),
            cache=beams.cache_map(
                lambda x: beams.flatten_beam_dim(x, offset), state.cache
            ),
        )
    )
    cache = beams.cache_map(
        lambda x: beams.unflatten_beam_dim(x, batch_size, beam_size, offset),
        cache,
    )
    logits = beams.unflatten_beam_dim(logits, batch_size, beam_size)
    log_probs = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))
    return log_probs, beams.like_cache(state.cache, cache)

  def _extend(
      self, state: BeamState, log_probs: jax.Array, next_index: jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Finds the 2·K best continuations, or follows the prompt.

    Inside a prompt there is one continuation, of probability 1.

    Args:
      state: the state.
      log_probs: [B, K, V] of the next token.
      next_index: [B] position of the next token.

    Returns:
      (sequences [B, 2K, L+1], log probabilities [B, 2K], the beam each one
      continues [B, 2K], whether it has just ended [B, 2K]).
    """
    batch_size, beam_size, vocab_size = log_probs.shape
    num_best = 2 * beam_size
    totals = state.live_logprobs[:, :, None] + log_probs
    totals, choices = beams.top_k_two_stage(
        totals.reshape(batch_size, -1), num_best
    )
    parents, tokens = choices // vocab_size, choices % vocab_size
    given = jnp.take_along_axis(self.prompts, next_index[:, None], axis=1)
    is_given = given != 0
    first = jnp.where(jnp.arange(num_best) == 0, 0.0, NEG_INF)[None]
    totals = jnp.where(is_given, first, totals).astype(jnp.float32)
    tokens = jnp.where(is_given, given, tokens)
    sequences = beams.gather_beams(
        state.live_seqs, parents, batch_size, beam_size, num_best
    )
    here = jnp.arange(self.length + 1) == next_index[:, None]
    sequences = jnp.where(here[:, None], tokens[:, :, None], sequences)
    return sequences, totals, parents, (tokens == self.eos_id) & ~is_given


def beam_search(
    inputs: jax.Array,
    cache: Mapping[str, Any],
    tokens_to_logits: TokensToLogits,
    eos_id: int,
    num_decodes: int = 4,
    alpha: float = 0.6,
    max_decode_len: int | None = None,
    max_decode_step: int = -1,
    min_log_prob: float = -1.0e7,
    decode_rng: jax.Array | None = None,
    cache_offset: int = 0,
    initial_index: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Searches for the likeliest sequences.

  The score of a sequence that has ended is its log probability behind the
  prompt over `brevity_penalty`. The search stops when every row has K finished
  sequences that no live beam can beat, when the sequences are full, or for one
  of the limits below.

  Args:
    inputs: [B, L] prompts, position 0 is the start token; other non-zero
      tokens are kept.
    cache: the model's cache, [B, …].
    tokens_to_logits: one step of the model.
    eos_id: the id that ends a sequence; in a prompt it is a token like others.
    num_decodes: K, beams.
    alpha: see `brevity_penalty`.
    max_decode_len: length of the results, that of `inputs` by default.
    max_decode_step: steps at most, if positive.
    min_log_prob: gives up when no live beam is as likely as this.
    decode_rng: not used, nothing is drawn.
    cache_offset: batch axis of the cache, 1 for scanned layers.
    initial_index: [B] position to start at, if the cache holds the prompts;
      `cache_index` in the cache then is one a row.

  Returns:
    (tokens [B, K, L] with 0 behind their ends, scores [B, K]), the best last.
    A row of which nothing has ended returns its live beams and, undivided,
    their log probabilities.
  """
  del decode_rng
  batch_size, length = inputs.shape
  length = length if max_decode_len is None else max_decode_len
  # One more place, for the start token.
  prompts = jnp.asarray(inputs, jnp.int32)[:, : length + 1]
  prompts = jnp.pad(prompts, ((0, 0), (0, length + 1 - prompts.shape[1])))
  state = beam_init(batch_size, num_decodes, length + 1, cache, cache_offset)
  if initial_index is not None:
    state = _prefilled(
        state, prompts, jnp.asarray(initial_index, jnp.int32), cache_offset
    )
  search = _Search(
      tokens_to_logits=tokens_to_logits,
      prompts=prompts,
      first_index=state.cur_index,
      eos_id=eos_id,
      alpha=alpha,
      max_decode_step=max_decode_step,
      min_log_prob=min_log_prob,
      cache_offset=cache_offset,
  )
  state = lax.while_loop(search.goes_on, search.write_one, state)
  any_finished = jnp.any(state.finished_flags, axis=1)
  sequences = jnp.where(
      any_finished[:, None, None], state.finished_seqs, state.live_seqs
  )
  scores = jnp.where(
      any_finished[:, None], state.finished_scores, state.live_logprobs
  )
  return sequences[:, :, 1:], scores
