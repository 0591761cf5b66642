import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_regression

from t5x import trainer as trainer_lib


def _grads(num_microbatches, frozen=True):
  model = tiny_regression.Regression(tiny_regression.optimizer(frozen))
  state = tiny_regression.state(model)
  (batch,) = tiny_regression.batches(1)
  grads, metrics, mutables = trainer_lib.accumulate_grads_microbatched(
      model, state, batch, jax.random.PRNGKey(0), num_microbatches
  )
  assert mutables is None
  return grads, metrics


@pytest.mark.parametrize('frozen', [True, False])
@pytest.mark.parametrize('num_microbatches', [2, 4])
def test_microbatches_equal_the_whole_batch(num_microbatches, frozen):
  whole, whole_metrics = _grads(1, frozen)
  parts, part_metrics = _grads(num_microbatches, frozen)
  assert jax.tree.structure(whole) == jax.tree.structure(parts)
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
      whole,
      parts,
  )
  np.testing.assert_allclose(
      part_metrics['mean_error'].compute(),
      whole_metrics['mean_error'].compute(),
      rtol=1e-5,
  )
  np.testing.assert_allclose(
      part_metrics['loss'].replace_steps(1).compute(),
      whole_metrics['loss'].compute(),
      rtol=1e-5,
  )


class MeanRegression(tiny_regression.Regression):
  """A weighted mean, whose normaliser only the whole batch can tell."""

  def prepare_batch(self, batch):
    total = jnp.sum(batch['weight'])
    return {**batch, 'total': jnp.full_like(batch['weight'], total)}

  def loss_fn(self, params, batch, dropout_rng):
    if 'total' not in batch:
      batch = self.prepare_batch(batch)
    _, metrics = super().loss_fn(params, batch, dropout_rng)
    outputs, _ = self.predict_batch_with_aux(params, batch)
    errors = jnp.square(outputs - batch['y']) * batch['weight']
    return jnp.sum(errors) / batch['total'][0], metrics


@pytest.mark.parametrize('num_microbatches', [2, 4])
def test_a_mean_over_the_batch_survives_microbatches(num_microbatches):
  model = MeanRegression(tiny_regression.optimizer(False))
  state = tiny_regression.state(model)
  (batch,) = tiny_regression.batches(1)
  weight = np.linspace(0, 1, batch['y'].shape[0], dtype=np.float32)
  grads = [
      trainer_lib.accumulate_grads_microbatched(
          model, state, {**batch, 'weight': weight}, None, count
      )[0]
      for count in (1, num_microbatches)
  ]
  jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
      *grads,
  )


def test_no_microbatches_is_the_whole_batch():
  whole, _ = _grads(1)
  none, _ = _grads(None)
  jax.tree.map(np.testing.assert_array_equal, whole, none)


@pytest.mark.parametrize('num_microbatches', [1, 2])
def test_frozen_parameters_have_no_gradient(num_microbatches):
  frozen, _ = _grads(num_microbatches)
  full, _ = _grads(num_microbatches, frozen=False)
  assert frozen[tiny_regression.FROZEN] == {'kernel': None}
  for name in ('hidden', 'head'):
    np.testing.assert_allclose(
        frozen[name]['kernel'], full[name]['kernel'], rtol=1e-6
    )


def test_frozen_parameters_are_not_differentiated():
  model = tiny_regression.Regression(tiny_regression.optimizer())
  (batch,) = tiny_regression.batches(1)

  def matrix_products(model):
    jaxpr = jax.make_jaxpr(
        lambda batch: trainer_lib.accumulate_grads_microbatched(
            model, tiny_regression.state(model), batch, None, 1
        )[0]
    )(batch)
    return str(jaxpr).count('dot_general')

  everything = tiny_regression.Regression(
      tiny_regression.optimizer(frozen=False)
  )
  assert matrix_products(model) < matrix_products(everything)


def test_microbatches_use_float32_sums_and_different_dropout():
  model = tiny_regression.Regression(
      tiny_regression.optimizer(frozen=False), dropout_rate=0.5
  )
  state = tiny_regression.state(model)
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state.params)
  state = state.replace_params(params)
  (batch,) = tiny_regression.batches(1, batch_size=2)
  twice = jax.tree.map(lambda x: np.concatenate([x, x]), batch)
  _, metrics, _ = trainer_lib.accumulate_grads_microbatched(
      model, state, batch, jax.random.PRNGKey(0), None
  )
  grads, both, _ = trainer_lib.accumulate_grads_microbatched(
      model, state, twice, jax.random.PRNGKey(0), 2
  )
  assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype('float32')}
  assert both['loss'].total != 2 * metrics['loss'].total


def test_uneven_microbatches_are_an_error():
  with pytest.raises(ValueError, match='8 does not divide into 3'):
    _grads(3)


def test_mutable_collections_pass_from_slice_to_slice():
  class Counting(tiny_regression.Regression):

    def loss_fn(self, params, batch, dropout_rng, flax_mutables):
      loss, metrics = super().loss_fn(params, batch, dropout_rng)
      mutables = {'counter': {'n': flax_mutables['counter']['n'] + 1}}
      return loss, (metrics, mutables)

  model = Counting(tiny_regression.optimizer())
  state = tiny_regression.state(model).replace_flax_mutables(
      {'counter': {'n': jnp.zeros((), jnp.int32)}}
  )
  (batch,) = tiny_regression.batches(1)
  for num_microbatches in (1, 4):
    _, _, mutables = trainer_lib.accumulate_grads_microbatched(
        model, state, batch, None, num_microbatches
    )
    assert mutables['counter']['n'] == num_microbatches
  assert 'loss' in trainer_lib.eval_step(model, state, batch)


def test_weight_metrics_cover_trainable_parameters_only():
  model = tiny_regression.Regression(tiny_regression.optimizer())
  state = tiny_regression.state(model)
  (batch,) = tiny_regression.batches(1)
  grads, metrics, _ = trainer_lib.accumulate_grads_microbatched(
      model, state, batch, None, None
  )
  new_state, metrics = trainer_lib.apply_grads(
      state, grads, metrics, 0.25, trainer_lib.WeightMetricsComputer()
  )
  assert not any(tiny_regression.FROZEN in name for name in metrics)
  norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads)))
  np.testing.assert_allclose(
      metrics['weight_gradient_norm'].compute(), norm, rtol=1e-6
  )
  kernel = np.asarray(new_state.params['head']['kernel'])
  np.testing.assert_allclose(
      metrics['weight_max/head/kernel'].compute(), np.abs(kernel).max()
  )
  np.testing.assert_allclose(
      metrics['weight_rms/head/kernel'].compute(),
      np.sqrt(np.mean(kernel**2)),
      rtol=1e-6,
  )
  assert metrics['learning_rate'].compute() == 0.25
  assert metrics['learning_rate/current'].compute() == 0.25
