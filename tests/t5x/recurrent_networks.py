"""Networks small enough to read that can start behind a prompt (prefill).

A state that forgets by half stands in for attention, so that a cache is the
state, and a prefill the state behind the prompt's last token but one.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

VOCAB = 7
WIDTH = 8
MAX_LENGTH = 16


class Positions(nn.Module):
  """A learned table, which counts for itself while decoding."""

  @nn.compact
  def __call__(self, positions, decode):
    table = self.param(
        'table', nn.initializers.normal(1.0), (MAX_LENGTH, WIDTH)
    )
    if decode:
      index = self.variable(
          'cache', 'position_embedder_index', lambda: jnp.array([-1], jnp.int32)
      )
      positions = index.value[:, None]
      index.value += 1
    return table[positions]


class Decoder(nn.Module):
  """Logits of the next token from all tokens so far, and a context [B, D]."""

  @nn.compact
  def __call__(self, tokens, context, decode, prefill, prefill_lengths):
    tokens = tokens.astype(jnp.int32)
    positions = jnp.arange(tokens.shape[1])[None]
    x = nn.Embed(VOCAB, WIDTH, name='embed')(tokens)
    x += Positions(name='position_embedder')(positions, decode)
    ready = self.has_variable('cache', 'cached_state')
    state = jnp.zeros(x[:, 0].shape)
    if decode or prefill:
      cached = self.variable('cache', 'cached_state', lambda: state)
      index = self.variable('cache', 'cache_index', lambda: jnp.int32(0))
      if decode and ready:
        state, index.value = cached.value, index.value + 1

    def read(state, token):
      state = state / 2 + token
      return state, state

    _, states = jax.lax.scan(read, state, jnp.moveaxis(x, 1, 0))
    states = jnp.moveaxis(states, 0, 1)
    if prefill:
      rows = jnp.arange(tokens.shape[0])
      behind = states[rows, prefill_lengths - 1]
      cached.value = jnp.where(prefill_lengths[:, None] > 0, behind, 0.0)
      index.value = prefill_lengths
    elif decode and ready:
      cached.value = states[:, -1]
    hidden = jnp.tanh(states + context[:, None])
    return 5 * nn.Dense(VOCAB, name='logits')(hidden)


class LanguageModel(nn.Module):
  """A decoder alone."""

  @nn.compact
  def __call__(
      self,
      decoder_input_tokens,
      decoder_target_tokens,
      decoder_segment_ids=None,
      decoder_positions=None,
      decoder_causal_attention=None,
      *,
      enable_dropout=True,
      decode=False,
      max_decode_length=None,
      prefill=False,
      prefill_lengths=None,
  ):
    context = jnp.zeros((decoder_input_tokens.shape[0], WIDTH))
    self.sow('intermediates', 'context', context)
    return Decoder(name='decoder')(
        decoder_input_tokens, context, decode, prefill, prefill_lengths
    )


class EncoderDecoder(nn.Module):
  """An encoder that sums, and the decoder; prompts are read step by step."""

  def setup(self):
    self.embed = nn.Embed(VOCAB, WIDTH)
    self.decoder = Decoder()

  def encode(self, encoder_input_tokens, enable_dropout=True):
    return self.embed(encoder_input_tokens.astype(jnp.int32))

  def decode(
      self,
      encoded,
      encoder_input_tokens,
      decoder_input_tokens,
      decoder_target_tokens,
      *,
      enable_dropout=True,
      decode=False,
      max_decode_length=None,
  ):
    return self._decode(encoded, decoder_input_tokens, decode, False, None)

  def _decode(self, encoded, tokens, decode, prefill, prefill_lengths):
    context = jnp.sum(encoded, axis=1)
    return self.decoder(tokens, context, decode, prefill, prefill_lengths)

  def __call__(
      self,
      encoder_input_tokens,
      decoder_input_tokens,
      decoder_target_tokens,
      encoder_segment_ids=None,
      decoder_segment_ids=None,
      encoder_positions=None,
      decoder_positions=None,
      *,
      enable_dropout=True,
      decode=False,
  ):
    encoded = self.encode(encoder_input_tokens)
    return self._decode(encoded, decoder_input_tokens, decode, False, None)


class PrefilledEncoderDecoder(EncoderDecoder):
  """The same, but prompts are read at once."""

  def decode(
      self,
      encoded,
      encoder_input_tokens,
      decoder_input_tokens,
      decoder_target_tokens,
      *,
      enable_dropout=True,
      decode=False,
      max_decode_length=None,
      prefill=False,
      prefill_lengths=None,
  ):
    return self._decode(
        encoded, decoder_input_tokens, decode, prefill, prefill_lengths
    )
