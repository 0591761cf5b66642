"""Learning rates as functions of the step, written as products of factors."""

from collections.abc import Callable
import difflib
import math

import jax
import jax.numpy as jnp

LearningRateCallable = Callable[[jax.Array | int], jax.Array]

# Each factor is a function of (step after the offset, s: settings).
_FACTORS = {
    'constant': lambda step, s: s['base_learning_rate'],
    'linear_warmup': lambda step, s: jnp.minimum(1.0, step / s['warmup_steps']),
    'linear_decay': lambda step, s: s['base_learning_rate']
    * jnp.minimum(
        step / s['warmup_steps'],
        1.0 + s['decay_factor'] * (s['warmup_steps'] - step),
    ),
    'rsqrt_decay': lambda step, s: 1.0
    / jnp.sqrt(jnp.maximum(step, s['warmup_steps'])),
    'rsqrt_normalized_decay': lambda step, s: math.sqrt(s['warmup_steps'])
    / jnp.sqrt(jnp.maximum(step, s['warmup_steps'])),
    'decay_every': lambda step, s: s['decay_factor']
    ** (step // s['steps_per_decay']),
    'cosine_decay': lambda step, s: _cosine(
        jnp.maximum(
            0.0, (step - s['warmup_steps']) / float(s['steps_per_cycle'])
        )
    ),
}


def _cosine(progress: jax.Array) -> jax.Array:
  """Falls from 1 to 0 over each whole unit of `progress`, then restarts."""
  return jnp.maximum(0.0, 0.5 * (1.0 + jnp.cos(jnp.pi * (progress % 1.0))))


def create_learning_rate_scheduler(
    factors: str = 'constant * linear_warmup * rsqrt_decay',
    base_learning_rate: float = 0.5,
    warmup_steps: int = 1000,
    decay_factor: float = 0.5,
    steps_per_decay: int = 20000,
    steps_per_cycle: int = 100000,
    step_offset: int = 0,
    min_learning_rate: float = 1e-8,
) -> LearningRateCallable:
  """Returns a schedule that multiplies the named factors.

  Args:
    factors: names joined by `*`. `constant` is the base rate; `linear_warmup`
      rises to 1 over `warmup_steps`; `linear_decay` (which contains the base
      rate and the warm-up) falls with slope `decay_factor`; `rsqrt_decay` is
      1/sqrt(max(step, warmup_steps)), `rsqrt_normalized_decay` the same scaled
      to start at 1; `decay_every` multiplies by `decay_factor` every
      `steps_per_decay` steps; `cosine_decay` restarts every `steps_per_cycle`
      steps after the warm-up.
    base_learning_rate: the constant.
    warmup_steps: steps of warm-up, also the plateau of the rsqrt factors.
    decay_factor: see `linear_decay` and `decay_every`.
    steps_per_decay: see `decay_every`.
    steps_per_cycle: see `cosine_decay`.
    step_offset: subtracted from the step first (never below 0).
    min_learning_rate: the floor of the product.

  Returns:
    A function of the step that gives a float32 scalar.

  Raises:
    ValueError: if a factor is unknown.
  """
  names = [name.strip() for name in factors.split('*')]
  for name in names:
    if name not in _FACTORS:
      near = difflib.get_close_matches(name, _FACTORS, n=2, cutoff=0.4)
      raise ValueError(
          f'Unknown learning rate factor {name!r} in {factors!r}. '
          f'Nearest: {", ".join(near) or "none"}. '
          f'Known: {", ".join(_FACTORS)}.'
      )
  settings = {
      'base_learning_rate': base_learning_rate,
      'warmup_steps': warmup_steps,
      'decay_factor': decay_factor,
      'steps_per_decay': steps_per_decay,
      'steps_per_cycle': steps_per_cycle,
  }

  def learning_rate(step: jax.Array | int) -> jax.Array:
    step = jnp.maximum(0, step - step_offset)
    rate = 1.0
    for name in names:
      rate *= _FACTORS[name](step, settings)
    return jnp.asarray(jnp.maximum(rate, min_learning_rate), jnp.float32)

  return learning_rate
