"""Decode functions over a model whose next token depends on all read so far."""

import functools
import itertools

import flax
import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x import decoding
from t5x import sampling

EOS = 1
NUM_STATES = 23
VOCAB = 4


def table(seed):
  """Logits of the next token by state; padding is all but impossible."""
  logits = np.random.default_rng(seed).normal(0, 2, (NUM_STATES, VOCAB))
  logits[:, 0] = -1e4
  return logits.astype(np.float32)


def next_hash(value, token):
  return (value * 5 + token + 1) % NUM_STATES


def step_fn(logits, offset=0):
  """A model that hashes what it reads; all layers do the same."""

  def step(state):
    cache = dict(state.cache)
    layers = cache['hash'] if offset else cache['hash'][None]
    layers = next_hash(layers, state.cur_token[None])
    cache['hash'] = layers if offset else layers[0]
    cache['cache_index'] = cache['cache_index'] + 1
    return jnp.asarray(logits)[layers[0, :, 0]], cache

  return step


def new_cache(rows, offset=0):
  shape = (2, rows, 1) if offset else (rows, 1)
  index = jnp.zeros((2,) if offset else (), jnp.int32)
  return {'hash': jnp.zeros(shape, jnp.int32), 'cache_index': index}


def prefilled_cache(prompts, lengths, offset=0):
  """The cache behind all but the last token of each prompt."""
  cache = new_cache(len(prompts), offset)
  hashes = np.zeros((len(prompts), 1), np.int32)
  for row, (prompt, length) in enumerate(zip(prompts, lengths)):
    for token in prompt[:length]:
      hashes[row] = next_hash(hashes[row], token)
  index = jnp.asarray(lengths, jnp.int32)
  if offset:
    hashes, index = np.stack([hashes] * 2), jnp.stack([index] * 2)
  return {**cache, 'hash': jnp.asarray(hashes), 'cache_index': index}


def log_softmax(x):
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def log_prob(logits, tokens, prompt_length=0):
  """Log probability of the tokens behind the prompt."""
  value, total = next_hash(0, 0), 0.0
  for place, token in enumerate(tokens):
    if place >= prompt_length:
      total += log_softmax(logits[value].astype(np.float64))[token]
    value = next_hash(value, token)
  return total


def all_sequences(length, prompt=()):
  """Every text that ends within the length."""
  for words in range(length - len(prompt)):
    for text in itertools.product(range(2, VOCAB), repeat=words):
      yield (*prompt, *text, EOS)


def greedy(logits, length, prompt=()):
  value, tokens = next_hash(0, 0), []
  for place in range(length):
    given = place < len(prompt)
    token = prompt[place] if given else int(logits[value].argmax())
    tokens.append(token)
    if token == EOS and not given:
      break
    value = next_hash(value, token)
  return tokens + [0] * (length - len(tokens))


def prompt_rows(prompts, length):
  rows = np.zeros((len(prompts), length), np.int32)
  for row, prompt in zip(rows, prompts):
    row[1 : 1 + len(prompt)] = prompt
  return rows


PROMPTS = [(), (2, 3), (3,), (2, EOS, 3)]


def run(decode, *args, **settings):
  """Compiles as a whole: op by op takes longer."""
  return jax.jit(lambda: decode(*args, **settings))()


# Beam search.


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


def never_ends(state):
  logits = jnp.array([-1e9, -1e9, 0.0, jnp.log(0.5)])
  rows = state.cur_token.shape[0]
  return jnp.broadcast_to(logits, (rows, VOCAB)), state.cache


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


def counted(step):
  """The step function, and a list that grows with every step run."""
  calls = []

  def counting(state):
    jax.debug.callback(lambda: calls.append(1))
    return step(state)

  return counting, calls


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


def always(probs):
  """A model that does not care what it reads."""

  def step(state):
    rows = state.cur_token.shape[0]
    logits = jnp.log(jnp.array(probs))
    return jnp.broadcast_to(logits, (rows, len(probs))), state.cache

  return step


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


def test_beams_expand_in_place():
  x = jnp.array([[1, 2], [3, 4]])
  np.testing.assert_array_equal(
      decoding.flat_batch_beam_expand(x, 2), [[1, 2], [1, 2], [3, 4], [3, 4]]
  )
  np.testing.assert_array_equal(
      decoding.flat_batch_beam_expand(x, 2, offset=1),
      [[1, 1, 2, 2], [3, 3, 4, 4]],
  )
  expanded = decoding.add_beam_dim(x, 3)
  assert expanded.shape == (2, 3, 2)
  flat = decoding.flatten_beam_dim(expanded)
  np.testing.assert_array_equal(
      decoding.unflatten_beam_dim(flat, 2, 3), expanded
  )


@pytest.mark.parametrize('frozen', [False, True])
def test_cache_map_leaves_out_what_rows_share(frozen):
  cache = {
      'layer': {'cached_key': 1, 'cache_index': 2, 'cached_bias': 3},
      'position_embedder': {'position_embedder_index': 4},
  }
  cache = flax.core.freeze(cache) if frozen else cache
  mapped = decoding.cache_map(lambda x: -x, cache)
  assert type(mapped) is type(cache)
  assert mapped['layer'] == {
      'cached_key': -1,
      'cache_index': 2,
      'cached_bias': 3,
  }
  assert mapped['position_embedder'] == {'position_embedder_index': 4}
  mapped = decoding.cache_map(lambda x: -x, cache, apply_to_index=True)
  assert mapped['layer'] == {
      'cached_key': -1,
      'cache_index': -2,
      'cached_bias': 3,
  }


@pytest.mark.parametrize('one_hot', [False, True])
@pytest.mark.parametrize('offset', [0, 1])
def test_beams_are_gathered_along_their_axis(one_hot, offset):
  x = np.arange(2 * 3 * 5, dtype=np.float32).reshape(2, 3, 5)
  picks = np.array([[2, 0], [1, 1]])
  expected = np.stack([x[0, picks[0]], x[1, picks[1]]])
  cache = {'cached_key': np.stack([x, -x]) if offset else x, 'cache_index': 7}
  gathered = decoding.cache_gather_beams(
      cache, jnp.array(picks), 2, 3, 2, one_hot, offset
  )
  assert gathered['cache_index'] == 7
  np.testing.assert_array_equal(
      gathered['cached_key'],
      np.stack([expected, -expected]) if offset else expected,
  )
  if not offset:
    np.testing.assert_array_equal(
        decoding.gather_beams([x], jnp.array(picks), 2, 3, 2, one_hot)[0],
        expected,
    )


def test_the_best_beams_come_last():
  scores = jnp.array([[3.0, 1.0, 2.0]])
  (best,) = decoding.gather_topk_beams([scores], scores, 1, 2)
  np.testing.assert_array_equal(best, [[2.0, 3.0]])


@pytest.mark.parametrize(('batch', 'length'), [(2, 5000), (2, 100), (9, 5000)])
def test_top_k_in_two_stages_is_top_k(batch, length):
  x = np.random.default_rng(0).permutation(batch * length)
  x = jnp.asarray(x.reshape(batch, length), jnp.float32)
  for found, expected in zip(
      decoding.top_k_two_stage(x, 4), jax.lax.top_k(x, 4)
  ):
    np.testing.assert_array_equal(found, expected)


def test_prompts_align_at_either_end():
  left = np.array([[5, 0, 6, 0, 0], [1, 2, 3, 4, 5], [0, 0, 0, 0, 0]])
  right = np.array([[0, 0, 5, 0, 6], [1, 2, 3, 4, 5], [0, 0, 0, 0, 0]])
  np.testing.assert_array_equal(decoding._right_align_prompts(left), right)
  np.testing.assert_array_equal(decoding._left_align_prompts(right), left)
