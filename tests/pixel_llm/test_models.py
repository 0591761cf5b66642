"""The T5X model: losses equal the original's, whatever the batch is cut into."""

from golden_models import golden_model
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_llm import generation
from pixel_llm import models


@pytest.fixture(scope='module')
def refseg():
  return golden_model('model_refseg_t5')


@pytest.fixture(scope='module')
def score(refseg):
  _, model, _ = refseg
  return jax.jit(lambda p, b: model.score_batch(p, b, True))


@pytest.fixture(scope='module')
def greedy():
  case, model, batch = golden_model('model_refseg_t5', generation.Greedy())
  return case, jax.jit(model.predict_batch_with_aux), batch


@pytest.mark.golden
@pytest.mark.parametrize('name', ['model_trace_t5', 'model_refseg_t5'])
def test_the_loss_of_a_task_pure_batch_equals_the_original(name):
  case, model, batch = golden_model(name)
  loss, metrics = jax.jit(model.loss_fn, static_argnums=2)(
      case.params, batch, None
  )
  np.testing.assert_allclose(
      loss, case.expected['out/loss/total_loss'], rtol=1e-4
  )
  np.testing.assert_allclose(
      metrics['point_loss'].total,
      case.expected['out/loss/point_loss'],
      rtol=1e-4,
  )


def test_slices_of_a_prepared_batch_sum_to_the_whole(refseg):
  case, model, batch = refseg
  loss_fn = jax.jit(model.loss_fn, static_argnums=2)
  whole, _ = loss_fn(case.params, batch, None)
  prepared = model.prepare_batch(batch)
  parts = [
      loss_fn(
          case.params,
          jax.tree.map(lambda x, i=i: x[i : i + 1], prepared),
          None,
      )[0]
      for i in range(2)
  ]
  np.testing.assert_allclose(sum(parts), whole, rtol=1e-5)


def test_a_text_without_an_end_token_has_no_box(refseg):
  case, model, batch = refseg
  _, aux = jax.jit(model.predict_batch_with_aux)(case.params, batch)
  has_end = (batch['text_tokens'] == 1).any(-1)
  assert has_end.any() and not has_end.all()
  np.testing.assert_array_equal(aux['box_mask'], has_end)


def test_scores_are_log_likelihoods_of_the_given_text(refseg, score):
  case, model, batch = refseg
  scores, intermediates = score(case.params, batch)
  outputs = jax.jit(model.module.apply)(
      {'params': case.params},
      *(jnp.asarray(batch[name]) for name in models.NETWORK_INPUTS),
  )
  log_probs = jax.nn.log_softmax(outputs.text.logits[1, 1])
  tokens = batch['text_tokens'][1, 1]
  by_hand = sum(
      log_probs[t - 1, tokens[t]] for t in range(1, 12) if tokens[t] > 0
  )
  np.testing.assert_allclose(scores[1, 1], by_hand, rtol=1e-4)
  (token_scores,) = intermediates['decoder']['token_scores']
  np.testing.assert_allclose(token_scores.sum(-1), scores, rtol=1e-5)


@pytest.mark.golden
def test_decoded_predictions_equal_the_original(greedy):
  case, predict, batch = greedy
  # Its captions join no loss, yet the figures are of captions that are written.
  weights = np.ones_like(batch['caption_weights'])
  tokens, aux = predict(case.params, batch | {'caption_weights': weights})
  # The original decodes padding too; here it gets no text and so no box.
  valid = batch['prompt_mask']
  assert valid.any() and not valid.all()
  np.testing.assert_array_equal(
      tokens[valid], case.expected['out/greedy/final_text_tokens'][valid]
  )
  np.testing.assert_allclose(
      aux['boxes'][valid],
      case.expected['out/greedy/final_detection_boxes'][valid],
      atol=1e-2,
  )
  np.testing.assert_array_equal(
      tokens[~valid], np.eye(1, tokens.shape[2], 1).repeat((~valid).sum(), 0)
  )


def test_an_expression_is_read_beside_a_caption_that_is_written(greedy, score):
  case, predict, batch = greedy
  weights = np.ones_like(batch['caption_weights'])
  written, _ = predict(case.params, batch | {'caption_weights': weights})
  # The second image is referred to. A new array: JAX may still read the first.
  weights = weights * np.array([[1], [0]], weights.dtype)
  tokens, aux = predict(case.params, batch | {'caption_weights': weights})
  np.testing.assert_array_equal(tokens[0], written[0])
  valid = batch['prompt_mask'][1]
  given = generation.zero_after_end(batch['text_tokens'][1], 1)
  assert (written[1] != given)[valid].any()
  np.testing.assert_array_equal(tokens[1][valid], given[valid])
  np.testing.assert_allclose(
      aux['points'][1][valid], aux['gt_text_points'][1][valid], atol=1e-3
  )
  scores, _ = score(case.params, batch)
  np.testing.assert_allclose(
      aux['scores'][1][valid], scores[1][valid], rtol=1e-4
  )


def test_a_missing_feature_is_named(refseg):
  _, model, batch = refseg
  shapes = {k: v.shape for k, v in batch.items() if k != 'context_tokens'}
  with pytest.raises(ValueError, match="lacks \\['context_tokens'\\]"):
    model.get_initial_variables(jax.random.key(0), shapes)


def test_initial_parameters_all_have_logical_axes(refseg):
  case, model, batch = refseg
  variables = jax.eval_shape(
      lambda: model.get_initial_variables(
          jax.random.PRNGKey(0), {k: v.shape for k, v in batch.items()}
      )
  )
  shapes = jax.tree.map(jnp.shape, case.params)
  assert jax.tree.map(lambda x: x.shape, variables['params']) == shapes
  assert jax.tree.structure(
      jax.tree.map(lambda _: 0, variables['params'])
  ).num_leaves == len(
      jax.tree.leaves(
          variables['params_axes'], is_leaf=lambda x: hasattr(x, 'names')
      )
  )
