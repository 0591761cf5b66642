import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_llm import losses
from pixel_llm.golden import case as case_lib
from pixel_llm.golden import compare
from pixel_llm.golden.runners import losses as runner

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
KEY = jax.random.key(0)


@pytest.mark.golden
def test_losses_and_gradients_equal_the_original():
  case = case_lib.load_case(GOLDEN, 'losses')
  reports = compare.compare_case(runner.run_losses(case), case.expected)
  assert not [f'{r.name}: {r.message}' for r in reports if not r.passed]


def test_text_loss_by_hand():
  # Two tokens count: 2 and the end token 1; V = 4, all equally likely.
  logits = jnp.zeros((1, 1, 5, 4))
  tokens = jnp.array([[[0, 2, 1, 0, 0]]])
  term = losses.text_loss(logits, tokens, jnp.ones((1, 1)))
  np.testing.assert_allclose(term.total, 2 * np.log(4), rtol=1e-6)
  assert term.count == 2
  np.testing.assert_allclose(term.mean(), np.log(4), rtol=1e-6)


def test_smoothing_spreads_over_the_other_tokens():
  logits = jax.random.normal(KEY, (1, 1, 3, 5))
  tokens = jnp.array([[[0, 3, 1]]])
  log_probs = np.asarray(jax.nn.log_softmax(logits))[0, 0]
  expected = 0.0
  for position, target in ((0, 3), (1, 1)):
    soft = np.full(5, 0.2 / 4)
    soft[target] = 0.8
    expected -= np.sum(soft * log_probs[position])
  term = losses.text_loss(logits, tokens, jnp.ones((1, 1)), label_smoothing=0.2)
  np.testing.assert_allclose(term.total, expected, rtol=1e-5)


def test_an_empty_caption_and_a_masked_prompt_do_not_count():
  logits = jax.random.normal(KEY, (1, 3, 4, 5))
  tokens = jnp.array([[[0, 3, 1, 0], [0, 1, 0, 0], [0, 2, 2, 1]]])
  both = losses.text_loss(logits, tokens, jnp.array([[1.0, 1.0, 0.0]]))
  first = losses.text_loss(logits[:, :1], tokens[:, :1], jnp.ones((1, 1)))
  np.testing.assert_allclose(both.total, first.total, rtol=1e-6)
  assert both.count == first.count == 2


def test_padding_tokens_do_not_move_the_loss():
  logits = jax.random.normal(KEY, (2, 1, 6, 7))
  tokens = jnp.array([[[0, 4, 5, 1, 0, 0]], [[0, 2, 1, 0, 0, 0]]])
  weights = jnp.ones((2, 1))
  long = losses.text_loss(logits, tokens, weights)
  short = losses.text_loss(logits[:, :, :4], tokens[:, :, :4], weights)
  np.testing.assert_allclose(long.mean(), short.mean(), rtol=1e-6)


def test_the_loss_of_a_mixed_batch_is_that_of_those_who_take_part():
  logits = jax.random.normal(KEY, (4, 2, 5, 7))
  tokens = jnp.full((4, 2, 5), 3).at[:, :, 0].set(0)
  weights = jnp.array([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
  mixed = losses.text_loss(logits, tokens, weights)
  pure = losses.text_loss(logits[::2], tokens[::2], weights[::2])
  np.testing.assert_allclose(mixed.mean(), pure.mean(), rtol=1e-6)


def test_nothing_that_takes_part_gives_zero_and_no_gradient():
  points = jax.random.normal(KEY, (1, 1, 3, 2, 2))

  def loss(p):
    return losses.point_loss(p, jnp.ones_like(p), jnp.zeros((1, 1, 3))).mean()

  value, gradient = jax.value_and_grad(loss)(points)
  assert value == 0
  np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(
    'kind, total, count',
    [('l1', 2 + 5, 2), ('l1_nonzero', 2, 1), ('l2', 4 + 25, 2)],
)
def test_point_losses_by_hand(kind, total, count):
  points = jnp.array([[[[[3.0, 4.0]], [[5.0, 5.0]], [[9.0, 9.0]]]]])
  targets = jnp.array([[[[[1.0, 2.0]], [[0.0, 0.0]], [[1.0, 1.0]]]]])
  term = losses.point_loss(
      points, targets, jnp.array([[[1.0, 1.0, 0.0]]]), kind=kind
  )
  np.testing.assert_allclose(term.total, total)
  assert term.count == count


def test_an_unknown_point_loss_names_the_nearest():
  x = jnp.zeros((1, 1, 1, 2, 2))
  with pytest.raises(ValueError, match="Did you mean 'l1_nonzero'"):
    losses.point_loss(x, x, jnp.zeros((1, 1, 1)), kind='l1_nonzeros')


def test_a_smoothing_that_is_no_probability_is_refused():
  with pytest.raises(ValueError, match='label_smoothing is 1.5'):
    losses.text_loss(
        jnp.zeros((1, 1, 2, 3)),
        jnp.zeros((1, 1, 2), jnp.int32),
        jnp.ones((1, 1)),
        label_smoothing=1.5,
    )


def _mask_inputs():
  logits = 2 * jax.random.normal(KEY, (2, 3, 1, 4, 4))
  targets = jax.random.bernoulli(jax.random.key(1), 0.4, (2, 3, 8, 8))
  inside = (jnp.arange(8) < 6).reshape(1, 1, 8)
  valid = jnp.broadcast_to(inside, (2, 8, 8))
  return logits, jnp.full((2, 3, 1), 0.5), targets.astype(jnp.uint8), valid


def test_a_good_mask_costs_little_and_a_bad_one_much():
  _, iou, targets, valid = _mask_inputs()
  sharp = jnp.where(targets > 0, 20.0, -20.0)[:, :, None]
  weights = jnp.ones((2, 3))
  good = losses.mask_loss(sharp, jnp.ones_like(iou), targets, valid, weights)
  bad = losses.mask_loss(-sharp, jnp.ones_like(iou), targets, valid, weights)
  assert good.sum().mean() < 1e-5
  # Every pixel is wrong by 20: focal 20 · 0.5 · 20, dice near 1, IoU 0.
  np.testing.assert_allclose(bad.focal.mean(), 200.0, rtol=1e-4)
  np.testing.assert_allclose(bad.dice.mean(), 1.0, atol=0.05)
  np.testing.assert_allclose(bad.iou.mean(), 1.0)


def test_focal_ignores_the_padding_and_dice_does_not():
  logits, iou, targets, valid = _mask_inputs()
  weights = jnp.ones((2, 3))
  args = logits, iou, targets, valid, weights
  base = losses.mask_loss(*args)
  changed = losses.mask_loss(
      logits, iou, targets.at[..., 6:].set(1 - targets[..., 6:]), valid, weights
  )
  np.testing.assert_allclose(changed.focal.total, base.focal.total, rtol=1e-6)
  assert abs(changed.dice.total - base.dice.total) > 1e-3


def test_prompts_without_a_mask_do_not_count():
  logits, iou, targets, valid = _mask_inputs()
  weights = jnp.array([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
  some = losses.mask_loss(logits, iou, targets, valid, weights)
  kept = losses.mask_loss(
      logits[:1, ::2],
      iou[:1, ::2],
      targets[:1, ::2],
      valid[:1],
      jnp.ones((1, 2)),
  )
  np.testing.assert_allclose(some.sum().mean(), kept.sum().mean(), rtol=1e-6)
  assert some.sum().count == 2


def test_the_mask_loss_keeps_no_full_resolution_floats_for_the_backward_pass():
  logits, iou, targets, valid = _mask_inputs()
  weights = jnp.ones((2, 3))

  def loss(logits):
    terms = losses.mask_loss(logits, iou, targets, valid, weights)
    return terms.sum().mean()

  _, backward = jax.vjp(loss, logits)
  kept = [
      x.shape
      for x in jax.tree.leaves(backward)
      if jnp.issubdtype(x.dtype, jnp.floating) and x.shape[-2:] == (8, 8)
  ]
  assert not kept
