"""A tiny T5 here and in `transformers`, and whether both compute the same."""

import jax.numpy as jnp
import numpy as np
import torch
import transformers

from pixel_llm.modules import t5_text_head

TOKENS = np.array([[0, 5, 7, 9, 30, 1]])
CONTEXT = np.array([[4, 6, 8]])


def configs(tied):
  theirs = transformers.T5Config(
      vocab_size=40,
      d_model=8,
      d_kv=3,
      d_ff=16,
      num_layers=2,
      num_decoder_layers=3,
      num_heads=4,
      feed_forward_proj='relu' if tied else 'gated-gelu',
      tie_word_embeddings=tied,
      dropout_rate=0.0,
      decoder_start_token_id=0,
  )
  return theirs, our_config(theirs)


def our_config(theirs, **kwargs):
  return t5_text_head.T5TextConfig(
      vocab_size=theirs.vocab_size,
      emb_dim=theirs.d_model,
      num_heads=theirs.num_heads,
      head_dim=theirs.d_kv,
      mlp_dim=theirs.d_ff,
      num_encoder_layers=theirs.num_layers,
      num_decoder_layers=theirs.num_decoder_layers,
      mlp_activations=('gelu', 'linear') if theirs.is_gated_act else ('relu',),
      logits_via_embedding=theirs.tie_word_embeddings,
      dropout_rate=0.0,
      **kwargs,
  )


def visual(width):
  return np.random.default_rng(0).normal(size=(1, 5, width)).astype(np.float32)


def assert_same_activations(config, params, model):
  """Compares logits and features of our head and of `transformers`."""
  source = visual(config.emb_dim)
  ours = t5_text_head.T5TextHead(config).apply(
      {'params': params}, source, jnp.asarray(TOKENS), jnp.asarray(CONTEXT)
  )
  with torch.no_grad():
    words = model.get_input_embeddings()(torch.tensor(CONTEXT))
    theirs = model(
        inputs_embeds=torch.cat([torch.tensor(source), words], 1),
        decoder_input_ids=torch.tensor(TOKENS),
        output_hidden_states=True,
    )
  # Our head hides the last position, as the original does.
  for got, want in (
      (ours.logits, theirs.logits),
      (ours.features, theirs.decoder_hidden_states[-1]),
  ):
    want = want.numpy()[:, :-1]
    assert np.std(want) > 0.1
    np.testing.assert_allclose(got[:, :-1], want, rtol=1e-5, atol=1e-5)
