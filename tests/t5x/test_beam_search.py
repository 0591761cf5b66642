"""Beam search against every sequence of a small language."""

import functools

from hash_language import EOS
from hash_language import PROMPTS
from hash_language import all_sequences
from hash_language import always
from hash_language import counted
from hash_language import log_prob
from hash_language import never_ends
from hash_language import new_cache
from hash_language import prefilled_cache
from hash_language import prompt_rows
from hash_language import run
from hash_language import step_fn
from hash_language import table
import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x import decoding


@functools.partial(jax.jit, static_argnames='num_decodes')
def search(logits, inputs, alpha, num_decodes):
  return decoding.beam_search(
      inputs,
      new_cache(len(inputs)),
      step_fn(logits),
      EOS,
      num_decodes=num_decodes,
      alpha=alpha,
  )


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(
    seed=st.integers(0, 1000),
    alpha=st.sampled_from([0.0, 0.6, 1.0]),
    prompt=st.sampled_from(PROMPTS),
)
def test_a_wide_beam_finds_the_best_of_all_sequences(seed, alpha, prompt):
  logits, length = table(seed), 5
  inputs = prompt_rows([prompt], length)
  tokens, scores = map(np.asarray, search(logits, inputs, alpha, 16))
  expected = {
      (*text, *[0] * (length - len(text))): (
          log_prob(logits, text, len(prompt)) / ((5 + len(text)) / 6) ** alpha
      )
      for text in all_sequences(length, prompt)
  }
  best = sorted(expected, key=expected.get)[-8:]
  found = [tuple(text) for text in tokens[0, -len(best) :].tolist()]
  assert found == best
  np.testing.assert_allclose(
      scores[0, -len(best) :], [expected[t] for t in best], rtol=1e-4
  )


@pytest.mark.parametrize('offset', [0, 1])
def test_rows_do_not_see_each_other(offset):
  logits = table(1)
  inputs = prompt_rows(PROMPTS, 6)
  together, scores = run(
      decoding.beam_search,
      inputs,
      new_cache(len(inputs), offset),
      step_fn(logits, offset),
      EOS,
      num_decodes=2,
      cache_offset=offset,
  )
  for row in range(len(inputs)):
    alone, score = search(logits, inputs[row : row + 1], 0.6, 2)
    np.testing.assert_array_equal(together[row], alone[0])
    np.testing.assert_allclose(scores[row], score[0], rtol=1e-6)


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize(
    ('decode', 'settings'),
    [
        (decoding.beam_search, {'num_decodes': 3}),
        (decoding.temperature_sample, {'num_decodes': 1}),
        (decoding.temperature_sample, {'num_decodes': 2, 'topk': 1}),
    ],
)
def test_a_prefilled_cache_gives_what_a_forced_prompt_gives(
    decode, settings, offset
):
  inputs = prompt_rows(PROMPTS, 7)
  lengths = [len(prompt) for prompt in PROMPTS]
  step = step_fn(table(2), offset)
  results = [
      jax.jit(
          lambda cache, index: decode(
              inputs,
              cache,
              step,
              EOS,
              cache_offset=offset,
              initial_index=index,
              **settings,
          )
      )(cache, index)
      for cache, index in (
          (new_cache(len(inputs), offset), None),
          (prefilled_cache(inputs, lengths, offset), jnp.array(lengths)),
      )
  ]
  np.testing.assert_array_equal(results[0][0], results[1][0])
  np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-5)
  for row, prompt in zip(results[1][0], PROMPTS):
    assert (np.asarray(row)[:, : len(prompt)] == prompt).all()


def test_a_full_prompt_comes_back():
  inputs = np.array([[0, 2, 3, 2], [0, 3, 3, 0]])
  tokens, _ = run(
      decoding.beam_search,
      inputs,
      new_cache(2),
      step_fn(table(3)),
      EOS,
      num_decodes=2,
  )
  np.testing.assert_array_equal(tokens[0, -1, :3], [2, 3, 2])
  np.testing.assert_array_equal(tokens[1, -1, :2], [3, 3])


def test_without_an_end_the_live_beams_come_back_in_order():
  tokens, scores = run(
      decoding.beam_search,
      np.zeros((1, 3), np.int32),
      {},
      never_ends,
      EOS,
      num_decodes=2,
  )
  np.testing.assert_array_equal(tokens[0, 1], [2, 2, 2])
  assert sorted(tokens[0, 0].tolist()) == [2, 2, 3]
  np.testing.assert_allclose(
      scores[0], np.log([1 / 3 * 4 / 9, 8 / 27]), rtol=1e-5
  )


def num_steps(**settings):
  step, calls = counted(never_ends)
  inputs = np.zeros((1, 6), np.int32)
  run(decoding.beam_search, inputs, {}, step, EOS, num_decodes=2, **settings)
  jax.effects_barrier()
  return len(calls)


@pytest.mark.parametrize(
    ('settings', 'expected'),
    [
        ({}, 6),
        ({'max_decode_len': 4}, 4),
        ({'max_decode_step': 2}, 2),
        # Each step multiplies by 2/3 at best: below 0.4 after three.
        ({'min_log_prob': np.log(0.4)}, 3),
    ],
)
def test_beam_search_stops_at_its_limits(settings, expected):
  assert num_steps(**settings) == expected


def test_beam_search_stops_when_nothing_can_improve():
  step, calls = counted(always([1e-9, 0.9, 0.06, 0.04]))
  tokens, _ = run(
      decoding.beam_search,
      np.zeros((1, 30), np.int32),
      {},
      step,
      EOS,
      num_decodes=2,
  )
  jax.effects_barrier()
  assert len(calls) < 5
  np.testing.assert_array_equal(tokens[0, 1, :2], [EOS, 0])
  np.testing.assert_array_equal(tokens[0, 0, :3], [2, EOS, 0])


def test_the_prompt_counts_for_the_length():
  step = always([1e-9, 0.5, 0.25, 0.25])
  _, scores = run(
      decoding.beam_search,
      prompt_rows([(2, 2)], 5),
      {},
      step,
      EOS,
      num_decodes=1,
      alpha=1.0,
  )
  np.testing.assert_allclose(scores[0, 0], np.log(0.5) / (8 / 6), rtol=1e-5)


# Sampling.
