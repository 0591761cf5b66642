"""Weights of SAM and T5 meet the model of a run's gin files."""

import sys

from flax import traverse_util
import jax
import numpy as np
import pytest
import safetensors.numpy
import tiny_t5
import transformers

import gin
from pixel_llm import layer_layout
from pixel_llm.pretrained import fitting
from pixel_llm.pretrained import import_weights
from pixel_llm.pretrained import target_model
from t5x import checkpoints

TRACE = '--gin_file=gin/pixel_llm_tiny_trace.gin'
REFSEG = '--gin_file=gin/pixel_llm_tiny_refseg.gin'
SIDE, PATCH = 32, 8
SAM = 'sam_image_encoder.SamImageEncoder'
EVA02 = 'eva02_vit.Eva02Vit'
T5 = 't5_text_head.T5TextConfig'
# The sizes of the models below.
SIZES = {
    'TINY_IMAGE_SIZE': SIDE,
    'LANGUAGE_WIDTH': 8,
    f'{SAM}.patch_size': PATCH,
    f'{SAM}.embed_dim': 8,
    f'{SAM}.depth': 4,
    f'{SAM}.num_heads': 2,
    f'{SAM}.mlp_ratio': 2.0,
    f'{SAM}.window_size': 3,
    f'{SAM}.global_block_indexes': (1, 3),
    f'{T5}.vocab_size': 40,
    f'{T5}.head_dim': 3,
    f'{T5}.mlp_dim': 16,
    f'{T5}.num_decoder_layers': 3,
}


def bindings(**changes):
  return [f'{k} = {v!r}' for k, v in {**SIZES, **changes}.items()]


FLAGS = [f'--gin.{line.replace(" = ", "=")}' for line in bindings()]


@pytest.fixture(autouse=True)
def _gin_search_paths(monkeypatch):
  monkeypatch.setattr(gin.config, '_LOCATION_PREFIXES', [''])


@pytest.fixture(scope='module', name='files')
def _files(tmp_path_factory):
  """SAM and T5 as Hugging Face publishes them."""
  path = tmp_path_factory.mktemp('official')
  config = transformers.SamConfig(
      vision_config={
          'hidden_size': 8,
          'num_hidden_layers': 4,
          'num_attention_heads': 2,
          'image_size': SIDE,
          'patch_size': PATCH,
          'mlp_dim': 16,
          'global_attn_indexes': [1, 3],
          'window_size': 3,
      },
      prompt_encoder_config={'image_size': SIDE, 'patch_size': PATCH},
  )
  theirs, _ = tiny_t5.configs(tied=False)
  transformers.SamModel(config).save_pretrained(path / 'sam')
  transformers.T5ForConditionalGeneration(theirs).save_pretrained(path / 't5')
  return [f'--source={path / name}' for name in ('sam', 't5')]


def flat(tree):
  return traverse_util.flatten_dict(tree, sep='/')


def read(path):
  return checkpoints.load_t5x_checkpoint(str(path))['target']


def test_official_weights_take_the_form_of_the_model_of_a_gin_file(
    files, tmp_path, capsys
):
  main_module = sys.modules['__main__']
  unrolled, scanned = tmp_path / 'unrolled', tmp_path / 'scanned'
  args = [*files, REFSEG, *FLAGS]
  assert import_weights.main([*args, f'--output={unrolled}']) == 0
  report = capsys.readouterr().out
  prompts = 'prompt_encoder/mask_downscaling/0/kernel'
  assert f"{prompts} left out: SAM's mask prompts" in report
  assert 'git_backbone/cls_token is in no source' in report
  assert sys.modules['__main__'] is main_module
  assert not gin.config_str()

  args += ['--gin.SCAN_LAYERS=True', f'--output={scanned}']
  assert import_weights.main(args) == 0
  plain, stacked = flat(read(unrolled)), read(scanned)
  assert 'sam_backbone/blocks.3/norm1/bias' in plain
  assert 'mask_decoder/iou_token.weight' in plain
  assert not any('mask_downscaling' in name for name in plain)
  assert stacked['sam_backbone']['blocks']['blocks.0']['norm1'][
      'bias'
  ].shape == (8, 2)
  back = flat(layer_layout.to_unrolled(stacked))
  assert back.keys() == plain.keys()
  for name, array in plain.items():
    np.testing.assert_array_equal(back[name], array)


def test_parts_that_a_model_lacks_are_errors_until_they_are_allowed(
    files, capsys
):
  args = [*files, TRACE, *FLAGS]
  assert import_weights.main(args) == 1
  shown = capsys.readouterr()
  assert "leave it out with --allow_unknown 'mask_decoder/.*'" in shown.out
  # By our name or that of the source.
  for allowed in ('mask_decoder/.*', r'mask_decoder\..*'):
    assert import_weights.main([*args, f'--allow_unknown={allowed}']) == 0
    name = 'mask_decoder/iou_token.weight'
    report = capsys.readouterr().out
    assert f'{name} left out: --allow_unknown' in report
    assert 'UNKNOWN' not in report


def test_a_run_gains_what_it_lacks_from_weights_that_come_second(
    files, tmp_path, capsys
):
  sam, t5 = files
  start, both = tmp_path / 'start', tmp_path / 'both'
  # The run's SAM has other values, and is scanned where SAM's file is not.
  allowed = '--allow_unknown=mask_decoder/.*'
  args = [sam, t5, TRACE, *FLAGS, '--gin.SCAN_LAYERS=True', allowed]
  assert import_weights.main([*args, f'--output={start}']) == 0
  changed = flat(read(start))
  neck = 'sam_backbone/neck/0/kernel'
  changed[neck] = changed[neck] + 1
  run = tmp_path / 'run/checkpoint_5'
  import_weights.save(str(run), changed)

  args = [f'--source={run.parent}', sam, REFSEG, *FLAGS]
  assert import_weights.main(args) == 1
  message = capsys.readouterr().err
  assert f'comes from both {run.parent}' in message
  assert '--first_wins' in message

  args += ['--first_wins', f'--output={both}']
  assert import_weights.main(args) == 0
  report = capsys.readouterr().out
  assert f'neck.conv1.weight left out: {run.parent} came first' in report
  got, alone = flat(read(both)), read(tmp_path / 'run')
  unrolled = flat(layer_layout.to_unrolled(alone))
  assert got.keys() - unrolled.keys()
  assert all('mask_decoder' in name for name in got.keys() - unrolled.keys())
  for name, array in unrolled.items():
    np.testing.assert_array_equal(got[name], array)


@pytest.fixture(scope='module', name='model')
def _model():
  return target_model.from_gin(['gin/pixel_llm_tiny_trace.gin'], bindings())


def test_sizes_that_differ_are_told_with_the_setting_that_mends_them(model):
  other = {
      'IMAGE_SIZE': 64,
      f'{SAM}.image_size': 64,
      f'{SAM}.window_size': 2,
      f'{EVA02}.pretrain_image_size': 64,
      f'{EVA02}.mlp_ratio': 4.0,
      f'{T5}.vocab_size': 48,
      f'{T5}.mlp_dim': 24,
  }
  target = target_model.from_gin(
      ['gin/pixel_llm_tiny_trace.gin'], bindings(**other)
  )
  result = fitting.fit(flat(model.params), target.params)
  told = {
      name: what.partition('set ')[2] for name, what in result.wrong.items()
  }
  t5 = 'textual/t5_module'
  windows = f'{SAM}.image_size, .window_size or .global_block_indexes'
  assert told['git_backbone/pos_embed'] == f'{EVA02}.pretrain_image_size'
  assert told['git_backbone/blocks.1/mlp/w1/kernel'] == f'{EVA02}.mlp_ratio'
  assert told['sam_backbone/pos_embed'] == f'{SAM}.image_size'
  assert told['sam_backbone/blocks.0/attn/rel_pos_h'] == windows
  assert told['sam_backbone/blocks.1/attn/rel_pos_w'] == windows
  assert told[f'{t5}/token_embedder/embedding'] == f'{T5}.vocab_size'
  assert told[f'{t5}/decoder/logits_dense/kernel'] == f'{T5}.vocab_size'
  assert told[f'{t5}/encoder/layers_0/mlp/wi_1/kernel'] == f'{T5}.mlp_dim'
  assert result.wrong['sam_backbone/pos_embed'].startswith(
      'MISSHAPEN: (1, 4, 4, 8), the model has (1, 8, 8, 8)'
  )
  assert not (result.unknown or result.left_out or result.fresh)


def test_stacks_of_another_depth_are_refused_in_either_form(model):
  params = flat(model.params)
  deep = {**params}
  for name in params:
    if name.startswith('git_backbone/blocks.1/'):
      deep[name.replace('blocks.1', 'blocks.2')] = params[name]
  unknown = fitting.fit(deep, model.params).unknown
  assert unknown.keys() == deep.keys() - params.keys()
  assert set(unknown.values()) == {
      f', which has fewer layers: set {EVA02}.depth'
  }
  # A scanned stack starts as a whole or not at all.
  scanned = layer_layout.LAYOUT.scan(model.params, {'git_backbone/blocks': 0})
  shallow = {k: v for k, v in params.items() if '/blocks.1/attn/' not in k}
  wrong = fitting.fit(shallow, scanned).wrong
  assert set(wrong) == {k for k in params if k not in shallow and 'git' in k}
  assert 'MISSING' in wrong['git_backbone/blocks.1/attn/q_bias']


def test_parameters_that_a_setting_brings_are_told_with_it():
  trace = ['gin/pixel_llm_tiny_trace.gin']
  option = {f'{EVA02}.attention_norm': True}
  more = flat(target_model.from_gin(trace, bindings(**option)).params)
  option = {f'{T5}.logits_via_embedding': True}
  less = target_model.from_gin(trace, bindings(**option)).params
  unknown = fitting.fit(more, less).unknown
  norm = 'git_backbone/blocks.{}/attn/inner_attn_ln/{}'
  assert unknown == {
      norm.format(i, name): f': set {EVA02}.attention_norm = True'
      for i in (0, 1)
      for name in ('scale', 'bias')
  } | {
      'textual/t5_module/decoder/logits_dense/kernel': (
          f': set {T5}.logits_via_embedding = False'
      )
  }


def test_shapes_of_the_model_are_those_that_it_has(model):
  shapes = jax.tree.map(lambda x: x.shape, flat(model.params))
  assert shapes['sam_backbone/blocks.1/attn/rel_pos_h'] == (7, 4)
  assert shapes['sam_backbone/blocks.0/attn/rel_pos_h'] == (5, 4)
  assert shapes['textual/t5_module/token_embedder/embedding'] == (40, 8)


@pytest.mark.parametrize(
    'flags, message',
    [
        ([TRACE, '--like=runs/x'], 'not allowed with'),
        (['--gin.BATCH_SIZE=1'], 'without --gin_file'),
        ([TRACE, '--gin.BATCH_SIZE'], '--gin.NAME=VALUE'),
    ],
)
def test_arguments_that_contradict_each_other_are_wrong_usage(
    flags, message, capsys
):
  with pytest.raises(SystemExit) as stop:
    import_weights.main(['--source=x', *flags])
  assert stop.value.code == 2
  assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    'flags, message',
    [
        (['--gin_file=nowhere.gin'], "'nowhere.gin' not found"),
        ([TRACE, f'--gin.{EVA02}.dept=3'], 'Nearest known names: depth'),
        # The file of a model is no run: it sets no optimizer and no data.
        (['--gin_file=gin/models/tiny.gin'], 'DROPOUT_RATE must be set'),
    ],
)
def test_gin_files_that_build_no_model_are_told_with_the_reason(
    flags, message, tmp_path, capsys
):
  file = tmp_path / 'x.safetensors'
  safetensors.numpy.save_file({'textual/x': np.ones(2)}, file)
  assert import_weights.main([f'--source={file}', *flags]) == 1
  assert message in capsys.readouterr().err
