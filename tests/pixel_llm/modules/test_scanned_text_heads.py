"""Scanned and unrolled text heads: equal texts, numbers and gradients."""

import functools

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_llm import beam_search
from pixel_llm import generation
from pixel_llm import layer_layout
from pixel_llm.modules import bert_text_head
from pixel_llm.modules import t5_text_head

T5 = t5_text_head.T5TextHead(
    t5_text_head.T5TextConfig(
        vocab_size=11,
        emb_dim=8,
        num_heads=2,
        num_encoder_layers=2,
        num_decoder_layers=3,
        head_dim=4,
        mlp_dim=12,
        mlp_activations=('gelu', 'linear'),
        encoder_lora_rank=3,
        decoder_lora_rank=2,
        decoder_lora_scale=1.5,
    )
)
BERT = bert_text_head.BertTextHead(
    vocab_size=11,
    emb_dim=8,
    num_heads=2,
    num_layers=3,
    mlp_dim=12,
    max_length=8,
    feature_fusion='concat:0,2,-1',
)
HEADS = {'t5': T5, 'bert': BERT}
VISUAL = jax.random.normal(jax.random.key(1), (2, 4, 8))
TOKENS = jnp.array([[0, 5, 0, 7, 1, 0], [0, 3, 2, 2, 9, 1]])
CONTEXT = jnp.array([[4, 0, 0], [6, 7, 8]])
END = 1
# With it both heads write texts of several words.
SEED = 2
DECODERS = {
    'greedy': generation.Greedy(),
    'beams': beam_search.BeamSearch(num_beams=3, per_node_beam_size=2),
}


def scanned_form(head, **fields):
  if isinstance(head, t5_text_head.T5TextHead):
    return head.clone(config=head.config.replace(scan_layers=True, **fields))
  return head.clone(scan_layers=True, **fields)


def shapes_of(head):
  variables = jax.eval_shape(
      head.init, jax.random.key(0), VISUAL, TOKENS, CONTEXT
  )
  return variables['params']


@functools.cache
def both_forms(name):
  """A head in both forms, with the same random parameters."""
  head = HEADS[name]
  rng = np.random.default_rng(SEED)
  params = jax.tree.map(
      lambda x: jnp.asarray(rng.normal(scale=0.4, size=x.shape), jnp.float32),
      shapes_of(head),
  )
  # Texts shall not end at once.
  if name == 't5':
    kernel = params['t5_module']['decoder']['logits_dense']['kernel']
    params['t5_module']['decoder']['logits_dense']['kernel'] = 3 * kernel.at[
        :, END
    ].multiply(0.1)
  else:
    params['output']['bias'] = params['output']['bias'].at[END].add(-3)
  scanned = scanned_form(head)
  return (head, params), (
      scanned,
      layer_layout.to_layout_of(params, shapes_of(scanned)),
  )


@pytest.mark.parametrize(
    'name, policy',
    [
        ('t5', 'minimal'),
        pytest.param('t5', 'none', marks=pytest.mark.slow),
        pytest.param('bert', 'minimal', marks=pytest.mark.slow),
        pytest.param('bert', 'none', marks=pytest.mark.slow),
    ],
)
def test_both_forms_give_equal_outputs_and_gradients(name, policy):
  def value_and_grad(head, params):
    def loss(params):
      output = head.apply({'params': params}, VISUAL, TOKENS, CONTEXT)
      return jnp.sum(jnp.sin(output.logits + jnp.sum(output.features))), output

    (_, output), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return output, layer_layout.to_unrolled(grads)

  (head, params), (_, scanned_params) = both_forms(name)
  expected = value_and_grad(head, params)
  actual = value_and_grad(
      scanned_form(head, remat_policy=policy), scanned_params
  )
  for one, other in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
    np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    'decoder', [pytest.param('greedy', marks=pytest.mark.slow), 'beams']
)
@pytest.mark.parametrize('name', HEADS)
def test_both_forms_decode_the_same_text(name, decoder):
  def decode(head, params):
    @jax.jit
    def run(params):
      def apply(*args, method):
        return head.apply({'params': params}, *args, method=method)

      cache = apply(
          apply(VISUAL, CONTEXT, method='encode'),
          DECODERS[decoder].num_beams,
          6,
          method='start_decode',
      )
      return DECODERS[decoder](
          functools.partial(apply, method='decode_step'),
          cache,
          generation.start_tokens(2, 6, begin_id=0, end_id=1),
          1,
      )

    return run(params)

  unrolled, scanned = (decode(*form) for form in both_forms(name))
  np.testing.assert_array_equal(scanned.tokens, unrolled.tokens)
  np.testing.assert_allclose(scanned.scores, unrolled.scores, rtol=1e-4)
  assert len(np.unique(unrolled.tokens)) > 3


@pytest.mark.parametrize('name', HEADS)
def test_parameters_name_the_axis_of_layers(name):
  variables = jax.eval_shape(
      scanned_form(HEADS[name]).init,
      jax.random.key(0),
      VISUAL,
      TOKENS,
      CONTEXT,
  )
  axes = traverse_util.flatten_dict(variables['params_axes'], sep='/')
  params = traverse_util.flatten_dict(variables['params'], sep='/')
  assert len(axes) == len(params)
  for path, array in params.items():
    names = axes[f'{path}_axes'].names
    assert len(names) == array.ndim, path
    in_stack = any(
        part in path
        for part in ('encoder/encoder/', 'decoder/decoder/', 'encoder/layer/')
    )
    assert ('layers' in names) == in_stack, path
    assert len(set(names)) == len(names), path


def test_adapters_start_as_the_base_model_and_merge_in_the_scanned_form():
  head = scanned_form(T5)
  _, (_, params) = both_forms('t5')
  fresh = jax.jit(head.init)(jax.random.key(0), VISUAL, TOKENS, CONTEXT)
  flat = traverse_util.flatten_dict(fresh['params'], sep='/')
  right = flat[
      't5_module/decoder/decoder/self_attention/query/kernel_right_lora'
  ]
  assert right.shape == (2, 3, 8) and not np.any(right)
  merged = t5_text_head.merge_adapters(params, head.config)
  base = head.clone(
      config=head.config.replace(encoder_lora_rank=0, decoder_lora_rank=0)
  )
  np.testing.assert_allclose(
      jax.jit(base.apply)({'params': merged}, VISUAL, TOKENS, CONTEXT).logits,
      jax.jit(head.apply)({'params': params}, VISUAL, TOKENS, CONTEXT).logits,
      rtol=1e-4,
      atol=1e-4,
  )


@pytest.mark.parametrize('form', [0, 1], ids=['unrolled', 'scanned'])
@pytest.mark.parametrize('name', HEADS)
def test_prompts_are_taken_by_slot_in_either_form(name, form):
  head, params = both_forms(name)[form]
  # Two images of two prompts: rows 0 to 3.
  visual = jax.random.normal(jax.random.key(2), (4, 4, 8))
  context = jnp.concatenate([CONTEXT, CONTEXT[::-1]])

  def encode(rows):
    return head.apply(
        {'params': params}, visual[rows], context[rows], method='encode'
    )

  taken = encode(jnp.arange(4)).take_prompts(jnp.array([[1, 1], [1, 0]]))
  expected = encode(jnp.array([1, 1, 3, 2]))
  assert jax.tree.structure(taken) == jax.tree.structure(expected)
  for one, other in zip(*map(jax.tree.leaves, (taken, expected)), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
