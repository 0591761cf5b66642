import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from pixel_llm.modules import bert_layers
from pixel_llm.modules import bert_text_head

SIZES = {
    'vocab_size': 40,
    'hidden_size': 12,
    'num_hidden_layers': 2,
    'num_attention_heads': 3,
    'intermediate_size': 20,
    'max_position_embeddings': 16,
    'hidden_dropout_prob': 0.0,
    'attention_probs_dropout_prob': 0.0,
}
HEAD = bert_text_head.BertTextHead(
    vocab_size=40,
    emb_dim=12,
    num_heads=3,
    num_layers=2,
    mlp_dim=20,
    max_length=16,
    dropout_rate=0.0,
)
TOKENS = np.array([[5, 7, 9, 30, 2]])


def with_epsilons_of_the_original(model):
  """Gives norms the epsilons that released PixelLLM weights were made with.

  They differ by layer from those of `transformers`, which no weight can mend.
  """
  for name, module in model.named_modules():
    if 'embeddings.LayerNorm' in name:
      module.eps = bert_layers.EMBEDDING_EPSILON
    elif 'attention.output.LayerNorm' in name:
      module.eps = bert_layers.ATTENTION_EPSILON
    elif name.endswith('output.LayerNorm'):
      module.eps = bert_layers.MLP_EPSILON
  return model


def git(enlarged):
  vision = {
      'hidden_size': 8,
      'intermediate_size': 8,
      'num_hidden_layers': 1,
      'num_attention_heads': 2,
      'image_size': 8,
      'patch_size': 4,
  }
  config = transformers.GitConfig(
      **SIZES, vision_config=vision, tie_word_embeddings=False
  )
  return with_epsilons_of_the_original(
      enlarged(transformers.GitForCausalLM(config))
  )


def assert_same_as_git(params, model):
  image = torch.randn(1, 3, 8, 8)
  with torch.no_grad():
    visual = model.git.image_encoder(image).last_hidden_state
    theirs = model(
        input_ids=torch.tensor(TOKENS),
        pixel_values=image,
        output_hidden_states=True,
    )
  ours = HEAD.apply({'params': params}, visual.numpy(), jnp.asarray(TOKENS))
  length = TOKENS.shape[1]
  for got, want in (
      (ours.logits, theirs.logits[:, -length:].numpy()),
      (ours.features, theirs.hidden_states[-1][:, -length:].numpy()),
  ):
    assert np.std(want) > 0.1
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_the_decoder_of_git_computes_the_same_here_and_goes_back(
    tmp_path, enlarged, import_params, export
):
  model = git(enlarged)
  model.save_pretrained(tmp_path / 'hf')
  params, report = import_params(str(tmp_path / 'hf'))
  assert 'git.image_encoder' in report
  assert 'left out: the image tower comes from elsewhere' in report
  assert_same_as_git(params['textual'], model)

  path = export('git_hf', params)
  model.config.save_pretrained(path)
  back, info = transformers.GitForCausalLM.from_pretrained(
      path, output_loading_info=True
  )
  assert not info['unexpected_keys']
  assert info['missing_keys']
  assert all('image_encoder' in name for name in info['missing_keys'])
  for name, value in model.state_dict().items():
    if 'image_encoder' not in name:
      assert torch.equal(back.state_dict()[name], value), name


def test_a_tied_output_is_the_word_table(tmp_path, enlarged, import_params):
  model = git(enlarged)
  with torch.no_grad():
    model.output.weight.copy_(model.git.embeddings.word_embeddings.weight)
  tensors = model.state_dict()
  del tensors['output.weight']
  torch.save({'model': tensors, 'epoch': 3}, tmp_path / 'git.pth')
  params, _ = import_params(str(tmp_path / 'git.pth'))
  assert_same_as_git(params['textual'], model)


@pytest.mark.parametrize(
    'cls, prefix',
    [
        (transformers.BertModel, ''),
        (transformers.BertForPreTraining, 'bert.'),
    ],
)
def test_the_layers_of_bert_compute_the_same_here(
    tmp_path, enlarged, import_params, cls, prefix
):
  model = with_epsilons_of_the_original(
      enlarged(cls(transformers.BertConfig(**SIZES)))
  )
  # Google's own file has TensorFlow's names for the norms.
  tensors = {
      name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace(
          'LayerNorm.bias', 'LayerNorm.beta'
      ): tensor
      for name, tensor in model.state_dict().items()
  }
  torch.save(tensors, tmp_path / 'bert.pth')
  params, report = import_params(str(tmp_path / 'bert.pth'))
  for name in (
      'pooler.dense.weight',
      'embeddings.token_type_embeddings.weight',
  ):
    assert f'{prefix}{name} left out: ' in report
  assert 'UNKNOWN' not in report

  bert = model if prefix == '' else model.bert
  with torch.no_grad():
    want = bert(torch.tensor(TOKENS), output_hidden_states=True).hidden_states
  textual = params['textual']
  embedding = bert_layers.Embedding(40, 12, 16, 0.0)
  places = jnp.arange(TOKENS.shape[1])[None]
  x = embedding.apply(
      {'params': textual['embedding']}, jnp.asarray(TOKENS), places, True
  )
  length = TOKENS.shape[1]
  hidden, _ = bert_layers.Encoder(2, 3, 20, 0.0).apply(
      {'params': textual['transformer']['encoder']},
      x,
      jnp.ones((1, 1, length, length), bool),
      (),
      True,
  )
  for ours, theirs in zip(hidden, want):
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-5)
