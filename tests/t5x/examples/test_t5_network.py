import functools
import math
import subprocess
import sys

from flax import struct
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x import layer_layout
from t5x.examples.t5 import network

KEY = jax.random.key(0)
TINY = network.T5Config(
    vocab_size=17,
    emb_dim=8,
    num_heads=4,
    num_encoder_layers=2,
    num_decoder_layers=2,
    head_dim=3,
    mlp_dim=16,
    mlp_activations=('gelu', 'linear'),
    dropout_rate=0.1,
)
ENCODER_INPUTS = jnp.array([[3, 9, 1, 0, 0], [5, 6, 7, 8, 1]])
TARGETS = jnp.array([[4, 2, 1, 0, 0, 0], [9, 9, 12, 16, 3, 1]])
DECODER_INPUTS = jnp.pad(TARGETS, ((0, 0), (1, 0)))[:, :-1]


def _init(config):
  return network.Transformer(config).init(
      KEY,
      ENCODER_INPUTS,
      DECODER_INPUTS,
      TARGETS,
      enable_dropout=False,
  )


@pytest.fixture(scope='module')
def tiny():
  return network.Transformer(TINY), {'params': _init(TINY)['params']}


def _scanned(variables):
  """The tiny model with scanned layers and the same parameters."""
  config = TINY.replace(scan_layers=True)
  target = jax.eval_shape(lambda: _init(config))['params']
  params = layer_layout.Layout().match(variables['params'], target)
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, target)
  return network.Transformer(config), {'params': params}


def _expected_axes(config):
  """Writes out the table of parameters and axes that checkpoints rely on."""
  mlp_in = ['wi'] if len(config.mlp_activations) == 1 else ['wi_0', 'wi_1']
  axes = {'token_embedder/embedding': ('vocab', 'embed')}

  def block(prefix, attentions, norms):
    for attention in attentions:
      for child in ('query', 'key', 'value'):
        axes[f'{prefix}/{attention}/{child}/kernel'] = ('embed', 'joined_kv')
      axes[f'{prefix}/{attention}/out/kernel'] = ('joined_kv', 'embed')
    for child in mlp_in:
      axes[f'{prefix}/mlp/{child}/kernel'] = ('embed', 'mlp')
    axes[f'{prefix}/mlp/wo/kernel'] = ('mlp', 'embed')
    for norm in norms:
      axes[f'{prefix}/pre_{norm}_layer_norm/scale'] = ('embed',)

  for i in range(config.num_encoder_layers):
    block(f'encoder/layers_{i}', ['attention'], ['attention', 'mlp'])
  for i in range(config.num_decoder_layers):
    block(
        f'decoder/layers_{i}',
        ['self_attention', 'encoder_decoder_attention'],
        ['self_attention', 'cross_attention', 'mlp'],
    )
  for stack in ('encoder', 'decoder'):
    axes[f'{stack}/relpos_bias/rel_embedding'] = ('heads', 'relpos_buckets')
    axes[f'{stack}/{stack}_norm/scale'] = ('embed',)
  if not config.logits_via_embedding:
    axes['decoder/logits_dense/kernel'] = ('embed', 'vocab')
  return axes


@pytest.mark.parametrize(
    'config',
    [
        TINY,
        TINY.replace(mlp_activations=('relu',), logits_via_embedding=True),
    ],
    ids=['t5_1_1', 't5_1_0'],
)
def test_parameters_and_axes_are_those_of_the_table(config):
  variables = jax.eval_shape(lambda: _init(config))

  def flatten(tree):
    return traverse_util.flatten_dict(tree, sep='/')

  axes = {
      name.removesuffix('_axes'): tuple(leaf.names)
      for name, leaf in flatten(variables['params_axes']).items()
  }
  expected = _expected_axes(config)
  assert axes == expected
  params = flatten(variables['params'])
  assert set(params) == set(expected)
  for name, param in params.items():
    assert param.ndim == len(expected[name]), name
    assert param.dtype == jnp.float32, name


@pytest.mark.parametrize(
    'sizes, count',
    [
        # emb, heads, layers, mlp; values as public Flan-T5 checkpoints have.
        ((512, 6, 8, 1024), 76_961_152),
        ((768, 12, 12, 2048), 247_577_856),
        ((1024, 16, 24, 2816), 783_150_080),
        ((2048, 32, 24, 5120), 2_849_757_184),
        ((4096, 64, 24, 10240), 11_135_332_352),
    ],
    ids=['small', 'base', 'large', 'xl', 'xxl'],
)
def test_full_sizes_have_as_many_values_as_public_checkpoints(sizes, count):
  emb_dim, num_heads, num_layers, mlp_dim = sizes
  config = network.T5Config(
      vocab_size=32128,
      dtype='bfloat16',
      emb_dim=emb_dim,
      num_heads=num_heads,
      num_encoder_layers=num_layers,
      num_decoder_layers=num_layers,
      mlp_dim=mlp_dim,
      mlp_activations=('gelu', 'linear'),
  )
  params = jax.eval_shape(lambda: _init(config))['params']
  assert sum(math.prod(x.shape) for x in jax.tree.leaves(params)) == count


@pytest.mark.parametrize('scan_layers', [False, True])
def test_cached_decoding_equals_full_decoding(tiny, scan_layers):
  model, variables = tiny
  full_model, full_variables = model, variables
  if scan_layers:
    model, variables = _scanned(variables)
  assert model.scan_layers == scan_layers
  # No padding: a decoder with a cache does not mask by its targets.
  targets = jnp.where(TARGETS == 0, 5, TARGETS)
  inputs = jnp.pad(targets, ((0, 0), (1, 0)))[:, :-1]
  full = jax.jit(full_model.apply, static_argnames='enable_dropout')(
      full_variables, ENCODER_INPUTS, inputs, targets, enable_dropout=False
  )
  encode = functools.partial(model.apply, enable_dropout=False, method='encode')
  encoded = jax.jit(encode)(variables, ENCODER_INPUTS)
  length = inputs.shape[1]
  ones = jnp.ones_like(inputs)
  init = jax.jit(model.init, static_argnames=('enable_dropout', 'decode'))
  cache = init(
      KEY,
      jnp.ones_like(ENCODER_INPUTS),
      ones,
      ones,
      enable_dropout=False,
      decode=True,
  )['cache']
  # What `cache_offset` tells: the batch is behind the layers.
  for leaf in jax.tree.leaves(cache):
    if leaf.ndim > 1:
      assert leaf.shape[int(scan_layers)] == len(inputs)

  @jax.jit
  def step(cache, token):
    return model.apply(
        {**variables, 'cache': cache},
        encoded,
        ENCODER_INPUTS,
        token,
        token,
        enable_dropout=False,
        decode=True,
        max_decode_length=length,
        mutable=['cache'],
        method='decode',
    )

  for i in range(length):
    logits, changed = step(cache, inputs[:, i : i + 1])
    cache = changed['cache']
    np.testing.assert_allclose(logits[:, 0], full[:, i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    'policy', [pytest.param('none', marks=pytest.mark.slow), 'minimal']
)
def test_scanned_layers_give_equal_logits_and_gradients(tiny, policy):
  def value_and_grad(model, variables):
    def loss(params):
      logits = model.apply(
          {'params': params},
          ENCODER_INPUTS,
          DECODER_INPUTS,
          TARGETS,
          enable_dropout=False,
      )
      return jnp.sum(jnp.sin(logits)), logits

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, logits), grads = run(variables['params'])
    return logits, layer_layout.Layout().unroll(grads)

  model, variables = _scanned(tiny[1])
  model = network.Transformer(model.config.replace(remat_policy=policy))
  actual, expected = value_and_grad(model, variables), value_and_grad(*tiny)
  for one, other in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_scanned_parameters_have_the_layers_second():
  config = TINY.replace(scan_layers=True)
  variables = jax.eval_shape(lambda: _init(config))
  axes = traverse_util.flatten_dict(variables['params_axes'], sep='/')
  name = 'decoder/decoder/self_attention/query/kernel_axes'
  assert axes[name].names == ('embed', 'layers', 'joined_kv')
  scale = variables['params']['encoder']['encoder']['pre_mlp_layer_norm']
  assert scale['scale'].shape == (8, 2)
  assert not any('layers_' in name for name in axes)


def test_padding_does_not_move_the_logits_of_real_tokens(tiny):
  model, variables = tiny

  def apply(*args):
    return model.apply(variables, *args, enable_dropout=False)

  full = apply(ENCODER_INPUTS, DECODER_INPUTS, TARGETS)
  short = apply(ENCODER_INPUTS[:1, :3], DECODER_INPUTS[:1, :3], TARGETS[:1, :3])
  np.testing.assert_allclose(full[:1, :3], short, rtol=1e-4, atol=1e-5)
  # A later token cannot be seen.
  changed = apply(ENCODER_INPUTS, DECODER_INPUTS.at[:, 4:].set(11), TARGETS)
  np.testing.assert_allclose(full[1, :4], changed[1, :4], rtol=1e-5, atol=1e-6)


def test_packed_examples_equal_separate_ones(tiny):
  model, variables = tiny

  def apply(*args, **kw):
    return model.apply(variables, *args, enable_dropout=False, **kw)

  # Relative positions do not care where a packed example starts.
  packed = apply(
      jnp.array([[3, 9, 1, 5, 1]]),
      jnp.array([[0, 4, 0, 9, 8]]),
      jnp.array([[4, 1, 9, 8, 1]]),
      encoder_segment_ids=jnp.array([[1, 1, 1, 2, 2]]),
      decoder_segment_ids=jnp.array([[1, 1, 2, 2, 2]]),
  )
  first = apply(
      jnp.array([[3, 9, 1]]), jnp.array([[0, 4]]), jnp.array([[4, 1]])
  )
  second = apply(
      jnp.array([[5, 1]]), jnp.array([[0, 9, 8]]), jnp.array([[9, 8, 1]])
  )
  np.testing.assert_allclose(packed[:, :2], first, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(packed[:, 2:], second, rtol=1e-4, atol=1e-5)


def test_packed_examples_cannot_be_decoded(tiny):
  model, variables = tiny
  with pytest.raises(ValueError, match='pack=False'):
    model.apply(
        variables,
        jnp.zeros((2, 5, 8)),
        ENCODER_INPUTS,
        DECODER_INPUTS,
        TARGETS,
        encoder_segment_ids=jnp.ones_like(ENCODER_INPUTS),
        decode=True,
        method='decode',
    )


def test_dropout_needs_a_key_and_changes_the_logits(tiny):
  model, variables = tiny
  dropped = [
      model.apply(
          variables,
          ENCODER_INPUTS,
          DECODER_INPUTS,
          TARGETS,
          rngs={'dropout': jax.random.key(seed)},
      )
      for seed in (1, 1, 2)
  ]
  np.testing.assert_array_equal(dropped[0], dropped[1])
  assert not np.allclose(dropped[0], dropped[2])


def test_tied_logits_are_divided_by_the_root_of_the_width():
  config = TINY.replace(logits_via_embedding=True, num_decoder_layers=0)
  model = network.Transformer(config)
  params = _init(config)['params']
  logits = model.apply(
      {'params': params},
      ENCODER_INPUTS,
      DECODER_INPUTS,
      TARGETS,
      enable_dropout=False,
  )
  table = np.asarray(params['token_embedder']['embedding'])
  x = table[DECODER_INPUTS]
  x /= np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(
      logits, x @ table.T / np.sqrt(8), rtol=1e-4, atol=1e-5
  )


def test_a_config_may_be_subclassed_and_its_dtype_be_a_name():
  @struct.dataclass
  class Config(network.T5Config):
    extra: int = 3

  config = Config(
      vocab_size=17,
      dtype='bfloat16',
      emb_dim=8,
      num_heads=2,
      head_dim=4,
      mlp_dim=8,
      num_encoder_layers=1,
      num_decoder_layers=1,
  )
  assert config.extra == 3
  params = _init(config)['params']
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
  model = network.Transformer(config)
  encoded = model.apply(
      {'params': params}, ENCODER_INPUTS, enable_dropout=False, method='encode'
  )
  assert encoded.dtype == jnp.bfloat16
  logits = model.apply(
      {'params': params},
      ENCODER_INPUTS,
      DECODER_INPUTS,
      TARGETS,
      enable_dropout=False,
  )
  assert logits.dtype == jnp.float32


def test_importing_the_network_brings_no_tensorflow():
  code = (
      'import sys; from t5x.examples.t5 import network; network.layers.Embed;'
      "print([m for m in ('tensorflow', 'seqio') if m in sys.modules])"
  )
  result = subprocess.run(
      [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert result.stdout.strip() == '[]'


def test_tokens_are_gathered_off_tpu_and_multiplied_on_it(tiny):
  model, variables = tiny
  tokens = jnp.array([[3, 1, 2]])

  def primitives():
    # A new function each time: the platform is no part of JAX's cache key.
    def encode(tokens):
      return model.apply(
          variables, tokens, method=lambda m, t: m.shared_embedding(t)
      )

    return [str(e.primitive) for e in jax.make_jaxpr(encode)(tokens).eqns]

  assert 'dot_general' not in primitives() and 'gather' in primitives()
  device = jax.sharding.AbstractDevice(
      device_kind='TPU v5 lite', num_cores=1, platform='tpu'
  )
  mesh = jax.sharding.AbstractMesh((1,), ('data',), abstract_device=device)
  with jax.sharding.use_abstract_mesh(mesh):
    assert 'dot_general' in primitives() and 'gather' not in primitives()
