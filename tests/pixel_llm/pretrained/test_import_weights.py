import pathlib

from flax import linen as nn
from flax import serialization
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny_t5
import torch
import transformers

from pixel_llm import axes
from pixel_llm import layer_layout
from pixel_llm.golden import case as case_lib
from pixel_llm.modules import t5_text_head
from pixel_llm.pretrained import export_weights
from pixel_llm.pretrained import import_weights
from pixel_llm.pretrained import name_rules
from pixel_llm.pretrained import sources
from t5x import checkpoint_config
from t5x import initializer
from t5x import optimizers
from t5x import partitioning

GOLDEN = pathlib.Path(__file__).parents[2] / 'golden'


@pytest.fixture(scope='module')
def released():
  """Parameters under the names of the released PixelLLM."""
  return case_lib.load_case(GOLDEN, 'model_trace_t5').params


def flat(tree):
  return traverse_util.flatten_dict(tree, sep='/')


def assert_equal_trees(got, want):
  got, want = flat(got), flat(want)
  assert got.keys() == want.keys()
  for name in want:
    np.testing.assert_array_equal(got[name], want[name])


@pytest.mark.parametrize(
    'wrap',
    [
        lambda params: {
            'global_step': np.asarray(7),
            'opt_state': {'0': {'mu': {'w': np.ones(2)}}},
            'params': params,
            'model_state': {},
        },
        lambda params: {'optimizer': {'target': {'params': params}}},
        lambda params: {'params': {'params': params}},
    ],
    ids=['train_state', 'old_optimizer', 'variables'],
)
def test_a_released_train_state_of_scenic_fills_the_whole_network(
    released, tmp_path, import_params, monkeypatch, wrap
):
  # Large arrays are cut into chunks; here everything above 1 KB is large.
  monkeypatch.setattr(serialization, 'MAX_CHUNK_SIZE', 1024)
  file = tmp_path / 'checkpoint_7'
  content = serialization.msgpack_serialize(
      wrap(jax.tree.map(np.asarray, dict(released)))
  )
  assert b'__msgpack_chunked_array__' in content
  file.write_bytes(content)
  params, report = import_params(str(file))
  assert 'PixelLLM (this project or the original), flax msgpack' in report
  assert ('opt_state/0/mu/w left out' in report) == (b'opt_state' in content)
  assert_equal_trees(params, released)


def test_the_whole_model_goes_to_safetensors_and_back(
    released, export, import_params
):
  path = export('pixel_llm', released)
  params, _ = import_params(str(path))
  assert_equal_trees(params, released)


def test_sources_are_read_part_by_part_into_one_model(
    released, tmp_path, import_params, capsys
):
  parts = {'a': {}, 'b': {}}
  for name, array in flat(released).items():
    parts['a' if name.startswith('textual') else 'b'][name] = np.asarray(array)
  for key, arrays in parts.items():
    safetensors.numpy.save_file(arrays, tmp_path / f'{key}.safetensors')
  files = [str(tmp_path / f'{key}.safetensors') for key in parts]
  params, _ = import_params(*files)
  assert_equal_trees(params, released)
  assert import_weights.main(['--source', files[0], '--source', files[0]]) == 1
  assert 'comes from both' in capsys.readouterr().err


def test_a_checkpoint_goes_to_the_bucket_that_is_named(tmp_path, monkeypatch):
  written = []
  monkeypatch.setattr(
      import_weights, 'save', lambda path, *unused: written.append(path)
  )
  file = tmp_path / 'a.safetensors'
  safetensors.numpy.save_file({'textual/a': np.ones(2, np.float32)}, file)
  source = f'--source={file}'
  for output in ('gs://bucket/start', str(tmp_path / 'start')):
    assert import_weights.main([source, f'--output={output}']) == 0
    assert written.pop() == f'{output}/checkpoint_0'


def test_a_part_goes_where_it_is_told_and_in_the_given_type(
    tmp_path, enlarged, import_params
):
  theirs, _ = tiny_t5.configs(tied=False)
  model = enlarged(transformers.T5ForConditionalGeneration(theirs))
  model.to(torch.bfloat16).save_pretrained(tmp_path / 'hf')
  source = f't5_hf={tmp_path / "hf"}:other/t5'
  params, _ = import_params(source, '--dtype=float32')
  table = params['other']['t5']['token_embedder']['embedding']
  assert table.dtype == np.float32
  np.testing.assert_array_equal(table, model.shared.weight.float().detach())


def test_parameters_are_fitted_to_a_model_with_scanned_stacks(
    released, tmp_path, import_params, capsys
):
  unrolled = {'textual': released['textual']}
  scanned_names = set(flat(_scanned(unrolled)))
  assert scanned_names != set(flat(unrolled))
  import_weights.save(
      str(tmp_path / 'like/checkpoint_0'), flat(_scanned(unrolled))
  )
  file = tmp_path / 'a.safetensors'
  arrays = {k: np.asarray(v) for k, v in flat(unrolled).items()}
  safetensors.numpy.save_file(arrays, file)
  params, _ = import_params(str(file), f'--like={tmp_path / "like"}')
  assert set(flat(params)) == scanned_names
  assert_equal_trees(layer_layout.to_unrolled(params), unrolled)

  embedding = 'textual/t5_module/token_embedder/embedding'
  arrays[embedding] = arrays[embedding][:-1]
  arrays['textual/more'] = np.ones(2, np.float32)
  norm = arrays.pop('textual/t5_module/encoder/encoder_norm/scale')
  assert norm.ndim == 1
  safetensors.numpy.save_file(arrays, file)
  status = import_weights.main(
      [f'--source={file}', f'--like={tmp_path / "like"}']
  )
  report = capsys.readouterr()
  assert status == 1
  assert f'{embedding} MISSHAPEN' in report.out
  assert 'textual/more UNKNOWN to' in report.out
  assert 'encoder_norm/scale is in no source' in report.out


def _scanned(tree):
  periods = {'encoder/encoder': 0, 'decoder/decoder': 0}
  return layer_layout.LAYOUT.scan(tree, periods)


def test_a_run_starts_from_imported_weights(tmp_path, enlarged, import_params):
  theirs, config = tiny_t5.configs(tied=False)
  model = enlarged(transformers.T5ForConditionalGeneration(theirs))
  model.save_pretrained(tmp_path / 'hf')
  params, _ = import_params(str(tmp_path / 'hf'))
  head = t5_text_head.T5TextHead(config.replace(decoder_lora_rank=2))

  class Network(nn.Module):
    """The text head where the whole network has it."""

    def setup(self):
      self.textual = head

    def __call__(self, visual, tokens):
      return self.textual(visual, tokens)

  def init_fn(rng, input_shapes, input_types=None):
    del input_shapes, input_types
    tokens = jnp.asarray(tiny_t5.TOKENS)
    return Network().init(rng, tiny_t5.visual(8), tokens)

  start = initializer.TrainStateInitializer(
      optimizers.adamw(0.01),
      init_fn,
      {'x': (1,)},
      partitioning.PjitPartitioner(
          num_partitions=1,
          logical_axis_rules=partitioning.standard_logical_axis_rules(
              additional_rules=axes.additional_rules()
          ),
      ),
  )
  cfg = checkpoint_config.RestoreCheckpointConfig(
      str(tmp_path / 'imported'),
      mode='latest',
      assignment_map=[(r'state/.*', None)],
      fallback_to_scratch=True,
  )
  state = start.from_checkpoint([cfg], init_rng=jax.random.PRNGKey(0))
  got, want = flat(state.params), flat(params)
  assert {name for name in got if name not in want} == {
      name for name in got if name.endswith('_lora')
  }
  for name in want:
    np.testing.assert_array_equal(got[name], want[name])


def test_pickles_with_code_are_not_run(tmp_path, capsys):
  class Trap:

    def __reduce__(self):
      return print, ('the trap went off',)

  torch.save({'weight': Trap()}, tmp_path / 'trap.pth')
  assert import_weights.main([f'--source={tmp_path / "trap.pth"}']) == 1
  shown = capsys.readouterr()
  assert 'trap went off' not in shown.out + shown.err
  assert 'trap.pth' in shown.err


@pytest.mark.parametrize('content', [b'some words', b'\x93\x01\x02\x03'])
def test_other_files_are_refused_by_name(tmp_path, capsys, content):
  file = tmp_path / 'notes.txt'
  file.write_bytes(content)
  assert import_weights.main([f'--source={file}']) == 1
  assert 'notes.txt' in capsys.readouterr().err
  assert import_weights.main([f'--source={tmp_path / "absent"}']) == 1
  assert 'nothing at' in capsys.readouterr().err


def test_unknown_formats_show_names_and_unknown_names_may_be_allowed(
    tmp_path, capsys
):
  file = tmp_path / 'x.safetensors'
  safetensors.numpy.save_file({'layer.w': np.ones(2)}, file)
  assert import_weights.main([f'--source={file}']) == 1
  assert "['layer.w']" in capsys.readouterr().err
  flags = [f'--source=bert_hf={file}', '--allow_unknown=layer.*']
  assert import_weights.main(flags) == 0
  assert 'layer.w left out: --allow_unknown' in capsys.readouterr().out


def test_shards_of_an_index_are_joined_and_missing_ones_are_told(tmp_path):
  safetensors.numpy.save_file({'a': np.ones(2)}, tmp_path / '1.safetensors')
  safetensors.numpy.save_file({'b': np.zeros(3)}, tmp_path / '2.safetensors')
  index = tmp_path / 'model.safetensors.index.json'
  index.write_text(
      '{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}'
  )
  source = sources.open_source(str(tmp_path))
  assert {k: v.shape for k, v in source.arrays.items()} == {
      'a': (2,),
      'b': (3,),
  }
  index.write_text(
      '{"weight_map": {"a": "1.safetensors", "c": "1.safetensors"}}'
  )
  with pytest.raises(ValueError, match=r"lacks \['c'\]"):
    sources.open_source(str(tmp_path))


def test_rules_turn_axes_both_ways():
  table = name_rules.Table(
      [name_rules.Rule('c{i}/k', 'conv.{i}.w', name_rules.CONVOLUTION)]
  )
  theirs = np.arange(120).reshape(2, 3, 4, 5)
  ours = table.to_ours({'conv.7.w': theirs}).arrays()['c7/k']
  assert ours.shape == (4, 5, 3, 2)
  np.testing.assert_array_equal(ours.get()[3, 4, 2, 1], theirs[1, 2, 3, 4])
  back = table.to_theirs({'c7/k': ours}).arrays()['conv.7.w']
  np.testing.assert_array_equal(back.get(), theirs)


def test_an_export_without_its_part_is_refused(tmp_path, capsys):
  import_weights.save(
      str(tmp_path / 'checkpoint_0'), {'other/w': np.ones(2, np.float32)}
  )
  args = [f'--checkpoint={tmp_path}', '--format=git_hf', '--output']
  assert export_weights.main([*args, str(tmp_path / 'out')]) == 1
  assert 'no parameters below textual/' in capsys.readouterr().err
