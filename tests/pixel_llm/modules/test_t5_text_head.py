import fractions as fractions_lib
import math
import pathlib

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_llm.golden import case as case_lib
from pixel_llm.golden import compare
from pixel_llm.golden.runners import text
from pixel_llm.modules import lora
from pixel_llm.modules import t5_text_head
from pixel_llm.modules import text_head
from t5x.examples.t5 import network

GOLDEN = pathlib.Path(__file__).parents[2] / 'golden'
KEY = jax.random.key(0)
CONFIG = t5_text_head.T5TextConfig(
    vocab_size=11,
    emb_dim=8,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=2,
    head_dim=4,
    mlp_dim=12,
    mlp_activations=('gelu', 'linear'),
    dropout_rate=0.1,
    encoder_lora_rank=3,
    decoder_lora_rank=2,
    encoder_lora_scale=2.0,
    decoder_lora_scale=1.5,
)
HEAD = t5_text_head.T5TextHead(CONFIG)
VISUAL = jax.random.normal(jax.random.key(1), (2, 4, 8))
TOKENS = jnp.array([[0, 5, 0, 7, 1, 0], [0, 3, 2, 2, 9, 1]])
CONTEXT = jnp.array([[4, 0, 0], [6, 7, 8]])


def _flat(tree):
  return traverse_util.flatten_dict(tree, sep='/')


def _randomised(params):
  """Gives every parameter a value, so that zeros hide nothing."""
  random = np.random.default_rng(0)
  return jax.tree.map(
      lambda x: random.normal(size=x.shape, scale=0.3).astype(np.float32),
      params,
  )


@pytest.fixture(scope='module')
def fresh():
  return jax.jit(HEAD.init)(KEY, VISUAL, TOKENS, CONTEXT)


@pytest.fixture(scope='module')
def params(fresh):
  return _randomised(fresh['params'])


@pytest.mark.golden
@pytest.mark.parametrize('name', ['t5_text_head', 't5_text_head_no_lora'])
def test_logits_and_features_equal_the_original(name):
  case = case_lib.load_case(GOLDEN, name)
  reports = compare.compare_case(text.RUNNERS[name](case), case.expected)
  assert not [f'{r.name}: {r.message}' for r in reports if not r.passed]


@pytest.mark.golden
@pytest.mark.parametrize('name', ['t5_text_head', 't5_text_head_no_lora'])
def test_parameters_have_the_names_and_shapes_of_the_original(name):
  case = case_lib.load_case(GOLDEN, name)
  head = t5_text_head.T5TextHead(text._text_config(case.settings))
  variables = jax.eval_shape(
      head.init,
      KEY,
      case.inputs['visual_features'],
      case.inputs['text_tokens'],
      case.inputs['context_tokens'],
  )
  shapes = {k: v.shape for k, v in _flat(variables['params']).items()}
  assert shapes == {k: v.shape for k, v in _flat(case.params).items()}
  axes = {
      k.removesuffix('_axes'): v.names
      for k, v in _flat(variables['params_axes']).items()
  }
  assert {k: len(v) for k, v in axes.items()} == {
      k: len(v) for k, v in shapes.items()
  }


def test_adapters_start_as_the_base_model(fresh):
  base_config = CONFIG.replace(encoder_lora_rank=0, decoder_lora_rank=0)
  base = t5_text_head.T5TextHead(base_config)
  kernels = {
      k: v for k, v in _flat(fresh['params']).items() if not k.endswith('_lora')
  }
  left = fresh['params']['t5_module']['encoder']['layers_0']['attention']
  assert jnp.any(left['query']['kernel_left_lora'] != 0)
  with_adapters = HEAD.apply(fresh, VISUAL, TOKENS, CONTEXT)
  without = base.apply(
      {'params': traverse_util.unflatten_dict(kernels, sep='/')},
      VISUAL,
      TOKENS,
      CONTEXT,
  )
  np.testing.assert_array_equal(with_adapters.logits, without.logits)


def test_merged_adapters_compute_the_same(params):
  merged = t5_text_head.merge_adapters(params, CONFIG)
  assert not [name for name in _flat(merged) if 'lora' in name]
  base = t5_text_head.T5TextHead(
      CONFIG.replace(encoder_lora_rank=0, decoder_lora_rank=0)
  )
  expected = HEAD.apply({'params': params}, VISUAL, TOKENS, CONTEXT)
  actual = base.apply({'params': merged}, VISUAL, TOKENS, CONTEXT)
  np.testing.assert_allclose(
      actual.logits, expected.logits, rtol=1e-4, atol=1e-5
  )


def test_merged_kernels_are_exact_to_half_a_unit_in_the_last_place():
  random = np.random.default_rng(0)
  kernel, left, right = (
      random.normal(size=shape).astype(np.float32)
      for shape in ((24, 16), (24, 4), (4, 16))
  )
  tree = {'q': {'kernel': kernel, lora.LEFT: left, lora.RIGHT: right}}
  merged = lora.merge(tree, 1.5)['q']['kernel']
  fractions = np.vectorize(lambda x: fractions_lib.Fraction(float(x)))
  exact = fractions(kernel) + fractions(1.5) * (
      fractions(left) @ fractions(right)
  )
  errors = abs(fractions(merged) - exact) / fractions(np.spacing(abs(merged)))
  assert merged.dtype == np.float32
  assert errors.max() <= fractions_lib.Fraction(1, 2) + 2**-20


def test_half_an_adapter_cannot_be_merged():
  tree = {'query': {'kernel': np.ones((2, 2)), lora.LEFT: np.ones((2, 1))}}
  with pytest.raises(ValueError, match='query.*kernel_right_lora'):
    lora.merge(tree, 1.0)


def test_all_letters_name_projections_and_others_are_refused():
  config = CONFIG.replace(encoder_lora_modules='q, k,v,o')
  shapes = jax.eval_shape(
      t5_text_head.T5TextHead(config).init, KEY, VISUAL, TOKENS
  )['params']['t5_module']
  attention = shapes['encoder']['layers_0']['attention']
  assert all(lora.LEFT in attention[n] for n in attention)
  assert attention['out'][lora.LEFT].shape == (8, 3)
  assert lora.LEFT not in shapes['decoder']['layers_0']['self_attention']['key']
  bad = t5_text_head.T5TextHead(CONFIG.replace(decoder_lora_modules='q,w'))
  with pytest.raises(ValueError, match="'w'"):
    jax.eval_shape(bad.init, KEY, VISUAL, TOKENS)


def test_reading_embedded_tokens_equals_the_reference_network():
  config = CONFIG.replace(encoder_lora_rank=0, decoder_lora_rank=0)
  head = t5_text_head.T5TextHead(config)
  reference = network.Transformer(config)
  source = jnp.array([[3, 9, 1], [5, 6, 7]])
  targets = jnp.pad(TOKENS, ((0, 0), (0, 1)))[:, 1:]
  shapes = jax.eval_shape(reference.init, KEY, source, TOKENS, targets)
  params = _randomised(shapes['params'])
  expected = reference.apply(
      {'params': params}, source, TOKENS, targets, enable_dropout=False
  )
  table = params['token_embedder']['embedding']
  actual = head.apply(
      {'params': {'t5_module': params}}, jnp.asarray(table)[source], TOKENS
  )
  np.testing.assert_allclose(actual.logits, expected, rtol=1e-4, atol=1e-5)


def test_padded_context_equals_shorter_context(params):
  def apply(context):
    return HEAD.apply({'params': params}, VISUAL[:1], TOKENS[:1], context)

  long, short = apply(CONTEXT[:1]), apply(CONTEXT[:1, :1])
  visible = np.asarray(text_head.next_token_mask(TOKENS[:1]))
  np.testing.assert_allclose(
      np.asarray(long.logits)[visible],
      np.asarray(short.logits)[visible],
      rtol=1e-4,
      atol=1e-5,
  )


def test_the_next_token_hides_a_position():
  np.testing.assert_array_equal(
      text_head.next_token_mask(jnp.array([[0, 7, 0, 9, 1, 0]])),
      [[True, False, True, True, False, False]],
  )


def test_features_are_taken_before_dropout(params):
  # With dropout only behind the final norm, features stay as they are.
  config = CONFIG.replace(num_decoder_layers=0, dropout_rate=0.5)
  head = t5_text_head.T5TextHead(config)
  encoded = HEAD.apply({'params': params}, VISUAL, method='encode')

  def run(**kw):
    return head.apply(
        {'params': params}, encoded, TOKENS, method='decode', **kw
    )

  still = run()
  dropped = run(deterministic=False, rngs={'dropout': jax.random.key(3)})
  assert not np.allclose(still.logits, dropped.logits)
  x = np.asarray(still.features)
  scale = np.asarray(params['t5_module']['decoder']['decoder_norm']['scale'])
  rms = np.sqrt(np.mean((x / scale) ** 2, axis=-1))
  np.testing.assert_allclose(rms, 1.0, rtol=1e-3)
  # The embedding's own dropout zeroes channels; a second one would add zeros.
  table = params['t5_module']['token_embedder']['embedding']
  kept = np.asarray(dropped.features) != 0
  np.testing.assert_array_equal(kept, np.broadcast_to(kept[:, :1], kept.shape))
  assert table.shape == (11, 8)


def test_cached_steps_equal_the_whole_text(params):
  variables = {'params': params}
  encoded = HEAD.apply(variables, VISUAL, CONTEXT, method='encode')
  length = TOKENS.shape[1]
  cache = HEAD.apply(variables, encoded, 1, length, method='start_decode')
  step = jax.jit(lambda *a: HEAD.apply(variables, *a, method='decode_step'))
  for i in range(length - 1):
    logits, cache = step(cache, TOKENS[:, None], i)
    # The state of decoding: what is not written yet are end tokens.
    state = TOKENS.at[:, i + 1 :].set(1)
    whole = HEAD.apply(variables, encoded, state, method='decode')
    np.testing.assert_allclose(
        logits[:, 0], whole.logits[:, i], rtol=1e-4, atol=1e-5
    )


def test_beams_share_the_prompt_and_keep_their_own_text(params):
  variables = {'params': params}
  encoded = HEAD.apply(variables, VISUAL, CONTEXT, method='encode')
  beams = jnp.stack([TOKENS, TOKENS[:, ::-1].at[:, 0].set(0)], axis=1)
  cache = HEAD.apply(variables, encoded, 2, 6, method='start_decode')
  shared = jax.tree.leaves(cache.shared['cross'])
  assert all(x.shape[:2] == (2, 7) for x in shared)

  def step(*a):
    return HEAD.apply(variables, *a, method='decode_step')

  _, cache = step(cache, beams, 0)
  cache = cache.reorder(jnp.array([[1, 1], [0, 1]]))
  moved = jnp.stack([beams[0, [1, 1]], beams[1]])
  logits, _ = step(cache, moved, 1)
  state = moved.at[:, :, 2:].set(1)
  for k in range(2):
    whole = HEAD.apply(variables, encoded, state[:, k], method='decode')
    np.testing.assert_allclose(
        logits[:, k], whole.logits[:, 1], rtol=1e-4, atol=1e-5
    )


def test_a_projection_of_another_width_is_named():
  with pytest.raises(ValueError, match='width 9.*emb_dim=8'):
    jax.eval_shape(HEAD.init, KEY, jnp.zeros((1, 4, 9)), TOKENS[:1])


def test_the_published_size_trains_few_values():
  config = t5_text_head.T5TextConfig(
      vocab_size=32128,
      dtype='bfloat16',
      emb_dim=2048,
      num_heads=32,
      num_encoder_layers=24,
      num_decoder_layers=24,
      head_dim=64,
      mlp_dim=5120,
      mlp_activations=('gelu', 'linear'),
      encoder_lora_rank=32,
      decoder_lora_rank=32,
  )
  params = _flat(
      jax.eval_shape(
          t5_text_head.T5TextHead(config).init,
          KEY,
          jnp.zeros((1, 32, 2048)),
          TOKENS[:1],
          CONTEXT[:1],
      )['params']
  )

  def count(names):
    return sum(math.prod(params[n].shape) for n in names)

  adapters = [n for n in params if n.endswith('_lora')]
  # 72 attention blocks, two projections, two factors of 2048 × 32.
  assert count(adapters) == 72 * 2 * 2 * 2048 * 32
  assert count(set(params) - set(adapters)) == 2_849_757_184
