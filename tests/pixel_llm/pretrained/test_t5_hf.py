import pathlib

from flax import traverse_util
import pytest
import safetensors.torch
import tiny_t5
import torch
import transformers

from pixel_llm.pretrained import import_weights

TINY_T5X = (
    pathlib.Path(__file__).parents[2]
    / 'data/t5x_tiny/test_t5_tiny.checkpoint_0'
)


@pytest.fixture(params=[False, True], ids=['t5_1_1', 't5_1_0'])
def tied(request):
  return request.param


def test_a_t5_of_transformers_computes_the_same_here_and_goes_back(
    tied, tmp_path, enlarged, import_params, export
):
  theirs, config = tiny_t5.configs(tied)
  model = enlarged(transformers.T5ForConditionalGeneration(theirs))
  model.save_pretrained(tmp_path / 'hf')
  params, report = import_params(str(tmp_path / 'hf'))
  assert 'T5 of Hugging Face, safetensors' in report
  tiny_t5.assert_same_activations(config, params['textual'], model)

  path = export('t5_hf', params)
  theirs.save_pretrained(path)
  back, info = transformers.T5ForConditionalGeneration.from_pretrained(
      path, output_loading_info=True
  )
  assert not any(info[key] for key in ('missing_keys', 'unexpected_keys'))
  for name, value in model.state_dict().items():
    assert torch.equal(back.state_dict()[name], value), name


def test_copies_of_the_table_are_left_out_by_name(
    tmp_path, enlarged, import_params
):
  theirs, config = tiny_t5.configs(tied=True)
  model = enlarged(transformers.T5ForConditionalGeneration(theirs))
  torch.save(model.state_dict(), tmp_path / 'pytorch_model.bin')
  params, report = import_params(str(tmp_path / 'pytorch_model.bin'))
  assert 'encoder.embed_tokens.weight left out: a copy' in report
  assert 'lm_head.weight left out: the output matrix is tied' in report
  tiny_t5.assert_same_activations(config, params['textual'], model)


def test_a_table_that_is_no_copy_is_an_error(tmp_path, enlarged, capsys):
  model = enlarged(
      transformers.T5ForConditionalGeneration(tiny_t5.configs(False)[0])
  )
  tensors = {name: x.clone() for name, x in model.state_dict().items()}
  tensors['encoder.embed_tokens.weight'] += 1
  safetensors.torch.save_file(tensors, tmp_path / 'x.safetensors')
  assert import_weights.main([f'--source={tmp_path / "x.safetensors"}']) == 1
  assert 'encoder.embed_tokens.weight differs' in capsys.readouterr().err


def test_unknown_and_misshapen_names_are_listed_and_nothing_is_written(
    tmp_path, enlarged, capsys
):
  model = enlarged(
      transformers.T5ForConditionalGeneration(tiny_t5.configs(False)[0])
  )
  tensors = {name: x.clone() for name, x in model.state_dict().items()}
  tensors['decoder.extra.weight'] = torch.ones(2)
  tensors['lm_head.weight'] = torch.ones(3)
  file = str(tmp_path / 'x.safetensors')
  safetensors.torch.save_file(tensors, file)
  output = tmp_path / 'out'
  assert import_weights.main(['--source', file, f'--output={output}']) == 1
  shown = capsys.readouterr()
  assert 'decoder.extra.weight UNKNOWN (2) float32' in shown.out
  assert 'lm_head.weight MISSHAPEN: (3,)' in shown.out
  assert '2 names are unknown or misshapen' in shown.err
  assert not output.exists()


def test_the_checkpoint_of_t5x_computes_in_transformers_what_it_does_here(
    import_params, export
):
  params, report = import_params(str(TINY_T5X))
  assert 'T5 of T5X, T5X msgpack' in report
  assert 'state/step left out: state of a run' in report
  flat = traverse_util.flatten_dict(params, sep='/')
  assert flat['textual/t5_module/decoder/logits_dense/kernel'].shape == (
      8,
      32128,
  )
  theirs = transformers.T5Config(
      vocab_size=32128,
      d_model=8,
      d_kv=3,
      d_ff=16,
      num_layers=2,
      num_heads=4,
      feed_forward_proj='gated-gelu',
      tie_word_embeddings=False,
      dropout_rate=0.0,
  )
  path = export('t5_hf', params)
  theirs.save_pretrained(path)
  model, info = transformers.T5ForConditionalGeneration.from_pretrained(
      path, output_loading_info=True
  )
  assert not any(info[key] for key in ('missing_keys', 'unexpected_keys'))
  tiny_t5.assert_same_activations(
      tiny_t5.our_config(theirs), params['textual'], model.eval()
  )
