import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x import losses


def _arrays(seed=0):
  rng = np.random.default_rng(seed)
  logits = rng.standard_normal((2, 3, 5)).astype(np.float32)
  soft = rng.random((2, 3, 5)).astype(np.float32)
  return logits, soft / soft.sum(-1, keepdims=True)


def _plain(logits, soft_targets, z_loss):
  log_z = jax.nn.logsumexp(logits, axis=-1)
  entropy = -jnp.sum(soft_targets * jax.nn.log_softmax(logits), axis=-1)
  return entropy + z_loss * log_z**2, z_loss * log_z**2


def test_cross_entropy_and_its_gradient_equal_autodiff():
  logits, soft = _arrays()

  def total(fn):
    def weighted(logits, soft, z_loss):
      loss, z = fn(logits, soft, z_loss)
      return jnp.sum(loss * jnp.arange(6.0).reshape(2, 3)) + 0.3 * jnp.sum(z)

    return jax.value_and_grad(weighted, argnums=(0, 1, 2))

  ours = total(losses.cross_entropy_with_logits)(logits, soft, 0.1)
  plain = total(_plain)(logits, soft, 0.1)
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5),
      ours,
      plain,
  )


def test_integer_z_loss_weight_differentiates():
  logits, soft = _arrays()
  grads = jax.grad(
      lambda x: jnp.sum(losses.cross_entropy_with_logits(x, soft, 0)[0])
  )(logits)
  np.testing.assert_allclose(grads, jax.nn.softmax(logits) - soft, atol=1e-6)


def test_two_equal_logits_cost_log_two():
  loss, z_loss, weight_sum = losses.compute_weighted_cross_entropy(
      jnp.zeros((1, 3, 2)), jnp.array([[0, 1, 1]]), jnp.array([[1.0, 1.0, 0.0]])
  )
  np.testing.assert_allclose(loss, 2 * np.log(2), rtol=1e-6)
  assert z_loss == 0
  assert weight_sum == 2


def test_smoothing_spreads_over_the_others_and_its_entropy_is_subtracted():
  smoothing, num_ids = 0.1, 5
  soft = np.full(num_ids, smoothing / (num_ids - 1), np.float32)
  soft[2] = 1 - smoothing
  loss, _, _ = losses.compute_weighted_cross_entropy(
      jnp.log(soft)[None, None], jnp.array([[2]]), label_smoothing=smoothing
  )
  np.testing.assert_allclose(loss, 0, atol=1e-6)


def test_factor_divides_both_losses():
  logits, _ = _arrays()
  targets = jnp.array([[1, 2, 3], [4, 0, 0]])
  one = losses.compute_weighted_cross_entropy(logits, targets, z_loss=0.5)
  four = losses.compute_weighted_cross_entropy(
      logits, targets, z_loss=0.5, loss_normalizing_factor=4.0
  )
  np.testing.assert_allclose(one[0], 4 * four[0], rtol=1e-6)
  np.testing.assert_allclose(one[1], 4 * four[1], rtol=1e-6)
  assert one[2] == four[2] == 6


def test_wrong_rank_is_an_error():
  with pytest.raises(ValueError, match='one dimension more'):
    losses.compute_weighted_cross_entropy(jnp.zeros((2, 3)), jnp.zeros((2, 3)))


TOKENS = jnp.array([[1, 2, 3, 4, 0], [5, 6, 0, 0, 0]])
REAL = np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]], np.float32)


@pytest.mark.parametrize(
    ('name', 'factor', 'weights'),
    [
        ('num_real_target_tokens', 6, REAL),
        ('NUM_TOTAL_TARGET_TOKENS', 10, REAL),
        ('Average_Per_Sequence', 2, REAL / [[4], [2]]),
    ],
)
def test_special_factors(name, factor, weights):
  got = losses.get_loss_normalizing_factor_and_weights(
      name, {'decoder_target_tokens': TOKENS}
  )
  np.testing.assert_allclose(got[0], factor)
  np.testing.assert_allclose(got[1], weights)
  member = losses.SpecialLossNormalizingFactor[name.upper()]
  again = losses.get_loss_normalizing_factor_and_weights(
      member, {'decoder_target_tokens': TOKENS}
  )
  np.testing.assert_allclose(again[0], factor)


def test_numbers_and_none_pass_through():
  batch = {'decoder_target_tokens': TOKENS, 'decoder_loss_weights': REAL}
  for factor in (None, 3.5):
    got = losses.get_loss_normalizing_factor_and_weights(factor, batch)
    assert got[0] == factor
    assert got[1] is REAL


def test_packed_segments_count_alike():
  weights = jnp.array([[0.5, 1.0, 0.25, 2.0, 1.5], [1.0, 2.0, 3.0, 4.0, 5.0]])
  batch = {
      'decoder_target_tokens': TOKENS,
      'decoder_loss_weights': weights,
      'decoder_positions': jnp.array([[0, 1, 2, 0, 0], [0, 0, 1, 0, 0]]),
      'decoder_segment_ids': jnp.array([[1, 1, 1, 2, 3], [1, 2, 2, 3, 0]]),
  }
  sums = losses._sum_weights_per_segment(
      batch['decoder_positions'], batch['decoder_segment_ids'], weights
  )
  np.testing.assert_allclose(
      sums, [[1.75, 1.75, 1.75, 2.0, 1.5], [1.0, 5.0, 5.0, 4.0, 0.0]]
  )
  factor, normalised = losses.get_loss_normalizing_factor_and_weights(
      'AVERAGE_PER_SEQUENCE', batch
  )
  np.testing.assert_allclose(factor, 6, rtol=1e-6)
  assert normalised[1, 4] == 0


def test_unknown_factor_lists_the_known():
  with pytest.raises(ValueError, match='NUM_REAL_TARGET_TOKENS'):
    losses.get_loss_normalizing_factor_and_weights(
        'num_tokens', {'decoder_target_tokens': TOKENS}
    )
