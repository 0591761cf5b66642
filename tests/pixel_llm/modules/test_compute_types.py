"""What is computed in bfloat16, and what in float32 whatever the type.

The jaxpr of a module tells: matrix products take halves, norms, softmax and
logits float32, and no gradient of a parameter loses its type.
"""

from collections.abc import Iterator

import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_llm.modules import bert_text_head
from pixel_llm.modules import eva02_vit
from pixel_llm.modules import sam_image_encoder
from pixel_llm.modules import t5_text_head

IMAGES = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
VISUAL = jax.random.normal(jax.random.key(1), (2, 4, 16))
TOKENS = jnp.array([[0, 5, 0, 7, 1, 0], [0, 3, 2, 2, 9, 1]])
VOCABULARY = 23


def eva02(dtype, scan_layers):
  # At the size of the position table, so that nothing is resized.
  return eva02_vit.Eva02Vit(
      patch_size=4,
      embed_dim=16,
      depth=2,
      num_heads=2,
      pretrain_image_size=16,
      scan_layers=scan_layers,
      dtype=dtype,
  ), (IMAGES,)


def sam(dtype, scan_layers):
  return sam_image_encoder.SamImageEncoder(
      image_size=16,
      patch_size=4,
      embed_dim=16,
      depth=4,
      num_heads=2,
      output_dim=8,
      window_size=2,
      global_block_indexes=(1, 3),
      scan_layers=scan_layers,
      dtype=dtype,
  ), (IMAGES,)


def t5(dtype, scan_layers):
  config = t5_text_head.T5TextConfig(
      vocab_size=VOCABULARY,
      dtype=dtype,
      emb_dim=16,
      num_heads=2,
      num_encoder_layers=2,
      num_decoder_layers=2,
      head_dim=8,
      mlp_dim=32,
      mlp_activations=('gelu', 'linear'),
      encoder_lora_rank=2,
      decoder_lora_rank=2,
      float32_attention_logits=True,
      scan_layers=scan_layers,
  )
  return t5_text_head.T5TextHead(config), (VISUAL, TOKENS)


def bert(dtype, scan_layers):
  return bert_text_head.BertTextHead(
      vocab_size=VOCABULARY,
      emb_dim=16,
      num_heads=2,
      num_layers=2,
      mlp_dim=32,
      max_length=8,
      scan_layers=scan_layers,
      dtype=dtype,
  ), (VISUAL, TOKENS)


MODULES = {'eva02': eva02, 'sam': sam, 't5': t5, 'bert': bert}


def equations(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
  """All equations, those of scans and of inner functions too."""
  for equation in jaxpr.eqns:
    yield equation
    for inner in core.jaxprs_in_params(equation.params):
      yield from equations(inner)


def types(equation):
  return [v.aval.dtype.name for v in equation.invars]


def random_params(module, inputs, dtype):
  shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)['params']
  rng = np.random.default_rng(0)
  return jax.tree.map(
      lambda x: jnp.asarray(rng.normal(scale=0.2, size=x.shape), dtype), shapes
  )


@pytest.mark.parametrize('stored', ['float32', 'bfloat16'])
@pytest.mark.parametrize('scan_layers', [False, True])
@pytest.mark.parametrize('name', MODULES)
def test_products_take_halves_and_norms_float32(name, scan_layers, stored):
  module, inputs = MODULES[name]('bfloat16', scan_layers)
  params = random_params(module, inputs, stored)
  jaxpr = jax.make_jaxpr(module.apply)({'params': params}, *inputs).jaxpr
  found = {}
  for equation in equations(jaxpr):
    found.setdefault(equation.primitive.name, []).append(equation)
  products = found['dot_general'] + found.get('conv_general_dilated', [])
  of_logits = [e for e in products if e.outvars[0].aval.shape[-1] == VOCABULARY]
  for equation in products:
    wanted = 'float32' if equation in of_logits else 'bfloat16'
    assert types(equation) == [wanted] * 2, equation
  assert bool(of_logits) == (name in ('t5', 'bert'))
  # Softmax has the only exponential, norms the only reciprocal roots.
  for primitive in ('exp', 'rsqrt'):
    for equation in found[primitive]:
      assert types(equation) == ['float32'], equation


@pytest.mark.parametrize(
    'name',
    [
        'eva02',
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ('sam', 't5', 'bert')
        ),
    ],
)
def test_half_precision_stays_near_and_trains_in_float32(name):
  outputs, grads = [], []
  for dtype in ('float32', 'bfloat16'):
    module, inputs = MODULES[name](dtype, True)
    params = random_params(module, inputs, 'float32')

    def loss(params, module=module, inputs=inputs):
      output = module.apply({'params': params}, *inputs)
      output = getattr(output, 'logits', output)
      return jnp.mean(jnp.square(output.astype(jnp.float32))), output

    (_, output), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    outputs.append(np.asarray(output, 'float32'))
    grads.append(grad)
  assert output.dtype == ('float32' if name in ('t5', 'bert') else 'bfloat16')
  scale = np.std(outputs[0])
  np.testing.assert_allclose(outputs[1], outputs[0], atol=0.1 * scale)
  largest = max(np.linalg.norm(x) for x in jax.tree.leaves(grads[0]))
  for full, half in zip(*map(jax.tree.leaves, grads)):
    assert half.dtype == jnp.float32
    # By cosine: single values are small sums of large ones. A bias of keys has
    # no gradient but rounding errors.
    if np.linalg.norm(full) > 1e-4 * largest:
      product = np.linalg.norm(half) * np.linalg.norm(full)
      assert np.vdot(half, full) >= 0.97 * product
