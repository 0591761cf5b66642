"""Counted matrix work against numbers worked by hand, and against XLA's."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import pytest

from t5x import matmul_flops
from t5x.examples.t5 import network


def shape(*dims):
  return jax.ShapeDtypeStruct(dims, jnp.float32)


def traced(fn, *args):
  return matmul_flops.count_jaxpr(jax.make_jaxpr(fn)(*args))


def of_xla(fn, *args):
  """XLA's count, which is right without loops; elementwise work included."""
  return jax.jit(fn).lower(*args).cost_analysis()['flops']


def test_a_product_is_two_operations_a_pair():
  assert matmul_flops.count(jnp.matmul, shape(3, 5), shape(5, 7)) == 2 * 105


def test_batched_attention_by_hand():
  def attention(q, k, v):
    weights = jnp.einsum('bqhd,bkhd->bhqk', q, k)
    return jnp.einsum('bhqk,bkhd->bqhd', weights, v)

  q, kv = shape(2, 6, 4, 8), shape(2, 10, 4, 8)
  by_hand = 2 * (2 * 2 * 4 * 6 * 10 * 8)
  assert matmul_flops.count(attention, q, kv, kv) == by_hand
  assert of_xla(attention, q, kv, kv) == by_hand


@pytest.mark.parametrize(
    'kwargs',
    [
        {'window_strides': (1, 1), 'padding': 'VALID'},
        {'window_strides': (2, 1), 'padding': 'SAME'},
        {'window_strides': (1, 1), 'padding': ((2, 1), (0, 3))},
        {
            'window_strides': (1, 1),
            'padding': ((1, 1), (0, 2)),
            'lhs_dilation': (2, 3),
        },
        {'window_strides': (1, 2), 'padding': 'SAME', 'rhs_dilation': (2, 2)},
    ],
)
@pytest.mark.parametrize('groups', ['none', 'features', 'batch'])
def test_convolutions_are_what_xla_counts(kwargs, groups):
  if groups == 'features':
    kwargs = kwargs | {'feature_group_count': 4}
  if groups == 'batch':
    kwargs = kwargs | {'batch_group_count': 2}
  inputs, kernel = shape(2, 9, 8, 12), shape(3, 2, 12, 8)
  if groups == 'features':
    kernel = shape(3, 2, 3, 8)

  def conv(x, k):
    return jax.lax.conv_general_dilated(
        x, k, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), **kwargs
    )

  counted = matmul_flops.count(conv, inputs, kernel)
  assert counted == of_xla(conv, inputs, kernel)


def test_a_patch_embedding_by_hand():
  def embed(pixels, kernel):
    return jax.lax.conv_general_dilated(
        pixels,
        kernel,
        (4, 4),
        'VALID',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )

  counted = matmul_flops.count(embed, shape(2, 16, 8, 3), shape(4, 4, 3, 10))
  assert counted == 2 * 2 * (4 * 2) * (4 * 4 * 3) * 10


# ---- Programs in programs ---------------------------------------------------

WEIGHTS = shape(5, 8, 8)
INPUTS = shape(3, 8)
LAYER = 2 * 3 * 8 * 8


def layer(x, w):
  return jnp.tanh(x @ w), None


def scanned(x, weights):
  return jax.lax.scan(layer, x, weights)[0]


def unrolled(x, weights):
  for i in range(weights.shape[0]):
    x, _ = layer(x, weights[i])
  return x


def gradients(fn):
  return jax.value_and_grad(lambda x, w: jnp.sum(fn(x, w)), argnums=(0, 1))


def test_a_scan_counts_as_its_unrolled_layers():
  assert matmul_flops.count(scanned, INPUTS, WEIGHTS) == 5 * LAYER
  assert matmul_flops.count(unrolled, INPUTS, WEIGHTS) == 5 * LAYER
  # Forward, and a product each for the inputs and for the weights.
  for fn in scanned, unrolled:
    assert matmul_flops.count(gradients(fn), INPUTS, WEIGHTS) == 3 * 5 * LAYER


def test_frozen_weights_cost_a_third_less():
  frozen = jax.value_and_grad(lambda x, w: jnp.sum(scanned(x, w)))
  assert matmul_flops.count(frozen, INPUTS, WEIGHTS) == 2 * 5 * LAYER


def test_a_nested_scan_multiplies_its_lengths():
  def twice(x, weights):
    return jax.lax.scan(lambda c, w: (scanned(c, w), None), x, weights)[0]

  counted = matmul_flops.count(jax.jit(twice), INPUTS, shape(4, 5, 8, 8))
  assert counted == 4 * 5 * LAYER


def test_what_no_result_needs_is_not_counted():
  def wasteful(x, w):
    x @ w
    return x + 1

  assert matmul_flops.count(jax.jit(wasteful), INPUTS, shape(8, 8)) == 0


def test_the_dearest_branch_counts():
  def either(flag, x, w):
    return jax.lax.cond(flag, lambda: x, lambda: (x @ w) @ w)

  flag = jax.ShapeDtypeStruct((), jnp.bool_)
  assert matmul_flops.count(either, flag, INPUTS, shape(8, 8)) == 2 * LAYER


@pytest.mark.parametrize(
    ('test', 'step', 'trips'),
    [
        (lambda i: i < 7, 1, 7),
        (lambda i: i <= 7, 3, 3),
        (lambda i: i < 0, 1, 0),
    ],
)
def test_a_while_with_constant_bounds_multiplies_its_trips(test, step, trips):
  def loop(x, w):
    return jax.lax.while_loop(
        lambda s: test(s[0]), lambda s: (s[0] + step, s[1] @ w), (0, x)
    )

  flops = traced(loop, INPUTS, shape(8, 8))
  assert flops.total == trips * LAYER
  assert not flops.unknown


def test_a_while_that_data_end_counts_once_and_is_told():
  def loop(x, w):
    return jax.lax.while_loop(lambda s: jnp.sum(s) < 7.0, lambda s: s @ w, x)

  flops = traced(loop, INPUTS, shape(8, 8))
  assert flops.total == LAYER
  (line,) = flops.unknown
  assert 'one trip' in line and 'test_matmul_flops.py' in line


def test_a_shard_map_counts_on_all_its_devices():
  mesh = jax.sharding.AbstractMesh((4, 2), ('data', 'model'))
  spec = jax.sharding.PartitionSpec

  def product(x, w):
    return jax.shard_map(
        jnp.matmul,
        mesh=mesh,
        in_specs=(spec('data', None), spec(None, 'model')),
        out_specs=spec('data', 'model'),
    )(x, w)

  assert matmul_flops.count(product, shape(8, 8), shape(8, 8)) == 2 * 8 * 8 * 8


# ---- Rematerialisation ------------------------------------------------------

POLICIES = {
    'full': None,
    'dots': jax.checkpoint_policies.dots_saveable,
    'everything': jax.checkpoint_policies.everything_saveable,
}


def two_products(x, w):
  return jnp.tanh(jnp.tanh(x @ w) @ w.T), None


@pytest.mark.parametrize('policy', POLICIES)
@pytest.mark.parametrize('outside', [False, True])
def test_model_flops_leave_out_what_is_computed_again(policy, outside):
  """The layers of a checkpointed scan, and a scan inside a checkpoint."""

  def remat(fn):
    return jax.checkpoint(fn, policy=POLICIES[policy])

  def stack(body):
    return lambda x, w: jax.lax.scan(body, x, w)[0]

  plain = traced(gradients(stack(two_products)), INPUTS, WEIGHTS)
  again = remat(stack(two_products)) if outside else stack(remat(two_products))
  again = traced(gradients(again), INPUTS, WEIGHTS)
  assert plain.total == plain.model == 3 * 10 * LAYER
  assert again.model == plain.total
  # Alone, a layer needs its first product again and not its second; a
  # checkpointed scan needs all its layers to come to the last one.
  repeats = {'full': 5 + 4 * outside, 'dots': 0, 'everything': 0}[policy]
  assert again.recomputed >= repeats * LAYER
  assert (again.recomputed > 0) == (policy == 'full')


def test_recomputation_of_nested_checkpoints_counts_once_as_such():
  @jax.checkpoint
  def outer(x, w):
    return scanned(x, w)

  inner = jax.checkpoint(layer)

  @jax.checkpoint
  def both(x, w):
    return jax.lax.scan(inner, x, w)[0]

  plain = traced(gradients(scanned), INPUTS, WEIGHTS).total
  for fn in outer, both:
    flops = traced(gradients(fn), INPUTS, WEIGHTS)
    assert flops.model == plain
    assert flops.recomputed > 0
  assert (
      matmul_flops.count(gradients(both), INPUTS, WEIGHTS, recomputation=True)
      == flops.total
  )


def test_a_flax_stack_scanned_and_checkpointed_counts_as_the_plain_one():
  class Block(nn.Module):

    @nn.compact
    def __call__(self, x, _):
      y = nn.MultiHeadDotProductAttention(num_heads=2)(x)
      return x + nn.Dense(8)(nn.gelu(nn.Dense(32)(y))), None

  def stack(block):
    return nn.scan(
        block, {'params': 0}, split_rngs={'params': True}, length=3
    )()

  def flops(module):
    x = shape(2, 6, 8)
    params = jax.eval_shape(module.init, jax.random.key(0), x, None)
    return traced(
        jax.value_and_grad(lambda p, x: jnp.sum(module.apply(p, x, None)[0])),
        params,
        x,
    )

  plain, again = flops(stack(Block)), flops(stack(nn.remat(Block)))
  assert again.model == plain.total
  assert again.recomputed > 0


# ---- A whole model ----------------------------------------------------------


@pytest.mark.parametrize('scan_layers', [False, True])
@pytest.mark.parametrize('remat_policy', ['none', 'full'])
def test_a_t5_counts_what_its_formula_says(scan_layers, remat_policy):
  batch, source, target = 2, 24, 10
  width, heads, head, mlp, vocab = 16, 4, 8, 40, 96
  config = network.T5Config(
      vocab_size=vocab,
      emb_dim=width,
      num_heads=heads,
      num_encoder_layers=2,
      num_decoder_layers=3,
      head_dim=head,
      mlp_dim=mlp,
      mlp_activations=('gelu', 'linear'),
      dropout_rate=0.0,
      scan_layers=scan_layers,
      remat_policy=remat_policy,
  )
  module = network.Transformer(config)
  tokens = [
      jax.ShapeDtypeStruct((batch, length), jnp.int32)
      for length in (source, target, target)
  ]
  variables = jax.eval_shape(
      lambda *t: module.init(jax.random.key(0), *t, enable_dropout=False),
      *tokens,
  )

  def loss(params, *tokens):
    logits = module.apply({'params': params}, *tokens, enable_dropout=False)
    return jnp.sum(logits)

  counted = traced(jax.value_and_grad(loss), variables['params'], *tokens)
  inputs, targets = batch * source, batch * target
  projection, joined = 2 * width * heads * head, 2 * heads * head
  feed_forward = 3 * 2 * width * mlp
  encoder = inputs * (4 * projection + feed_forward + 2 * joined * source)
  decoder = targets * (6 * projection + feed_forward + 2 * joined * target)
  # Attention to the encoder: its keys and values are of the inputs.
  decoder += inputs * 2 * projection + targets * 2 * joined * source
  head_flops = 2 * targets * width * vocab
  trained = 3 * (2 * encoder + 3 * decoder + head_flops)
  # Looked up with products, whose one factor has no gradient: tokens, and 32
  # buckets of relative positions.
  positions = 2 * 2 * heads * 32 * (source**2 + target**2)
  lookups = 2 * 2 * (inputs + targets) * vocab * width
  assert counted.model - trained - positions in (0, lookups)
  assert (counted.recomputed > 0) == (remat_policy == 'full')
