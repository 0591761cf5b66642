"""Models of whole networks: decoding agrees with reading, scores with both."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recurrent_networks

from t5x import decoding
from t5x import models
from t5x.examples.t5 import network

EOS = 1
VOCABULARY = mock.Mock(eos_id=EOS)
LENGTH = 6
GREEDY = functools.partial(decoding.temperature_sample, topk=1)

T5_CONFIG = network.T5Config(
    vocab_size=9,
    emb_dim=8,
    num_heads=2,
    num_encoder_layers=2,
    num_decoder_layers=2,
    head_dim=4,
    mlp_dim=16,
    mlp_activations=('gelu', 'linear'),
    dropout_rate=0.1,
)
NETWORKS = {
    't5': network.Transformer(
        T5_CONFIG.replace(num_encoder_layers=1, num_decoder_layers=1)
    ),
    'scanned t5': network.Transformer(T5_CONFIG.replace(scan_layers=True)),
    'recurrent': recurrent_networks.EncoderDecoder(),
    'prefilled': recurrent_networks.PrefilledEncoderDecoder(),
}
BATCH = {
    'encoder_input_tokens': jnp.array([[5, 6, 2, EOS], [3, EOS, 0, 0]]),
    'decoder_input_tokens': jnp.array(
        [[0, 4, 3, 5, 2, 2], [0, 2, EOS, 0, 0, 0]]
    ),
    'decoder_target_tokens': jnp.array(
        [[4, 3, 5, 2, 2, EOS], [2, EOS, 0, 0, 0, 0]]
    ),
    'decoder_loss_weights': jnp.array(
        [[1.0, 1, 0.5, 1, 1, 1], [1, 1, 0, 0, 0, 0]]
    ),
}
SHAPES = {name: array.shape for name, array in BATCH.items()}


@functools.cache
def initial_params(cls, name):
  model = cls(name)
  variables = jax.jit(
      lambda: model.get_initial_variables(jax.random.PRNGKey(1), SHAPES)
  )()
  return variables['params']


def encoder_decoder(name, **kwargs):
  return models.EncoderDecoderModel(
      NETWORKS[name], VOCABULARY, VOCABULARY, None, **kwargs
  )


def language_model(name=None, **kwargs):
  return models.DecoderOnlyModel(
      recurrent_networks.LanguageModel(), VOCABULARY, None, **kwargs
  )


def uncached_greedy(logits_fn, prompts):
  """Writes by reading all tokens anew for each; prompts end at a 0."""
  read = np.zeros(BATCH['decoder_input_tokens'].shape, np.int32)
  ended = np.zeros(len(read), bool)
  written = np.zeros_like(read)
  logits_fn = jax.jit(logits_fn)
  for place in range(LENGTH):
    choice = np.argmax(logits_fn(read)[:, place], -1)
    given = prompts[:, place + 1] if place + 1 < LENGTH else 0 * choice
    token = np.where(given, given, choice) * ~ended
    written[:, place] = token
    ended |= (token == EOS) & (given == 0)
    if place + 1 < LENGTH:
      read[:, place + 1] = token
  return written


def encoder_decoder_logits(model, params):
  def logits(tokens):
    # Padding of the targets is masked: all of them are read here.
    targets = jnp.ones_like(tokens)
    return model._compute_logits(
        params,
        {
            **BATCH,
            'decoder_input_tokens': tokens,
            'decoder_target_tokens': targets,
        },
    )

  return logits


@pytest.mark.parametrize(
    ('name', 'prompted'),
    [
        ('t5', False),
        ('scanned t5', True),
        ('recurrent', True),
        ('prefilled', False),
        ('prefilled', True),
    ],
)
def test_cached_decoding_equals_reading_all_anew(name, prompted):
  model = encoder_decoder(name, decode_fn=GREEDY)
  params = initial_params(encoder_decoder, name)
  predict = functools.partial(
      model.predict_batch_with_aux, prompt_with_targets=prompted
  )
  prompts = np.zeros((2, LENGTH), np.int32)
  if prompted:
    tokens = np.asarray(BATCH['decoder_input_tokens'])
    prompts = np.where(tokens == EOS, 0, tokens)
  ids, _ = jax.jit(predict)(params, BATCH)
  np.testing.assert_array_equal(
      ids, uncached_greedy(encoder_decoder_logits(model, params), prompts)
  )


@pytest.mark.parametrize('name', ['scanned t5', 'prefilled'])
def test_scores_of_beams_are_those_of_reading_them(name):
  alpha = 0.6
  model = encoder_decoder(name)
  params = initial_params(encoder_decoder, name)
  predict = functools.partial(
      model.predict_batch_with_aux,
      num_decodes=3,
      return_all_decodes=True,
      decoder_params={'alpha': alpha},
  )
  ids, aux = jax.jit(predict)(params, BATCH)
  assert ids.shape == (2, 3, LENGTH)
  assert aux['scores'].shape == (2, 3)
  read = jax.jit(encoder_decoder_logits(model, params))
  has_ended = np.any(np.asarray(ids) == EOS, axis=(1, 2))
  for beam in range(3):
    written = np.asarray(ids[:, beam])
    lengths = [
        (*row, EOS).index(EOS) + 1 if EOS in row else LENGTH
        for row in written.tolist()
    ]
    logits = read(np.pad(written[:, :-1], ((0, 0), (1, 0))))
    log_probs = np.take_along_axis(
        np.asarray(jax.nn.log_softmax(logits)), written[..., None], -1
    )[..., 0]
    for row, length in enumerate(lengths):
      if has_ended[row] and EOS not in written[row]:
        # Fewer than three have ended: the place is empty.
        assert aux['scores'][row, beam] < -1e6
        continue
      penalty = ((5 + length) / 6) ** alpha if has_ended[row] else 1.0
      expected = log_probs[row, :length].sum() / penalty
      np.testing.assert_allclose(
          aux['scores'][row, beam], expected, rtol=1e-4, atol=1e-5
      )


def test_prefill_changes_nothing_for_beams():
  results = []
  for name in ('recurrent', 'prefilled'):
    model = encoder_decoder(
        name,
        default_decoder_params=models.DecoderParams(
            return_all_decodes=True, num_decodes=2
        ),
    )
    predict = functools.partial(
        model.predict_batch_with_aux, prompt_with_targets=True
    )
    params = initial_params(encoder_decoder, 'recurrent')
    results.append(jax.jit(predict)(params, BATCH))
  (ids, aux), (prefilled_ids, prefilled_aux) = results
  assert ids.shape == (2, 2, LENGTH)
  np.testing.assert_array_equal(ids, prefilled_ids)
  np.testing.assert_allclose(aux['scores'], prefilled_aux['scores'], rtol=1e-4)


def test_the_prompt_is_prefilled_only_where_both_sides_can():
  calls = []

  class Counting(recurrent_networks.PrefilledEncoderDecoder):

    def decode(self, *args, prefill=False, **kwargs):
      calls.append(prefill)
      return super().decode(*args, prefill=prefill, **kwargs)

  def without_start(inputs, cache, tokens_to_logits, eos_id, **kwargs):
    return decoding.beam_search(
        inputs, cache, tokens_to_logits, eos_id, **kwargs
    )

  params = initial_params(encoder_decoder, 'recurrent')
  for decode_fn, expected in ((decoding.beam_search, 1), (without_start, 0)):
    calls.clear()
    model = models.EncoderDecoderModel(
        Counting(), VOCABULARY, VOCABULARY, None, decode_fn=decode_fn
    )
    jax.eval_shape(model.predict_batch, params, BATCH)
    assert calls.count(True) == expected


def scores_by_hand(logits):
  targets = np.asarray(BATCH['decoder_target_tokens'])
  logits = np.asarray(logits, np.float64)
  log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  picked = np.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
  return picked * BATCH['decoder_loss_weights']


@pytest.mark.parametrize(
    ('build', 'name'), [(encoder_decoder, 'recurrent'), (language_model, None)]
)
def test_scores_are_weighted_log_probabilities(build, name):
  # Neither z-loss nor smoothing is part of a score.
  model = build(name, z_loss=0.1, label_smoothing=0.1)
  params = initial_params(build, name)
  score = jax.jit(model.score_batch, static_argnums=2)
  expected = scores_by_hand(jax.jit(model._compute_logits)(params, BATCH))
  scores, sowed = score(params, BATCH, True)
  np.testing.assert_allclose(scores, expected.sum(-1), rtol=1e-4)
  np.testing.assert_allclose(scores, score(params, BATCH, False), rtol=1e-6)
  (token_scores,) = sowed['decoder']['token_scores']
  np.testing.assert_allclose(token_scores, expected, rtol=1e-4)
  for name in ('target_tokens', 'loss_weights'):
    (value,) = sowed['decoder'][name]
    np.testing.assert_array_equal(value, BATCH[f'decoder_{name}'])
  assert ('context' in sowed) == (build is language_model)


def test_loss_is_that_of_the_logits_and_dropout_moves_it():
  model = encoder_decoder('t5')
  params = initial_params(encoder_decoder, 't5')
  loss_fn = jax.jit(model.loss_fn)
  loss, metrics = loss_fn(params, BATCH, None)
  scores = jax.jit(model.score_batch)(params, BATCH)
  np.testing.assert_allclose(loss, -scores.sum(), rtol=1e-5)
  assert metrics['effective_batch_size/decoder'].compute() == 2
  dropped, _ = loss_fn(params, BATCH, jax.random.PRNGKey(0))
  assert abs(dropped - loss) > 1e-3


def test_packed_features_reach_the_network():
  model = encoder_decoder('t5')
  params = initial_params(encoder_decoder, 't5')
  ids = jnp.array([[1, 1, 2, 2]] * 2)
  segments = jnp.array([[1, 1, 2, 2, 2, 2]] * 2)
  packed = {
      **BATCH,
      'encoder_input_tokens': jnp.array([[5, EOS, 2, EOS]] * 2),
      'decoder_target_tokens': jnp.array([[4, EOS, 5, 2, 2, EOS]] * 2),
      'encoder_segment_ids': ids,
      'decoder_segment_ids': segments,
      'encoder_positions': jnp.array([[0, 1, 0, 1]] * 2),
      'decoder_positions': jnp.array([[0, 1, 0, 1, 2, 3]] * 2),
  }
  changed = {
      **packed,
      'encoder_input_tokens': jnp.array([[6, EOS, 2, EOS]] * 2),
  }
  read = jax.jit(model._compute_logits)
  logits, other = read(params, packed), read(params, changed)
  # The second example does not see the first one.
  np.testing.assert_allclose(logits[:, 2:], other[:, 2:], atol=1e-6)
  assert abs(logits[:, :2] - other[:, :2]).max() > 1e-4
  shapes = {name: array.shape for name, array in packed.items()}
  variables = jax.eval_shape(
      lambda: model.get_initial_variables(jax.random.PRNGKey(0), shapes)
  )
  assert jax.tree.structure(variables['params']) == jax.tree.structure(params)


def fake_decode_fn():
  return mock.Mock(return_value=(np.zeros((2, 1, 6)), np.zeros((2, 1))))


@pytest.mark.parametrize(
    ('build', 'name'), [(encoder_decoder, 'recurrent'), (language_model, None)]
)
def test_random_keys_come_one_way(build, name):
  decode_fn = fake_decode_fn()
  model = build(name, decode_fn=decode_fn)
  params = initial_params(build, name)
  batch = {**BATCH, 'decoder_causal_attention': jnp.ones((2, 6), jnp.int32)}

  def key_given(*args, **kwargs):
    jax.eval_shape(
        lambda: model.predict_batch_with_aux(params, batch, *args, **kwargs)
    )
    return decode_fn.call_args.kwargs.get('decode_rng', 'none')

  params_of_caller = {'decode_rng': 3}
  assert key_given() == 'none'
  assert key_given(decoder_params=params_of_caller) == 3
  assert key_given(rng=4) == 4
  assert decode_fn.call_args.kwargs['eos_id'] == EOS
  with pytest.raises(ValueError, match='rng=4.*decode_rng.*=3'):
    key_given(rng=4, decoder_params=params_of_caller)
  assert params_of_caller == {'decode_rng': 3}
  key_given(decoder_params={'eos_id': 8})
  assert decode_fn.call_args.kwargs['eos_id'] == 8


@pytest.mark.parametrize(
    ('name', 'offset'), [('t5', 0), ('scanned t5', 1), ('recurrent', 0)]
)
def test_scanned_layers_put_the_batch_second_in_the_cache(name, offset):
  decode_fn = fake_decode_fn()
  model = encoder_decoder(name, decode_fn=decode_fn)
  params = initial_params(encoder_decoder, name)
  jax.eval_shape(model.predict_batch, params, BATCH)
  assert decode_fn.call_args.kwargs['cache_offset'] == offset


def test_vocabularies_without_an_end_end_at_one():
  decode_fn = fake_decode_fn()
  model = models.EncoderDecoderModel(
      NETWORKS['t5'], None, None, None, decode_fn=decode_fn
  )
  params = initial_params(encoder_decoder, 't5')
  jax.eval_shape(model.predict_batch, params, BATCH)
  assert decode_fn.call_args.kwargs['eos_id'] == 1


def test_subclasses_may_skip_the_constructor():
  """Methods touch only what they need (T5X's own tests rely on it)."""

  class Bare(models.EncoderDecoderModel):

    def __init__(self):
      self.module = NETWORKS['recurrent']
      self._output_vocabulary = VOCABULARY
      self._decode_fn = decoding.beam_search

  params = initial_params(encoder_decoder, 'recurrent')
  found, expected = (
      jax.jit(model.predict_batch)(params, BATCH)
      for model in (Bare(), encoder_decoder('recurrent'))
  )
  np.testing.assert_array_equal(found, expected)


# A decoder alone.

# Inputs of three and one tokens, each seen with the start token before them.
CAUSAL_ATTENTION = jnp.array([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]])
INPUT_LENGTHS = [3, 1]


@pytest.mark.parametrize('num_decodes', [1, 2])
def test_a_language_model_continues_its_inputs(num_decodes):
  model = language_model(decode_fn=GREEDY)
  params = initial_params(language_model, None)
  batch = {**BATCH, 'decoder_causal_attention': CAUSAL_ATTENTION}
  predict = functools.partial(
      model.predict_batch_with_aux,
      num_decodes=num_decodes,
      return_all_decodes=True,
  )
  ids, _ = jax.jit(predict)(params, batch)
  prompts = np.asarray(batch['decoder_input_tokens'] * CAUSAL_ATTENTION)
  written = uncached_greedy(
      lambda tokens: model._compute_logits(
          params, {**BATCH, 'decoder_input_tokens': tokens}
      ),
      prompts,
  )
  for row, length in enumerate(INPUT_LENGTHS):
    expected = np.concatenate([written[row, length:], np.zeros(length)])
    for decode in ids[row]:
      np.testing.assert_array_equal(decode, expected)


def test_beams_of_a_language_model_score_as_they_read():
  model = language_model(decode_fn=decoding.beam_search)
  params = initial_params(language_model, None)
  batch = {**BATCH, 'decoder_causal_attention': CAUSAL_ATTENTION}
  predict = functools.partial(
      model.predict_batch_with_aux,
      num_decodes=2,
      return_all_decodes=True,
      decoder_params={'alpha': 0.0},
  )
  ids, aux = jax.jit(predict)(params, batch)
  inputs = np.asarray(batch['decoder_input_tokens'] * CAUSAL_ATTENTION)
  for beam in range(2):
    targets = np.zeros((2, LENGTH), np.int32)
    weights = np.zeros((2, LENGTH), np.float32)
    for row, length in enumerate(INPUT_LENGTHS):
      targets[row, :length] = inputs[row, 1 : 1 + length]
      targets[row, length:] = ids[row, beam, : LENGTH - length]
      weights[row, length:] = targets[row, length:] > 0
    score = jax.jit(model.score_batch)(
        params,
        {
            'decoder_input_tokens': jnp.pad(targets[:, :-1], ((0, 0), (1, 0))),
            'decoder_target_tokens': jnp.asarray(targets),
            'decoder_loss_weights': jnp.asarray(weights),
        },
    )
    np.testing.assert_allclose(aux['scores'][:, beam], score, rtol=1e-4)


@pytest.mark.parametrize('both_ways', [False, True])
def test_the_inputs_are_prefilled_behind_the_start_token(both_ways):
  module = mock.Mock()
  module.apply.return_value = (jnp.zeros((2, 1, 9)), {'cache': {}})
  model = models.DecoderOnlyModel(
      module, VOCABULARY, None, inputs_bidirectional_attention=both_ways
  )
  batch = {**BATCH, 'decoder_causal_attention': CAUSAL_ATTENTION}
  model.predict_batch({}, batch)
  made, filled = module.apply.call_args_list[:2]
  assert made.kwargs == {
      'decode': True,
      'enable_dropout': False,
      'mutable': ['cache'],
  }
  assert filled.kwargs['prefill']
  np.testing.assert_array_equal(filled.kwargs['prefill_lengths'], [3, 1])
  np.testing.assert_array_equal(
      filled.kwargs['decoder_input_tokens'],
      [[0, 4, 3, 5, 0, 0], [0, 2, 0, 0, 0, 0]],
  )
  assert filled.kwargs['decoder_target_tokens'] is CAUSAL_ATTENTION
  assert filled.kwargs['decoder_causal_attention'] is (
      CAUSAL_ATTENTION if both_ways else None
  )


def test_inputs_must_be_told_from_targets():
  params = initial_params(language_model, None)
  with pytest.raises(ValueError, match='decoder_causal_attention.*inputs'):
    language_model().predict_batch(params, BATCH)
  model = language_model(inputs_bidirectional_attention=True)
  with pytest.raises(ValueError, match='decoder_causal_attention'):
    model.loss_fn(params, BATCH, None)


def test_prefixes_are_cut_off():
  sequences = jnp.array([[1, 2, 3, 4, 0], [6, 7, 8, 9, 10]])
  np.testing.assert_array_equal(
      jax.jit(models.remove_prefix)(sequences, jnp.array([2, 0])),
      [[3, 4, 0, 0, 0], [6, 7, 8, 9, 10]],
  )


@pytest.mark.parametrize(
    ('build', 'name', 'expected'),
    [
        (encoder_decoder, 't5', 'EncDecFeatureConverter'),
        (language_model, None, 'DecoderFeatureConverter'),
    ],
)
def test_converters_are_those_of_seqio_or_given(build, name, expected):
  model = build(name)
  assert type(model).FEATURE_CONVERTER_CLS.__name__ == expected
  assert model.FEATURE_CONVERTER_CLS.__name__ == expected
  assert build(name, feature_converter_cls=dict).FEATURE_CONVERTER_CLS is dict
