import math

import jax.numpy as jnp
import pytest

from t5x import learning_rates


def rate(step, **kwargs):
  value = learning_rates.create_learning_rate_scheduler(**kwargs)(step)
  assert value.dtype == jnp.float32
  return float(value)


@pytest.mark.parametrize(
    ('kwargs', 'step', 'expected'),
    [
        ({}, 500, 0.5 * 0.5 / math.sqrt(1000)),
        ({}, 4000, 0.5 / math.sqrt(4000)),
        ({'factors': 'constant', 'step_offset': 9}, 3, 0.5),
        ({'factors': 'linear_decay', 'warmup_steps': 10}, 5, 0.25),
        (
            {
                'factors': 'linear_decay',
                'warmup_steps': 10,
                'decay_factor': 0.01,
            },
            60,
            0.25,
        ),
        ({'factors': 'rsqrt_normalized_decay', 'warmup_steps': 4}, 16, 0.5),
        ({'factors': 'decay_every', 'steps_per_decay': 10}, 25, 0.25),
        (
            {
                'factors': 'cosine_decay',
                'warmup_steps': 10,
                'steps_per_cycle': 100,
            },
            35,
            0.5 * (1 + math.cos(math.pi * 0.25)),
        ),
        ({'factors': 'linear_warmup', 'min_learning_rate': 0.1}, 0, 0.1),
    ],
)
def test_factors_by_hand(kwargs, step, expected):
  assert rate(step, **kwargs) == pytest.approx(expected, rel=1e-6)


def test_unknown_factors_are_told_when_built():
  with pytest.raises(ValueError, match="'constnt'.*constant"):
    learning_rates.create_learning_rate_scheduler('constnt * rsqrt_decay')
