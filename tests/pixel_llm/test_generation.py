import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_llm import beam_search
from pixel_llm import generation
from pixel_llm import sampling
from pixel_llm.golden import case as case_lib
from pixel_llm.golden import compare
from pixel_llm.golden.runners import text
from pixel_llm.modules import decode_cache
from pixel_llm.modules import t5_text_head

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
END = 1
SEED = 14
LENGTH = 8
CONFIG = t5_text_head.T5TextConfig(
    vocab_size=6,
    emb_dim=8,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=2,
    head_dim=4,
    mlp_dim=12,
    mlp_activations=('gelu', 'linear'),
    dropout_rate=0.0,
    encoder_lora_rank=2,
    decoder_lora_rank=2,
)
HEAD = t5_text_head.T5TextHead(CONFIG)
VISUAL = jax.random.normal(jax.random.key(1), (5, 3, 8))
CONTEXT = jnp.array([[4, 0], [0, 0], [2, 3], [5, 5], [3, 0]])
EMPTY = decode_cache.DecodeCache(shared=(), beams=())
DECODERS = [
    generation.Greedy(),
    beam_search.BeamSearch(3, 1),
    beam_search.BeamSearch(4, 2),
]
ALL_DECODERS = [*DECODERS, sampling.Sample(2, top_k=3)]
IDS = ['greedy', '3x1', '4x2', 'sample']


@pytest.fixture(scope='module')
def variables():
  shapes = jax.eval_shape(
      HEAD.init, jax.random.key(0), VISUAL, jnp.zeros((5, LENGTH), jnp.int32)
  )['params']
  # This seed writes 0 in the middle of texts, which hides positions.
  random = np.random.default_rng(SEED)
  params = jax.tree.map(
      lambda x: random.normal(size=x.shape, scale=0.5).astype(np.float32),
      shapes,
  )
  # End tokens must not win at once.
  params['t5_module']['decoder']['logits_dense']['kernel'][:, END] *= 0.1
  return {'params': params}


def _table_step(table):
  """Scores the next token by the last one alone."""
  return lambda cache, sequences, index: (table[sequences[:, :, index]], cache)


@pytest.mark.golden
def test_decoding_equals_the_original():
  case = case_lib.load_case(GOLDEN, 'decoding')
  reports = compare.compare_case(text.run_decoding(case), case.expected)
  assert not [f'{r.name}: {r.message}' for r in reports if not r.passed]


@pytest.mark.parametrize('context', [None, CONTEXT], ids=['alone', 'context'])
@pytest.mark.parametrize('decoder', DECODERS, ids=['greedy', '3x1', '4x2'])
def test_cached_decoding_equals_reading_the_whole_prefix(
    variables, decoder, context
):
  encoded = HEAD.apply(variables, VISUAL, context, method='encode')
  start = generation.start_tokens(5, LENGTH, 0, END)
  beams = decoder.num_beams
  # One prompt beside a context is padding.
  needed = np.arange(5) != (5 if context is None else 2)

  @jax.jit
  def cached():
    cache = HEAD.apply(variables, encoded, beams, LENGTH, method='start_decode')
    step = generation.module_step(HEAD, variables)
    return decoder(step, cache, start, END, jnp.asarray(needed))

  repeated = jax.tree.map(lambda x: jnp.repeat(x, beams, axis=0), encoded)

  def whole_prefix(cache, sequences, index):
    flat = sequences.reshape(-1, LENGTH)
    output = HEAD.apply(variables, repeated, flat, method='decode')
    return output.logits[:, index].reshape(5, beams, -1), cache

  actual = cached()
  expected = jax.jit(lambda: decoder(whole_prefix, EMPTY, start, END))()
  np.testing.assert_array_equal(actual.tokens[needed], expected.tokens[needed])
  np.testing.assert_allclose(
      actual.scores[needed], expected.scores[needed], rtol=1e-5, atol=1e-5
  )
  for row in np.flatnonzero(~needed):
    np.testing.assert_array_equal(actual.tokens[row, :, 1:], END)
    np.testing.assert_array_equal(actual.scores[row], 0.0)
  written = np.asarray(actual.tokens[..., 1:-1])
  following = np.asarray(actual.tokens[..., 2:])
  assert np.any((written == 0) & (following > 1)), 'no 0 inside a text'


def test_greedy_never_repeats_the_last_token():
  table = jnp.array([[0.0, 0, 3, 1], [0, 0, 0, 0], [0, 0, 9, 1], [0, 0, 2, 9]])
  start = generation.start_tokens(1, 7, 0, END)
  found = generation.Greedy()(_table_step(table), EMPTY, start, END)
  np.testing.assert_array_equal(found.best_tokens, [[0, 2, 3, 2, 3, 2, 1]])


def test_greedy_scores_a_text_by_its_mean_log_probability():
  table = jnp.log(
      jnp.array(
          [[0.1, 0.2, 0.7, 0.0], [0.25] * 4, [0.1, 0.6, 0.1, 0.2], [0] * 4]
      )
      + 1e-30
  )
  start = generation.start_tokens(1, 6, 0, END)
  found = generation.Greedy()(_table_step(table), EMPTY, start, END)
  np.testing.assert_array_equal(found.best_tokens, [[0, 2, 1, 1, 1, 1]])
  # After 2, another 2 is forbidden: 0.6 of 0.9 is left for the end token.
  expected = np.log(0.7 / 0.9) + np.log(0.6 / 0.9)
  np.testing.assert_allclose(found.best_scores, [expected], rtol=1e-4)


@pytest.mark.parametrize('decoder', ALL_DECODERS, ids=IDS)
@pytest.mark.parametrize('endless', [[], [1]], ids=['all end', 'padding'])
def test_decoding_stops_when_every_row_that_counts_has_ended(decoder, endless):
  # The end token is nearly sure, but for rows that never end.
  ending = jnp.array([0.0, 30.0, 1.0, 2.0, 3.0, 4.0])
  logits = jnp.stack([ending, ending, ending])[:, None]
  logits = logits.at[jnp.array(endless, int), :, END].set(-1e9)
  calls = []

  def step(cache, sequences, index):
    jax.debug.callback(lambda i: calls.append(int(i)), index)
    return jnp.broadcast_to(logits, (*sequences.shape[:2], 6)), cache

  def decode(row_mask):
    calls.clear()
    start = generation.start_tokens(3, 50, 0, END)
    keys = sampling.row_keys(jax.random.key(0), 3, 1)
    found = decoder(step, EMPTY, start, END, row_mask, keys)
    jax.effects_barrier()
    return found, len(calls)

  found, count = decode(~jnp.isin(jnp.arange(3), jnp.array(endless, int)))
  np.testing.assert_array_equal(found.best_tokens[:, 1:], END)
  assert count < 6
  assert decode(jnp.zeros(3, bool))[1] == 0
  if endless:
    assert decode(None)[1] == 48


@pytest.mark.parametrize('decoder', DECODERS, ids=['greedy', '3x1', '4x2'])
def test_a_row_does_not_depend_on_the_others(variables, decoder):
  def decode(visual):
    encoded = HEAD.apply(variables, visual, method='encode')
    cache = HEAD.apply(
        variables, encoded, decoder.num_beams, LENGTH, method='start_decode'
    )
    start = generation.start_tokens(len(visual), LENGTH, 0, END)
    return decoder(generation.module_step(HEAD, variables), cache, start, END)

  decode = jax.jit(decode)
  together, alone = decode(VISUAL), decode(VISUAL[2:3])
  np.testing.assert_array_equal(together.tokens[2:3], alone.tokens)
  np.testing.assert_allclose(together.scores[2:3], alone.scores, rtol=1e-4)


def test_one_beam_without_repeats_writes_what_greedy_writes():
  table = 4 * jax.random.normal(jax.random.key(3), (9, 9))
  table = table.at[jnp.arange(9), jnp.arange(9)].set(-1e4)
  start = generation.start_tokens(1, 7, 0, END)
  greedy = generation.Greedy()(_table_step(table), EMPTY, start, END)
  beam = beam_search.BeamSearch(1, 1, 0.0)(
      _table_step(table), EMPTY, start, END
  )
  np.testing.assert_array_equal(greedy.tokens, beam.tokens)


def test_a_wide_beam_finds_the_likeliest_text():
  """Compares with all texts of three tokens, scored by hand."""
  logits = jax.random.normal(jax.random.key(5), (4, 4))
  log_probs = np.asarray(jax.nn.log_softmax(logits))
  best, best_score = None, -np.inf
  for a in range(4):
    for b in range(4):
      for c in range(4):
        tokens = [0, a, b, c]
        if 1 in tokens:
          tokens = tokens[: tokens.index(1) + 1]
          score = sum(log_probs[s, t] for s, t in zip(tokens, tokens[1:]))
          score /= ((5 + len(tokens) - 1) / 6) ** 0.6
          if score > best_score:
            best, best_score = tokens, score
  start = generation.start_tokens(1, 5, 0, END)
  found = beam_search.BeamSearch(16, 2)(_table_step(logits), EMPTY, start, END)
  np.testing.assert_array_equal(found.best_tokens[0, : len(best)], best)
  np.testing.assert_allclose(found.best_scores[0], best_score, rtol=1e-5)


def test_everything_behind_the_first_end_token_becomes_padding():
  tokens = jnp.array([[0, 7, 1, 5, 1], [0, 1, 1, 1, 1], [0, 2, 3, 4, 5]])
  np.testing.assert_array_equal(
      generation.zero_after_end(tokens, END),
      [[0, 7, 1, 0, 0], [0, 1, 0, 0, 0], [0, 2, 3, 4, 5]],
  )


def test_bad_settings_are_refused():
  with pytest.raises(ValueError, match='num_beams'):
    beam_search.BeamSearch(0, 1)
  with pytest.raises(ValueError, match='length is 1'):
    generation.start_tokens(2, 1, 0, END)
