"""Drawn texts: their distribution, their scores, and what moves no draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_llm import generation
from pixel_llm import sampling
from pixel_llm.modules import decode_cache

END = 1
EMPTY = decode_cache.DecodeCache(shared=(), beams=())
# Scores of the next token by the last one; row t is a distribution.
PROBABILITIES = np.array([0.05, 0.1, 0.15, 0.3, 0.4], np.float32)
FLAT_TABLE = np.log(np.broadcast_to(PROBABILITIES, (5, 5)))


def table_step(table):
  table = jnp.asarray(table)
  return lambda cache, sequences, index: (table[sequences[:, :, index]], cache)


def draw(decoder, keys, table=FLAT_TABLE, length=4, row_mask=None):
  start = generation.start_tokens(len(keys), length, 0, END)
  return jax.jit(
      lambda keys: decoder(table_step(table), EMPTY, start, END, row_mask, keys)
  )(keys)


def keys_of(num_rows, seed=0):
  return sampling.row_keys(jax.random.key(seed), num_rows, 1)


@pytest.mark.parametrize(
    ('decoder', 'expected'),
    [
        (sampling.Sample(), PROBABILITIES),
        (sampling.Sample(temperature=0.5), PROBABILITIES**2),
        (sampling.Sample(top_k=2), [0, 0, 0, 0.3, 0.4]),
        # 0.4 + 0.3 reach 0.6; the token that reaches it belongs to them.
        (sampling.Sample(top_p=0.6), [0, 0, 0, 0.3, 0.4]),
        (sampling.Sample(top_p=0.1), [0, 0, 0, 0, 1]),
        # Of the three likeliest, 0.8 of their 0.85 needs all three.
        (sampling.Sample(top_k=3, top_p=0.85), [0, 0, 0.15, 0.3, 0.4]),
        (sampling.Sample(top_k=3, top_p=0.8), [0, 0, 0, 0.3, 0.4]),
        (sampling.Sample(top_k=99), PROBABILITIES),
    ],
    ids=repr,
)
def test_tokens_have_the_distribution_that_was_asked_for(decoder, expected):
  num_draws = 4000
  tokens = draw(decoder, keys_of(num_draws), length=3).tokens[:, 0, 1]
  found = np.bincount(tokens, minlength=5) / num_draws
  expected = np.asarray(expected) / np.sum(expected)
  np.testing.assert_array_equal(found[expected == 0], 0)
  # Four standard deviations.
  sigma = np.sqrt(expected * (1 - expected) / num_draws)
  np.testing.assert_array_less(np.abs(found - expected), 4 * sigma + 1e-9)


def test_temperature_0_takes_the_likeliest_token_and_needs_no_key():
  table = jax.random.normal(jax.random.key(2), (7, 7))
  start = generation.start_tokens(1, 9, 0, END)
  cold = sampling.Sample(temperature=0.0)(table_step(table), EMPTY, start, END)
  expected = [0]
  while expected[-1] != END and len(expected) < 8:
    expected.append(int(jnp.argmax(table[expected[-1]])))
  expected += [END] * (9 - len(expected))
  np.testing.assert_array_equal(cold.best_tokens[0], expected)
  # So does a temperature that is only nearly 0.
  tiny = draw(sampling.Sample(temperature=1e-30), keys_of(1), table, 9)
  np.testing.assert_array_equal(tiny.tokens, cold.tokens)
  np.testing.assert_array_equal(tiny.scores, cold.scores)


def test_without_repeats_temperature_0_is_greedy():
  table = 4 * jax.random.normal(jax.random.key(3), (9, 9))
  table = table.at[jnp.arange(9), jnp.arange(9)].set(-1e4)
  start = generation.start_tokens(1, 7, 0, END)
  arguments = (table_step(table), EMPTY, start, END)
  greedy = generation.Greedy()(*arguments)
  cold = sampling.Sample(temperature=0.0)(*arguments)
  np.testing.assert_array_equal(greedy.tokens, cold.tokens)
  np.testing.assert_array_equal(greedy.scores, cold.scores)


@pytest.mark.parametrize('cut', [{}, {'top_k': 3}, {'temperature': 0.5}])
def test_a_score_is_the_models_own_mean_log_probability(cut):
  found = draw(sampling.Sample(num_samples=6, **cut), keys_of(3), length=7)
  for tokens, score in zip(
      found.tokens.reshape(-1, 7), found.scores.reshape(-1)
  ):
    text = list(tokens[1:6])
    if END in text:
      text = text[: text.index(END) + 1]
    total = sum(np.log(PROBABILITIES[t]) for t in text)
    words = sum(t != END for t in text)
    np.testing.assert_allclose(score, total / max(1, words), rtol=1e-5)
  assert np.all(np.diff(found.scores, axis=1) >= 0), 'the best is not last'
  assert len(np.unique(found.tokens.reshape(-1, 7), axis=0)) > 3


def test_rows_and_further_samples_move_no_draw():
  table = jax.random.normal(jax.random.key(4), (9, 9))
  keys = keys_of(5)
  together = draw(sampling.Sample(3), keys, table, 8)
  alone = draw(sampling.Sample(3), keys[3:4], table, 8)
  np.testing.assert_array_equal(together.tokens[3:4], alone.tokens)
  np.testing.assert_array_equal(together.scores[3:4], alone.scores)
  more = draw(sampling.Sample(5), keys, table, 8)
  for few, many in zip(together.tokens, more.tokens):
    assert {tuple(t.tolist()) for t in few} <= {tuple(t.tolist()) for t in many}
  other = draw(sampling.Sample(3), keys_of(5, seed=1), table, 8)
  assert np.any(other.tokens != together.tokens)


@pytest.mark.parametrize('impl', ['threefry2x32', 'unsafe_rbg'])
def test_the_key_of_a_prompt_depends_on_its_place_alone(impl):
  rng = jax.random.key(7, impl=impl)
  few = jax.random.key_data(sampling.row_keys(rng, 2, 3)).reshape(2, 3, -1)
  many = jax.random.key_data(sampling.row_keys(rng, 4, 5)).reshape(4, 5, -1)
  np.testing.assert_array_equal(many[:2, :3], few)
  assert len(np.unique(many.reshape(20, -1), axis=0)) == 20


def test_raw_keys_as_t5x_passes_them_equal_typed_ones():
  raw, typed = (
      jax.random.key_data(sampling.row_keys(rng, 2, 3))
      for rng in (jax.random.PRNGKey(5), jax.random.key(5))
  )
  np.testing.assert_array_equal(raw, typed)


def test_a_row_that_needs_no_text_keeps_the_start_state():
  mask = jnp.array([True, False, True])
  keys = keys_of(3)
  found = draw(sampling.Sample(2), keys, length=6, row_mask=mask)
  plain = draw(sampling.Sample(2), keys, length=6)
  np.testing.assert_array_equal(found.tokens[1], [[0, 1, 1, 1, 1, 1]] * 2)
  np.testing.assert_array_equal(found.scores[1], 0.0)
  np.testing.assert_array_equal(found.tokens[mask], plain.tokens[mask])
  np.testing.assert_array_equal(found.scores[mask], plain.scores[mask])


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'num_samples': 0}, 'num_samples is 0'),
        ({'temperature': -0.1}, 'temperature is -0.1'),
        ({'temperature': float('nan')}, 'temperature is nan'),
        ({'temperature': float('inf')}, 'temperature is inf'),
        ({'top_k': -1}, 'top_k is -1'),
        ({'top_p': 0.0}, r'top_p is 0.0.*\(0, 1\]'),
        ({'top_p': 1.5}, 'top_p is 1.5'),
    ],
)
def test_bad_settings_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    sampling.Sample(**settings)


def test_drawing_without_a_key_is_refused():
  start = generation.start_tokens(1, 4, 0, END)
  with pytest.raises(ValueError, match='pass `rng`'):
    sampling.Sample()(table_step(FLAT_TABLE), EMPTY, start, END)
