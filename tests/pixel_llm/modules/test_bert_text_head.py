import functools
import pathlib

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_llm import axes
from pixel_llm import beam_search
from pixel_llm import generation
from pixel_llm.golden import case as case_lib
from pixel_llm.golden import compare
from pixel_llm.golden.runners import bert
from pixel_llm.modules import bert_text_head
from pixel_llm.modules import decode_cache
from pixel_llm.modules import t5_text_head
from pixel_llm.modules import text_head

GOLDEN = pathlib.Path(__file__).parents[2] / 'golden'
KNOWN_AXES = {v for k, v in vars(axes).items() if k.isupper()}
BEGIN, END = 4, 2
LENGTH = 8
HEAD = bert_text_head.BertTextHead(
    vocab_size=9,
    emb_dim=8,
    num_heads=2,
    num_layers=2,
    mlp_dim=12,
    max_length=LENGTH,
)
# Of another width than the head.
VISUAL = jax.random.normal(jax.random.key(1), (3, 4, 6))
TOKENS = jnp.array(
    [
        [4, 5, 0, 7, 2, 0, 0, 0],
        [4, 3, 1, 1, 8, 6, 5, 2],
        [4, 2, 0, 0, 0, 0, 0, 0],
    ]
)
CONTEXT = jnp.array([[5, 0, 0], [6, 7, 8], [3, 1, 0]])
IS_CONTEXT = np.asarray(CONTEXT) > 0
EMPTY = decode_cache.DecodeCache(shared=(), beams=())
DECODERS = [
    generation.Greedy(),
    beam_search.BeamSearch(3, 1),
    beam_search.BeamSearch(4, 2),
]


@pytest.fixture(scope='module')
def variables(random_params):
  params = random_params(HEAD, VISUAL, TOKENS, CONTEXT)
  # End tokens must not win at once.
  output = {
      'kernel': 0.5 * params['output']['kernel'],
      'bias': jnp.zeros((9,)).at[END].set(-2.0),
  }
  return {'params': {**params, 'output': output}}


@functools.partial(jax.jit, static_argnames=('head', 'deterministic'))
def run(variables, visual, text, context=None, *, head=HEAD, **kwargs):
  return head.apply(variables, visual, text, context, **kwargs)


def assert_near(actual, expected):
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.golden
def test_logits_and_fused_features_equal_the_original():
  case = case_lib.load_case(GOLDEN, 'bert_text_head')
  reports = compare.compare_case(bert.run_bert_text_head(case), case.expected)
  assert not [f'{r.name}: {r.message}' for r in reports if not r.passed]


@pytest.mark.golden
def test_parameters_have_the_names_and_shapes_of_the_original():
  case = case_lib.load_case(GOLDEN, 'bert_text_head')
  head = bert_text_head.BertTextHead(
      vocab_size=120,
      emb_dim=48,
      num_heads=4,
      num_layers=2,
      mlp_dim=192,
      max_length=64,
  )
  created = jax.eval_shape(
      head.init,
      jax.random.key(0),
      case.inputs['visual_features'],
      case.inputs['text_tokens'],
      case.inputs['context_tokens'],
  )
  flat = traverse_util.flatten_dict(created['params'], sep='/')
  original = traverse_util.flatten_dict(case.params, sep='/')
  assert {k: v.shape for k, v in flat.items()} == {
      k: v.shape for k, v in original.items()
  }
  names = traverse_util.flatten_dict(created['params_axes'], sep='/')
  assert {k.removesuffix('_axes') for k in names} == set(flat)
  for name, array in flat.items():
    logical = names[f'{name}_axes'].names
    assert len(set(logical)) == len(logical) == array.ndim, name
    assert set(logical) <= KNOWN_AXES, name


def test_both_heads_are_text_heads():
  assert isinstance(HEAD, text_head.TextHead)
  assert isinstance(
      t5_text_head.T5TextHead(t5_text_head.T5TextConfig(vocab_size=9)),
      text_head.TextHead,
  )


def test_two_passes_equal_one_pass_over_the_whole_sequence(variables):
  """The prefix sees itself, the text sees the prefix and what is before."""

  def whole(head):
    x = jnp.concatenate(
        [
            head.projection(VISUAL),
            head._embed(CONTEXT, True),
            head._embed(TOKENS, True),
        ],
        axis=1,
    )
    prefix = VISUAL.shape[1] + CONTEXT.shape[1]
    total = prefix + LENGTH
    rows, columns = np.indices((total, total))
    block = (columns < prefix) | ((rows >= prefix) & (columns <= rows))
    shown = np.ones((len(VISUAL), total), bool)
    shown[:, VISUAL.shape[1] : prefix] = IS_CONTEXT
    mask = (block[None] & shown[:, None])[:, None]
    hidden, _ = head.transformer(x, mask, (), True)
    return head.output(hidden[-1])[:, prefix:], hidden[-1][:, prefix:]

  logits, features = jax.jit(lambda v: HEAD.apply(v, method=whole))(variables)
  output = run(variables, VISUAL, TOKENS, CONTEXT)
  assert_near(output.logits, logits)
  assert_near(output.features, features)


def test_a_token_moves_nothing_before_it(variables):
  plain = run(variables, VISUAL, TOKENS, CONTEXT).logits
  changed = TOKENS.at[:, 5].set(3)
  moved = run(variables, VISUAL, changed, CONTEXT).logits
  assert_near(moved[:, :5], plain[:, :5])
  assert np.all(np.any(moved[:, 5:] != plain[:, 5:], axis=(1, 2)))


def test_padded_context_equals_shorter_context(variables):
  long = run(variables, VISUAL[:1], TOKENS[:1], CONTEXT[:1])
  short = run(variables, VISUAL[:1], TOKENS[:1], CONTEXT[:1, :1])
  none = run(variables, VISUAL[:1], TOKENS[:1])
  assert_near(long.logits, short.logits)
  assert np.max(np.abs(none.logits - short.logits)) > 1e-2


def test_padding_of_the_text_is_seen(variables):
  # Released weights learnt with it (unlike T5's).
  padded = TOKENS[:1].at[:, 2].set(0)
  shorter = jnp.delete(padded, 2, axis=1)
  with_gap = run(variables, VISUAL[:1], padded).logits[:, 3]
  without = run(variables, VISUAL[:1], shorter).logits[:, 2]
  assert np.max(np.abs(with_gap - without)) > 1e-2


def test_fusion_sums_or_joins_hidden_states():
  hidden = [jnp.full((1, 2), float(i)) for i in (1, 10, 100)]
  fuse = bert_text_head.fuse_hidden_states
  np.testing.assert_array_equal(fuse('sum:-1', hidden), [[100, 100]])
  np.testing.assert_array_equal(fuse('sum:-1,-2', hidden), [[110, 110]])
  np.testing.assert_array_equal(fuse('concat:0,2', hidden), [[1, 1, 100, 100]])


@pytest.mark.parametrize(
    ('fusion', 'message'),
    [
        ('sun:-1', "'sun'.*'sum:-1,-2'"),
        ('', "''.*concat"),
        ('sum:', '-3 to 2'),
        ('sum:3', '-3 to 2'),
        ('concat:1,x', '-3 to 2'),
    ],
)
def test_a_fusion_of_unknown_form_is_refused(fusion, message):
  with pytest.raises(ValueError, match=message):
    bert_text_head.fuse_hidden_states(fusion, [jnp.zeros((1, 2))] * 3)


def test_fusion_changes_features_only(variables):
  plain = run(variables, VISUAL, TOKENS, CONTEXT)
  head = HEAD.clone(feature_fusion='concat:1,-1')
  fused = run(variables, VISUAL, TOKENS, CONTEXT, head=head)
  np.testing.assert_array_equal(fused.logits, plain.logits)
  np.testing.assert_array_equal(fused.features[..., 8:], plain.features)


def test_dropout_acts_only_where_it_is_enabled(variables):
  args = (variables, VISUAL, TOKENS, CONTEXT)
  still = run(*args).logits
  for key in (0, 1):
    rngs = {'dropout': jax.random.key(key)}
    np.testing.assert_array_equal(run(*args, rngs=rngs).logits, still)
    dropped = run(*args, rngs=rngs, deterministic=False).logits
    assert np.max(np.abs(dropped - still)) > 1e-2
  # A rate of 0 draws nothing.
  np.testing.assert_array_equal(
      run(*args, head=HEAD.clone(dropout_rate=0.0), deterministic=False).logits,
      still,
  )


def test_half_precision_keeps_parameters_and_logits_in_float32(variables):
  head = HEAD.clone(dtype=jnp.bfloat16)
  output = run(variables, VISUAL, TOKENS, CONTEXT, head=head)
  assert (output.logits.dtype, output.features.dtype) == (
      jnp.float32,
      jnp.bfloat16,
  )
  full = run(variables, VISUAL, TOKENS, CONTEXT)
  np.testing.assert_allclose(output.logits, full.logits, atol=0.1)
  created = jax.eval_shape(head.init, jax.random.key(0), VISUAL, TOKENS)
  assert {x.dtype for x in jax.tree.leaves(created['params'])} == {
      jnp.dtype('float32')
  }


@pytest.mark.parametrize('context', [None, CONTEXT], ids=['alone', 'context'])
@pytest.mark.parametrize('decoder', DECODERS, ids=['greedy', '3x1', '4x2'])
def test_cached_decoding_equals_reading_the_whole_prefix(
    variables, decoder, context
):
  rows, beams = len(VISUAL), decoder.num_beams
  start = generation.start_tokens(rows, LENGTH, BEGIN, END)
  # One prompt beside a context is padding.
  needed = np.arange(rows) != (rows if context is None else 1)

  @jax.jit
  def cached():
    encoded = HEAD.apply(variables, VISUAL, context, method='encode')
    cache = HEAD.apply(variables, encoded, beams, LENGTH, method='start_decode')
    step = generation.module_step(HEAD, variables)
    return decoder(step, cache, start, END, jnp.asarray(needed))

  def repeat(x):
    return None if x is None else jnp.repeat(x, beams, axis=0)

  def whole_prefix(cache, sequences, index):
    output = HEAD.apply(
        variables,
        repeat(VISUAL),
        sequences.reshape(-1, LENGTH),
        repeat(context),
    )
    return output.logits[:, index].reshape(rows, beams, -1), cache

  actual = cached()
  expected = jax.jit(lambda: decoder(whole_prefix, EMPTY, start, END))()
  np.testing.assert_array_equal(actual.tokens[needed], expected.tokens[needed])
  np.testing.assert_allclose(
      actual.scores[needed], expected.scores[needed], rtol=1e-5, atol=1e-5
  )
  best = np.asarray(actual.best_tokens)
  assert np.any(best[:, 4] != END), 'no text of several words'
  assert len(np.unique(best, axis=0)) > 1, 'the image moves no text'


def test_beams_share_the_prefix_and_keep_their_own_text(variables):
  encoded = HEAD.apply(variables, VISUAL, CONTEXT, method='encode')
  cache = HEAD.apply(variables, encoded, 2, LENGTH, method='start_decode')
  assert all(
      x.shape[::3] == (3, 7) for x in jax.tree.leaves(cache.shared.layers)
  )

  step = jax.jit(lambda *a: HEAD.apply(variables, *a, method='decode_step'))
  other = TOKENS.at[:, 1].set(6)
  beams = jnp.stack([TOKENS, other], axis=1)
  for index in range(2):
    _, cache = step(cache, beams, index)
  parents = jnp.array([[1, 1], [0, 1], [1, 0]])
  cache = cache.reorder(parents)
  moved = jnp.stack([beams[m, parents[m]] for m in range(3)])
  logits, _ = step(cache, moved, 2)
  for k in range(2):
    whole = HEAD.apply(variables, encoded, moved[:, k], method='decode')
    assert_near(logits[:, k], whole.logits[:, 2])


@pytest.mark.parametrize(
    ('text', 'context', 'name'),
    [(LENGTH + 1, 1, 'text'), (2, LENGTH + 1, 'context')],
)
def test_more_tokens_than_positions_are_refused(text, context, name):
  with pytest.raises(ValueError, match=f'{name} has 9 tokens.*max_length is 8'):
    jax.eval_shape(
        HEAD.init,
        jax.random.key(0),
        VISUAL,
        jnp.ones((3, text), jnp.int32),
        jnp.ones((3, context), jnp.int32),
    )


def test_a_text_that_cannot_be_decoded_is_refused_before_the_first_step(
    variables,
):
  encoded = HEAD.apply(variables, VISUAL, method='encode')
  with pytest.raises(ValueError, match='text has 9 tokens'):
    HEAD.apply(variables, encoded, 1, LENGTH + 1, method='start_decode')


def test_heads_must_divide_the_width():
  head = HEAD.clone(num_heads=3)
  with pytest.raises(ValueError, match='emb_dim is 8.*num_heads=3'):
    jax.eval_shape(head.init, jax.random.key(0), VISUAL, TOKENS)
