"""Decoding: what models and users name, in one place.

`temperature_sample` and `beam_search` are decode functions: they write tokens
over a step function `tokens_to_logits`, which reads one token of every row.
The loops are in `sampling` and `beam_search`, what they share in `beams`.

RefA: google-research/t5x `decoding.py` (the names).
"""

from collections.abc import Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp

from t5x.beam_search import BeamState
from t5x.beam_search import beam_init
from t5x.beam_search import beam_search
from t5x.beam_search import brevity_penalty
from t5x.beams import NEG_INF
from t5x.beams import DecodingState
from t5x.beams import TokensToLogits
from t5x.beams import add_beam_dim
from t5x.beams import cache_gather_beams
from t5x.beams import cache_map
from t5x.beams import flat_batch_beam_expand
from t5x.beams import flatten_beam_dim
from t5x.beams import gather_beams
from t5x.beams import gather_topk_beams
from t5x.beams import top_k_two_stage
from t5x.beams import unflatten_beam_dim
from t5x.sampling import MIN_TEMPERATURE
from t5x.sampling import LogitCallbackFn
from t5x.sampling import SamplingLoopState
from t5x.sampling import StateCallbackFn
from t5x.sampling import _temperature_sample_single_trial

__all__ = [
    'BeamState',
    'DecodingState',
    'LogitCallbackFn',
    'MIN_TEMPERATURE',
    'NEG_INF',
    'SamplingLoopState',
    'StateCallbackFn',
    'TokensToLogits',
    'add_beam_dim',
    'beam_init',
    'beam_search',
    'brevity_penalty',
    'cache_gather_beams',
    'cache_map',
    'flat_batch_beam_expand',
    'flatten_beam_dim',
    'gather_beams',
    'gather_topk_beams',
    'temperature_sample',
    'top_k_two_stage',
    'unflatten_beam_dim',
]


def temperature_sample(
    inputs: jax.Array,
    cache: Mapping[str, Any],
    tokens_to_logits: TokensToLogits,
    eos_id: int,
    decode_rng: jax.Array | None = None,
    num_decodes: int = 1,
    temperature: float | jax.Array = 1.0,
    topk: int | jax.Array = 1,
    topp: float | jax.Array = 0.0,
    cache_offset: int = 0,
    initial_index: jax.Array | None = None,
    max_decode_steps: int | jax.Array | None = None,
    max_decode_steps_hard_limit: int | None = None,
    rescale_log_probs: bool = True,
    state_callback_fn: StateCallbackFn | None = None,
    logit_callback_fn: LogitCallbackFn | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Draws sequences token by token.

  A row ends with an end token beyond those its prompt has, or at its limit.

  Args:
    inputs: [B, L] prompts; non-zero tokens are kept. Position 0 is the start
      token, or `initial_index` is where to start.
    cache: the model's cache, [B, …].
    tokens_to_logits: one step of the model.
    eos_id: the id that ends a sequence.
    decode_rng: random key, that of seed 0 by default.
    num_decodes: K, sequences a row.
    temperature: divides the logits, scalar or [B]; below 1e-4 the likeliest
      token is taken.
    topk: draws from the likeliest tokens only; 0 for all, 1 is greedy.
    topp: draws from the likeliest tokens of this probability only; 0 for all.
    cache_offset: batch axis of the cache, 1 for scanned layers.
    initial_index: [B] position to start at, if the cache holds the prompts;
      `cache_index` in the cache then is one a row.
    max_decode_steps: tokens behind the prompt at most.
    max_decode_steps_hard_limit: caps `max_decode_steps`, if positive.
    rescale_log_probs: whether scores are log probabilities of what was drawn
      from, after temperature, top-k and top-p (greedy: 0), or of the model.
    state_callback_fn: changes the state before each step and at the end.
    logit_callback_fn: changes the logits [B·K, V] of each step.

  Returns:
    (tokens [B, K, L] with 0 behind their ends, log probabilities [B, K] of the
    tokens drawn), the likeliest last.

  Raises:
    ValueError: if `topk` and `topp` are both set, or `max_decode_steps` is more
      than L.
  """
  if decode_rng is None:
    decode_rng = jax.random.PRNGKey(0)
  if max_decode_steps is not None and max_decode_steps_hard_limit:
    max_decode_steps = jnp.minimum(
        max_decode_steps, max_decode_steps_hard_limit
    )
  batch_size = inputs.shape[0]
  if num_decodes > 1:
    inputs = flat_batch_beam_expand(jnp.asarray(inputs), num_decodes)
    cache = cache_map(
        functools.partial(
            flat_batch_beam_expand, beam_size=num_decodes, offset=cache_offset
        ),
        cache,
        apply_to_index=initial_index is not None,
    )
    if initial_index is not None:
      initial_index = flat_batch_beam_expand(
          jnp.asarray(initial_index), num_decodes
      )
  tokens, log_probs = _temperature_sample_single_trial(
      inputs,
      cache,
      tokens_to_logits,
      eos_id,
      decode_rng,
      num_decodes,
      temperature,
      topk,
      topp,
      initial_index=initial_index,
      max_decode_steps=max_decode_steps,
      rescale_log_probs=rescale_log_probs,
      state_callback_fn=state_callback_fn,
      logit_callback_fn=logit_callback_fn,
  )
  tokens = unflatten_beam_dim(tokens, batch_size, num_decodes)
  log_probs = unflatten_beam_dim(log_probs, batch_size, num_decodes)
  order = jnp.argsort(log_probs, axis=1)
  return (
      jnp.take_along_axis(tokens, order[:, :, None], axis=1),
      jnp.take_along_axis(log_probs, order, axis=1),
  )


def _left_align_prompts(prompts: jax.Array) -> jax.Array:
  """Moves leading padding [B, L] to the end: 0 0 5 0 6 becomes 5 0 6 0 0."""
  is_token = prompts != 0
  leading = jnp.argmax(is_token, axis=1)
  return _roll_rows(prompts, -leading)


def _right_align_prompts(prompts: jax.Array) -> jax.Array:
  """Moves trailing padding [B, L] to the front: 5 0 6 0 0 becomes 0 0 5 0 6."""
  is_token = prompts != 0
  trailing = jnp.argmax(is_token[:, ::-1], axis=1)
  return _roll_rows(prompts, trailing)


_roll_rows = jax.vmap(jnp.roll)
