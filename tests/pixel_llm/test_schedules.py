import jax
import numpy as np
import pytest

from pixel_llm import schedules


def test_rates_by_hand():
  rate = schedules.warmup_cosine(2.0, total_steps=12, warmup_steps=4)
  np.testing.assert_allclose(
      [rate(s) for s in (0, 1, 4, 8, 12)], [0, 0.5, 2.0, 1.0, 0.0], atol=1e-6
  )


def test_the_final_value_holds_unless_told_to_restart():
  options = {'total_steps': 100, 'warmup_steps': 10}
  held = schedules.warmup_cosine(1.0, **options)
  again = schedules.warmup_cosine(1.0, restart=True, **options)
  np.testing.assert_allclose([held(100), held(101), held(10_000)], 0, atol=1e-6)
  np.testing.assert_allclose(again(100), 1.0)
  np.testing.assert_allclose(
      [held(s) for s in range(100)], [again(s) for s in range(100)]
  )


def test_a_traced_step_gives_the_same_rate():
  rate = schedules.warmup_cosine(1.0, 10, 2)
  np.testing.assert_allclose(jax.jit(rate)(5), rate(5), rtol=1e-6)
  np.testing.assert_allclose(schedules.warmup_cosine(3.0, 10)(0), 3.0)


@pytest.mark.parametrize('total, warmup', [(10, 10), (0, 0), (10, -1)])
def test_steps_that_do_not_fit_are_refused(total, warmup):
  with pytest.raises(ValueError, match=f'total_steps={total}'):
    schedules.warmup_cosine(1.0, total, warmup)
