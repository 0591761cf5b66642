"""Sampling with temperature, top-k and top-p over a model with a cache.

Tokens are written into the prompt's array: position 0 is read first, and a
position that holds a token already is left as it is, whatever was drawn:

  inputs     0 5 6 0 0        read 0: keep 5; read 5: keep 6;
  sequences  0 5 6 a b c      read 6: write a; read a: write b; read b: write c
  result       5 6 a b c

With a cache that was filled with the prompt, reading starts at a row's
`initial_index`; rows of different prompts are then at different positions.

RefA: google-research/t5x `decoding.py` (names, splitting of random keys).
"""

from collections.abc import Callable
from typing import Any

from flax import struct
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from t5x.beams import NEG_INF
from t5x.beams import DecodingState
from t5x.beams import TokensToLogits
from t5x.beams import like_cache

# Below this a temperature counts as 0, the limit, which is greedy.
MIN_TEMPERATURE = np.array(1e-4)

# The start token, and one more, so that callbacks may look a token ahead of
# the last one (RefA).
_EXTRA_TOKENS = 2


@struct.dataclass
class SamplingLoopState:
  """State of the loop; callbacks see it and may change it.

  Attributes:
    step: number of steps so far.
    cur_index: [B·K] position of the current token.
    sequences: [B·K, L+2] tokens so far behind the start token, else 0.
    cache: the model's cache.
    cur_token: [B·K, 1] tokens to read.
    ended: [B·K, 1] whether a row is complete.
    rng: key of the steps to come.
    log_prob: [B·K] log probability of the tokens drawn so far.
  """

  step: jax.Array
  cur_index: jax.Array
  sequences: jax.Array
  cache: Any
  cur_token: jax.Array
  ended: jax.Array
  rng: jax.Array
  log_prob: jax.Array


StateCallbackFn = Callable[[SamplingLoopState], SamplingLoopState]
LogitCallbackFn = Callable[[jax.Array, SamplingLoopState], jax.Array]


def _is_tracer(value: Any) -> bool:
  return isinstance(value, jax.core.Tracer)


def topk_mask(logits: jax.Array, topk: int | jax.Array) -> jax.Array:
  """Puts NEG_INF in place of all but the `topk` largest; 0 keeps all.

  Args:
    logits: [B, V].
    topk: a number, or inside a compiled function a scalar.

  Returns:
    [B, V]; logits equal to the smallest one kept are kept too.
  """
  num_logits = logits.shape[-1]
  if not _is_tracer(topk):
    if topk == 0 or topk >= num_logits:
      return logits
    smallest = lax.top_k(logits, topk)[0][:, -1:]
    return jnp.where(logits < smallest, NEG_INF, logits)
  rank = num_logits - jnp.where(topk > 0, topk, num_logits)
  smallest = jnp.take(
      jnp.sort(logits, axis=-1), jnp.clip(rank, 0, num_logits - 1), axis=-1
  )
  return jnp.where(logits < smallest[:, None], NEG_INF, logits)


def topp_mask(logits: jax.Array, topp: float | jax.Array) -> jax.Array:
  """Keeps the smallest set of likeliest tokens of probability `topp` at least.

  Args:
    logits: [B, V].
    topp: probability; 0 keeps all.

  Returns:
    [B, V], NEG_INF outside the set.
  """
  if not _is_tracer(topp) and topp == 0:
    return logits
  falling = -jnp.sort(-logits, axis=-1)
  probs = jax.nn.softmax(falling, axis=-1)
  likelier = jnp.cumsum(probs, axis=-1) - probs
  kept = (likelier < topp) | (topp == 0)
  smallest = jnp.min(jnp.where(kept, falling, jnp.inf), axis=-1, keepdims=True)
  return jnp.where(logits < smallest, NEG_INF, logits)


def _choose_tokens(
    rng: jax.Array,
    logits: jax.Array,
    temperature: jax.Array,
    topk: int | jax.Array,
    topp: float | jax.Array,
    rescale_log_probs: bool,
) -> tuple[jax.Array, jax.Array]:
  """Draws a token a row.

  Args:
    rng: random key.
    logits: [B, V].
    temperature: [] or [B, 1].
    topk: see `topk_mask`.
    topp: see `topp_mask`.
    rescale_log_probs: whether probabilities are those drawn from, or the
      model's.

  Returns:
    (tokens [B], their log probabilities [B]).
  """
  masked = logits / jnp.maximum(temperature, MIN_TEMPERATURE)
  masked = topp_mask(topk_mask(masked, topk), topp)
  # Named so, and by position, because tests of users replace it (RefA).
  drawn = jax.random.categorical(rng, masked).astype(jnp.int32)
  greedy = jnp.squeeze(temperature, -1) if temperature.ndim else temperature
  greedy = greedy <= MIN_TEMPERATURE
  tokens = jnp.where(greedy, jnp.argmax(logits, -1).astype(jnp.int32), drawn)
  log_probs = jax.nn.log_softmax(masked if rescale_log_probs else logits)
  gain = jnp.take_along_axis(log_probs, tokens[:, None], axis=-1)[:, 0]
  if rescale_log_probs:
    # At temperature 0 all probability is on the token chosen.
    gain = jnp.where(greedy, 0.0, gain)
  return tokens, gain


def _last_lengths(
    inputs: jax.Array, max_decode_steps: int | jax.Array | None
) -> jax.Array:
  """Gives the length [B] at which a row ends, prompt and all."""
  batch_size, length = inputs.shape
  if max_decode_steps is None:
    return jnp.full((batch_size,), length, jnp.int32)
  if not _is_tracer(max_decode_steps) and max_decode_steps > length:
    raise ValueError(
        f'max_decode_steps is {max_decode_steps}, but the sequences have room'
        f' for {length} tokens. Make it smaller, or the task feature longer.'
    )
  prompt_lengths = jnp.sum(inputs != 0, axis=1)
  return jnp.minimum(prompt_lengths + max_decode_steps, length)


def _temperature_sample_single_trial(
    inputs: jax.Array,
    cache: Any,
    tokens_to_logits: TokensToLogits,
    eos_id: int,
    prng_key: jax.Array,
    num_decodes: int = 1,
    temperature: float | jax.Array = 1.0,
    topk: int | jax.Array = 20,
    topp: float | jax.Array = 0.0,
    initial_index: jax.Array | None = None,
    max_decode_steps: int | jax.Array | None = None,
    rescale_log_probs: bool = True,
    state_callback_fn: StateCallbackFn | None = None,
    logit_callback_fn: LogitCallbackFn | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Samples one sequence a row; see `t5x.decoding.temperature_sample`.

  Args:
    inputs: [B·K, L] prompts.
    cache: the model's cache, of B·K rows.
    tokens_to_logits: one step of the model.
    eos_id: the id that ends a sequence.
    prng_key: random key.
    num_decodes: K, how often a temperature [B] is repeated.
    temperature: scalar or [B].
    topk: draws from the likeliest only, 0 for all.
    topp: draws from the likeliest of this probability only, 0 for all.
    initial_index: [B·K] where to start.
    max_decode_steps: tokens behind the prompt at most.
    rescale_log_probs: see `temperature_sample`.
    state_callback_fn: see `temperature_sample`.
    logit_callback_fn: see `temperature_sample`.

  Returns:
    (tokens [B·K, L], log probabilities [B·K]).
  """
  if not (_is_tracer(topk) or _is_tracer(topp)) and topk and topp:
    raise ValueError(
        f'At most one of topk ({topk}) and topp ({topp}) may be non-zero;'
        ' topk is 1 by default.'
    )
  inputs = jnp.asarray(inputs, jnp.int32)
  last_lengths = _last_lengths(inputs, max_decode_steps)
  sequences = jnp.pad(inputs, ((0, 0), (0, _EXTRA_TOKENS)))
  rows = jnp.arange(inputs.shape[0])
  # The prompt may hold end tokens, such as the one that ends its inputs.
  num_prompt_ends = jnp.sum(sequences == eos_id, axis=1)
  temperature = jnp.asarray(temperature)
  if temperature.ndim:
    temperature = jnp.repeat(temperature, num_decodes)[:, None]
  if initial_index is None:
    start = jnp.zeros_like(rows, jnp.int32)
    first_tokens = jnp.zeros_like(sequences[:, :1])
  else:
    start = jnp.asarray(initial_index, jnp.int32)
    first_tokens = sequences[rows, start][:, None]

  def write_one(state: SamplingLoopState) -> SamplingLoopState:
    if state_callback_fn is not None:
      state = state_callback_fn(state)
    step_rng, rng = jax.random.split(state.rng)
    logits, new_cache = tokens_to_logits(
        DecodingState(
            cur_index=state.cur_index,
            sequences=state.sequences[:, :-_EXTRA_TOKENS],
            cur_token=state.cur_token,
            cache=state.cache,
        )
    )
    if logit_callback_fn is not None:
      logits = logit_callback_fn(logits, state)
    drawn, gain = _choose_tokens(
        step_rng, logits, temperature, topk, topp, rescale_log_probs
    )
    ended = state.ended[:, 0]
    # Rows that have ended stay here while the others go on.
    index = jnp.minimum(state.cur_index, last_lengths)
    given = state.sequences[rows, index + 1]
    is_drawn = (given == 0) & ~ended
    tokens = jnp.where(ended, 0, jnp.where(is_drawn, drawn, given))
    sequences = state.sequences.at[rows, index + 1].set(
        jnp.where(ended, given, tokens)
    )
    num_ends = jnp.sum(sequences == eos_id, axis=1)
    ended |= (num_ends > num_prompt_ends) | (index >= last_lengths - 1)
    return SamplingLoopState(
        step=state.step + 1,
        cur_index=index + 1,
        sequences=sequences,
        cache=like_cache(state.cache, new_cache),
        cur_token=tokens[:, None],
        ended=ended[:, None],
        rng=rng,
        log_prob=state.log_prob + jnp.where(is_drawn, gain, 0.0),
    )

  state = lax.while_loop(
      lambda state: ~jnp.all(state.ended),
      write_one,
      SamplingLoopState(
          step=jnp.int32(0),
          cur_index=start,
          sequences=sequences,
          cache=cache,
          cur_token=first_tokens,
          ended=(start >= last_lengths)[:, None],
          rng=prng_key,
          log_prob=jnp.zeros(rows.shape, jnp.float32),
      ),
  )
  if state_callback_fn is not None:
    state = state_callback_fn(state)
  return state.sequences[:, 1:-1], state.log_prob
