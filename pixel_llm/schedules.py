"""Learning rate schedules: functions of the step that return the rate.

RefA: the published recipes of "Pixel Aligned Language Models" (arXiv
2312.09237): linear warm-up, then half a cosine down to 0.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Schedule = Callable[[int | Array], Array]


def warmup_cosine(
    base_learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    restart: bool = False,
) -> Schedule:
  """Makes a schedule that rises linearly and falls as a half cosine.

  The cosine runs from the end of the warm-up to `total_steps` (RefA). Step 0
  has rate 0 if there is a warm-up.

  Args:
    base_learning_rate: the rate both factors scale.
    total_steps: step at which the rate is 0, warm-up included.
    warmup_steps: steps of the warm-up, 0 for none.
    restart: starts the cosine again after `total_steps`, as the original does;
      otherwise the final value holds.

  Returns:
    A function from the step, counted from 0, to the rate, float32.

  Raises:
    ValueError: if the steps do not fit.
  """
  if not 0 <= warmup_steps < total_steps:
    raise ValueError(
        'warmup_cosine needs 0 <= warmup_steps < total_steps; got'
        f' warmup_steps={warmup_steps}, total_steps={total_steps}.'
    )

  def schedule(step: int | Int[Array, '']) -> Float[Array, '']:
    step = jnp.asarray(step, jnp.float32)
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    progress = jnp.maximum(progress, 0.0)
    if restart:
      progress = jnp.mod(progress, 1.0)
    progress = jnp.minimum(progress, 1.0)
    rate = base_learning_rate * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    if warmup_steps:
      rate *= jnp.minimum(step / warmup_steps, 1.0)
    return rate

  return schedule
