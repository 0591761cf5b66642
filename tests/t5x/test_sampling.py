"""Greedy and temperature sampling: texts, distributions, callbacks, limits."""

from hash_language import EOS
from hash_language import PROMPTS
from hash_language import always
from hash_language import counted
from hash_language import greedy
from hash_language import log_prob
from hash_language import never_ends
from hash_language import new_cache
from hash_language import prompt_rows
from hash_language import run
from hash_language import step_fn
from hash_language import table
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x import decoding
from t5x import sampling


@pytest.mark.parametrize(
    'settings', [{'topk': 1}, {'topk': 0, 'temperature': 0.0}]
)
def test_greedy_follows_the_table_through_prompts(settings):
  logits = table(4)
  tokens, scores = run(
      decoding.temperature_sample,
      prompt_rows(PROMPTS, 8),
      new_cache(4),
      step_fn(logits),
      EOS,
      **settings,
  )
  expected = [greedy(logits, 8, prompt) for prompt in PROMPTS]
  np.testing.assert_array_equal(tokens[:, 0], expected)
  np.testing.assert_array_equal(scores, np.zeros((4, 1)))


def test_unscaled_log_probs_are_those_of_the_model():
  logits = table(5)
  inputs = prompt_rows(PROMPTS, 6)
  tokens, scores = run(
      decoding.temperature_sample,
      inputs,
      new_cache(4),
      step_fn(logits),
      EOS,
      jax.random.PRNGKey(3),
      num_decodes=3,
      temperature=0.7,
      topk=2,
      rescale_log_probs=False,
  )
  assert (np.diff(scores) >= 0).all()
  for prompt, row, row_scores in zip(PROMPTS, tokens, scores):
    for text, score in zip(row.tolist(), row_scores):
      end = len(text) if 0 not in text else text.index(0)
      expected = log_prob(logits, text[:end], len(prompt))
      np.testing.assert_allclose(score, expected, rtol=1e-4)


PROBS = np.array([0.05, 0.15, 0.3, 0.5])


@pytest.mark.parametrize(
    ('settings', 'expected'),
    [
        ({'topk': 0}, PROBS),
        ({'topk': 2}, [0, 0, 0.375, 0.625]),
        ({'topk': 0, 'topp': 0.6}, [0, 0, 0.375, 0.625]),
        ({'topk': 0, 'topp': 0.81}, np.array([0, 0.15, 0.3, 0.5]) / 0.95),
        ({'topk': 0, 'temperature': 0.5}, PROBS**2 / np.sum(PROBS**2)),
        # The temperature comes first: 0.27 and 0.71 are above 0.8.
        ({'topk': 0, 'temperature': 0.5, 'topp': 0.8}, [0, 0, 9 / 34, 25 / 34]),
    ],
)
def test_draws_are_distributed_as_told(settings, expected):
  num_rows = 4000
  logits = jnp.broadcast_to(jnp.log(PROBS), (num_rows, 4))
  tokens, log_probs = run(
      decoding.temperature_sample,
      np.zeros((num_rows, 1), np.int32),
      {},
      lambda state: (logits, {}),
      9,
      jax.random.PRNGKey(1),
      **settings,
  )
  expected = np.asarray(expected)
  counts = np.bincount(tokens.ravel(), minlength=4)
  sigma = np.sqrt(num_rows * expected * (1 - expected))
  assert (np.abs(counts - num_rows * expected) <= 4 * sigma).all()
  np.testing.assert_allclose(
      np.exp(log_probs[:, 0]), expected[tokens[:, 0, 0]], rtol=1e-4
  )


def test_every_row_has_its_own_temperature():
  num_decodes = 500
  logits = jnp.broadcast_to(jnp.log(PROBS), (2 * num_decodes, 4))
  tokens, _ = run(
      decoding.temperature_sample,
      np.zeros((2, 1), np.int32),
      {},
      lambda state: (logits, {}),
      9,
      temperature=np.array([0.0, 1.0]),
      topk=0,
      num_decodes=num_decodes,
  )
  assert (tokens[0] == 3).all()
  assert set(np.unique(tokens[1])) == {0, 1, 2, 3}


def test_limits_may_be_traced():
  logits = jnp.broadcast_to(jnp.log(PROBS), (300, 4))

  @jax.jit
  def sample(topk, topp, steps):
    return decoding.temperature_sample(
        jnp.zeros((300, 5), jnp.int32),
        {},
        lambda state: (logits, {}),
        9,
        topk=topk,
        topp=topp,
        max_decode_steps=steps,
        max_decode_steps_hard_limit=4,
    )[0][:, 0]

  for topk, topp, kept in (
      (2, 0.0, {2, 3}),
      (0, 0.9, {1, 2, 3}),
      (0, 0.0, {0, 1, 2, 3}),
  ):
    tokens = sample(topk, topp, 3)
    assert set(np.unique(tokens[:, :3])) == kept
    assert (tokens[:, 3:] == 0).all()
  greedy_row = np.array([3, 3, 3, 3, 0])
  assert (np.asarray(sample(1, 0.0, 5)) == greedy_row).all()


@pytest.mark.parametrize('prefilled', [False, True])
def test_steps_count_behind_the_prompt(prefilled):
  prompts = [(2,), (2, 2, 2), (2, 2)]
  step, calls = counted(always([1e-9, 1e-9, 0.3, 0.7]))
  tokens, _ = run(
      decoding.temperature_sample,
      prompt_rows(prompts, 6),
      {},
      step,
      EOS,
      initial_index=np.array([1, 3, 2]) if prefilled else None,
      max_decode_steps=2,
  )
  jax.effects_barrier()
  np.testing.assert_array_equal(
      tokens[:, 0],
      [[2, 3, 3, 0, 0, 0], [2, 2, 2, 3, 3, 0], [2, 2, 3, 3, 0, 0]],
  )
  assert len(calls) == (2 if prefilled else 5)


def test_callbacks_see_and_change_state_and_logits():
  steps = []

  def end_behind_a_three(state):
    jax.debug.callback(lambda step: steps.append(int(step)), state.step)
    rows = jnp.arange(state.sequences.shape[0])
    last = state.sequences[rows, state.cur_index]
    # Padding stays where the last token is not a three.
    token = jnp.where(
        last == 3, EOS, state.sequences[rows, state.cur_index + 1]
    )
    return state.replace(
        sequences=state.sequences.at[rows, state.cur_index + 1].set(token)
    )

  def only_three(logits, state):
    del state
    return jnp.where(jnp.arange(4) == 3, 0.0, -1e9) + 0 * logits

  tokens, _ = run(
      decoding.temperature_sample,
      prompt_rows([(2, 2), (2,)], 5),
      {},
      lambda state: (jnp.zeros((2, 4)), {}),
      EOS,
      state_callback_fn=end_behind_a_three,
      logit_callback_fn=only_three,
  )
  jax.effects_barrier()
  np.testing.assert_array_equal(
      tokens[:, 0], [[2, 2, 3, EOS, 0], [2, 3, EOS, 0, 0]]
  )
  assert sorted(steps) == [0, 1, 2, 3, 4]


def test_the_key_of_a_step_is_the_first_of_a_split():
  logits = jnp.broadcast_to(jnp.log(PROBS), (8, 4))
  key = jax.random.PRNGKey(11)
  tokens, _ = run(
      sampling._temperature_sample_single_trial,
      np.zeros((8, 3), np.int32),
      {},
      lambda s: (logits, {}),
      9,
      key,
      topk=0,
  )
  for column in range(3):
    step_key, key = jax.random.split(key)
    np.testing.assert_array_equal(
        tokens[:, column], jax.random.categorical(step_key, logits)
    )


def test_bad_limits_are_told():
  arguments = (np.zeros((1, 3), np.int32), {}, never_ends, EOS)
  with pytest.raises(ValueError, match='topk.*topp'):
    run(decoding.temperature_sample, *arguments, topk=2, topp=0.5)
  with pytest.raises(ValueError, match='max_decode_steps is 4'):
    run(decoding.temperature_sample, *arguments, max_decode_steps=4)


# Beams and caches.
