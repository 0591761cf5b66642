from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x import models


class Table(nn.Module):
  """Logits by the previous token alone."""

  @nn.compact
  def __call__(self, tokens):
    return nn.Embed(6, 6)(tokens)


class Bigrams(models.BaseTransformerModel):

  def _compute_logits(self, params, batch, dropout_rng=None):
    return self.module.apply({'params': params}, batch['decoder_input_tokens'])

  def get_initial_variables(self, rng, input_shapes, input_types=None):
    shape = input_shapes['decoder_input_tokens']
    return self.module.init(rng, jnp.ones(shape, jnp.int32))

  def predict_batch_with_aux(self, params, batch, rng=None):
    logits = self._compute_logits(params, batch)
    return jnp.argmax(logits, -1), {'scores': jnp.max(logits, (-1, -2))}

  def score_batch(self, params, batch, return_intermediates=False):
    raise AssertionError('not scored here')


BATCH = {
    'encoder_input_tokens': jnp.array([[7, 8, 1], [9, 1, 0]]),
    'decoder_input_tokens': jnp.array([[0, 2, 3, 4], [0, 5, 0, 0]]),
    'decoder_target_tokens': jnp.array([[2, 3, 4, 1], [5, 1, 0, 0]]),
}


def _model(**kwargs):
  model = Bigrams(Table(), 'in', 'out', None, **kwargs)
  variables = model.get_initial_variables(
      jax.random.PRNGKey(0), {'decoder_input_tokens': (2, 4)}
  )
  return model, variables['params']


def test_loss_is_the_sum_over_real_tokens():
  model, params = _model(loss_normalizing_factor='NUM_REAL_TARGET_TOKENS')
  loss, metrics = model.loss_fn(params, BATCH, None)
  table = np.asarray(params['Embed_0']['embedding'])
  targets = np.asarray(BATCH['decoder_target_tokens'])
  logits = table[np.asarray(BATCH['decoder_input_tokens'])]
  log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  picked = np.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
  expected = -picked[targets > 0].mean()
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_allclose(metrics['loss'].compute(), expected, rtol=1e-5)
  hits = (logits.argmax(-1) == targets)[targets > 0]
  np.testing.assert_allclose(metrics['accuracy'].compute(), hits.mean())


def test_evaluation_and_prediction_use_the_same_functions():
  model, params = _model()
  loss, _ = model.eval_fn(params, BATCH)
  np.testing.assert_array_equal(loss, model.loss_fn(params, BATCH, None)[0])
  ids, aux = model.predict_batch_with_aux(params, BATCH)
  np.testing.assert_array_equal(ids, model.predict_batch(params, BATCH))
  assert aux['scores'].shape == (2,)
  assert (model.input_vocabulary, model.output_vocabulary) == ('in', 'out')


def test_z_loss_is_part_of_the_loss_and_reported_apart():
  model, params = _model(z_loss=0.1)
  plain, _ = _model()
  loss, metrics = model.loss_fn(params, BATCH, None)
  cross_entropy, _ = plain.loss_fn(params, BATCH, None)
  z_loss = metrics['z_loss'].compute()
  assert z_loss > 0
  np.testing.assert_allclose(loss, cross_entropy + z_loss, rtol=1e-5)
  np.testing.assert_allclose(
      metrics['cross_ent_loss'].compute(), cross_entropy, rtol=1e-5
  )
  np.testing.assert_allclose(
      metrics['z_loss_per_all_target_tokens'].compute(), z_loss / 8, rtol=1e-5
  )


def test_base_metrics_by_hand():
  logits = jax.nn.one_hot(jnp.array([[1, 2, 0, 0]]), 3)
  metrics = models.compute_base_metrics(
      logits=logits,
      targets=jnp.array([[1, 1, 2, 0]]),
      mask=jnp.array([[1.0, 1.0, 1.0, 0.0]]),
      loss=jnp.asarray(6.0),
      z_loss=jnp.asarray(2.0),
      segment_ids={
          'encoder': jnp.array([[1, 1, 2, 2]]),
          'decoder': jnp.array([[1, 2, 3, 0]]),
          'absent': None,
      },
  )
  metrics = {
      name: m.replace_duration(2.0) if hasattr(m, 'duration') else m
      for name, m in metrics.items()
  }
  metrics = {
      name: m.replace_steps(1) if hasattr(m, 'steps') else m
      for name, m in metrics.items()
  }
  values = {name: float(m.compute()) for name, m in metrics.items()}
  assert values == pytest.approx(
      {
          'accuracy': 1 / 3,
          'loss': 6,
          'z_loss': 2,
          'cross_ent_loss': 4,
          'loss_per_nonpadding_target_token': 2,
          'loss_per_all_target_tokens': 1.5,
          'z_loss_per_all_target_tokens': 0.5,
          'cross_ent_loss_per_all_target_tokens': 1,
          'timing/steps_per_second': 0.5,
          'timing/seconds': 2,
          'timing/seqs': 1,
          'timing/seqs_per_second': 0.5,
          'timing/seqs_per_second_per_core': 0.5 / jax.device_count(),
          'timing/target_tokens_per_second': 2,
          'timing/target_tokens_per_second_per_core': 2 / jax.device_count(),
          'non_padding_fraction/loss_weights': 0.75,
          'non_padding_fraction/encoder': 1,
          'non_padding_fraction/decoder': 0.75,
          'non_padding_fraction/overall': 7 / 8,
          'effective_batch_size/encoder': 2,
          'effective_batch_size/decoder': 3,
      }
  )


def test_without_packing_a_real_token_is_one_that_is_not_zero():
  model, params = _model()
  _, metrics = model.loss_fn(params, BATCH, None)
  assert metrics['non_padding_fraction/encoder'].compute() == 5 / 6
  assert metrics['non_padding_fraction/decoder'].compute() == 6 / 8
  assert metrics['effective_batch_size/decoder'].compute() == 2


def test_packed_examples_are_counted():
  ids = jnp.array([[1, 1, 2, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
  assert models.count_packed_examples(ids) == 3


def test_mutable_collections_come_back_beside_the_metrics():
  class Counting(Bigrams):

    def _compute_logits(
        self,
        params,
        batch,
        dropout_rng=None,
        mutable=False,
        other_variables=None,
    ):
      logits = super()._compute_logits(params, batch)
      assert mutable == ['counter']
      return logits, {'counter': {'n': other_variables['counter']['n'] + 1}}

  model = Counting(Table(), None, None, None)
  _, params = _model()
  mutables = {'counter': {'n': 1}}
  _, (metrics, mutables) = model.loss_fn(params, BATCH, None, mutables)
  assert mutables['counter']['n'] == 2
  assert 'loss' in metrics
