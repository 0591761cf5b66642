"""`launch/chain.sh`: the right commands, and all of them on tiny models."""

import json
import os
import shlex
import stat
import subprocess
import sys

import pytest
import safetensors.torch
import shallow_runs
import torch_models
import transformers

from t5x import checkpoints

ROOT = shallow_runs.ROOT
FOLDERS = ('train2017', 'val2017', 'train2014')

# Writes what it is called with; `python -c` is the question whether a directory
# holds a checkpoint, answered by a file of those that do.
STAND_IN = """#!/bin/bash
if [[ $1 == -c ]]; then grep -qx "$3" "$EXISTING" || exit 3; exit 0; fi
printf '%s\\n' "$*" >> "$CALLS"
[[ -z $FAILING || "$*" != *"$FAILING"* ]]
"""


@pytest.fixture(name='chain')
def _chain(tmp_path):
  """Runs the script with a stand-in for Python; returns status and calls."""
  python = tmp_path / 'python'
  python.write_text(STAND_IN)
  python.chmod(python.stat().st_mode | stat.S_IXUSR)

  def run(*args, existing=(), failing=''):
    calls = tmp_path / 'calls'
    calls.write_text('')
    (tmp_path / 'existing').write_text('\n'.join(existing) + '\n')
    result = subprocess.run(
        ['launch/chain.sh', *args],
        cwd=ROOT,
        env={
            **os.environ,
            'PYTHON': str(python),
            'CALLS': str(calls),
            'EXISTING': str(tmp_path / 'existing'),
            'FAILING': failing,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    return result, [shlex.split(x) for x in calls.read_text().splitlines()]

  return run


ARGS = ['--model=t5', '--root=gs://b/t5/', '--weights=sam.pth', '--weights=t5/']
ARGS = [word for arg in ARGS for word in arg.split('=')]


def start_of(call):
  """The recipe that a training command runs, and the run it starts from."""
  flags = dict(word.partition('=')[::2] for word in call if '=' in word)
  return (
      flags['--gin_file'],
      flags['--gin.MODEL_DIR'],
      flags['--gin.INITIAL_CHECKPOINT_PATH'],
  )


def test_every_stage_starts_from_the_one_before_it(chain):
  result, calls = chain(*ARGS, '--', '--gin.BATCH_SIZE=8')
  assert result.returncode == 0, result.stderr
  modules = [call[1].rpartition('.')[2] for call in calls]
  assert modules == [
      'import_weights',
      'train',
      'train',
      'import_weights',
      'train',
      'train',
  ]
  assert [start_of(call) for call in calls if call[1] == 't5x.train'] == [
      (
          f'gin/pixel_llm_t5_{recipe}.gin',
          f'gs://b/t5/{recipe}',
          f'gs://b/t5/{start}',
      )
      for recipe, start in (
          ('trace', 'start'),
          ('ref', 'trace'),
          ('refseg', 'refseg_start'),
          ('densecap', 'trace'),
      )
  ]
  assert all('--gin.BATCH_SIZE=8' in call for call in calls)
  weights, masks = calls[0], calls[3]
  assert weights[-3:] == [
      '--allow_unknown=mask_decoder/.*',
      '--output',
      'gs://b/t5/start',
  ]
  # The run comes first, so that only what it lacks comes from the weights.
  sources = [word for word in masks if word.startswith('--source')]
  names = ['gs://b/t5/ref', 'sam.pth', 't5/']
  assert sources == [f'--source={name}' for name in names]
  assert masks[-3:] == ['--first_wins', '--output', 'gs://b/t5/refseg_start']


def test_imported_weights_are_kept_and_training_goes_on_by_itself(chain):
  existing = [f'gs://b/t5/{x}' for x in ('start', 'refseg_start')]
  _, calls = chain(*ARGS, existing=existing)
  assert [call[1] for call in calls] == ['t5x.train'] * 4


def test_a_stage_that_fails_ends_the_chain(chain):
  result, calls = chain(*ARGS, failing='t5x.train')
  assert result.returncode == 1
  assert [call[1].rpartition('.')[2] for call in calls] == [
      'import_weights',
      'train',
  ]


def test_a_dry_run_writes_nothing(chain):
  result, calls = chain(*ARGS, '--dry_run', '--images', 'coco')
  assert result.returncode == 0
  assert len(calls) == 5
  for call in calls:
    assert ('--dry_run' in call) == (call[1] == 't5x.train')
    assert '--output' not in call
  # What it does not do it shows.
  assert '--first_wins --output gs://b/t5/refseg_start' in result.stdout
  assert 'pixel_llm.evaluation.report' in result.stdout


def test_stages_may_be_named(chain):
  # `masks` makes what `refseg` reads.
  result, calls = chain(*ARGS, 'refseg', 'masks', existing=['gs://b/t5/ref'])
  assert result.returncode == 0, result.stderr
  assert [call[1] for call in calls] == [
      'pixel_llm.pretrained.import_weights',
      't5x.train',
  ]


def options(stage, weights=('sam.pth', 't5/')):
  """The command that makes a stage, as the script proposes it."""
  sources = ''.join(f'--weights {source} ' for source in weights)
  return (
      f'launch/chain.sh --model t5 --root gs://b/t5 {sources}{stage} --'
      ' --gin.BATCH_SIZE=8'
  )


@pytest.mark.parametrize(
    'stage, existing, missing, maker',
    [
        ('trace', (), 'start', 'weights'),
        ('ref', ('start',), 'trace', 'trace'),
        ('masks', ('start', 'trace'), 'ref', 'ref'),
        ('refseg', ('start', 'trace', 'ref'), 'refseg_start', 'masks'),
        ('densecap', ('start',), 'trace', 'trace'),
        ('report', ('trace', 'ref', 'refseg'), 'densecap', 'densecap'),
    ],
)
def test_a_named_stage_needs_what_it_reads(
    chain, stage, existing, missing, maker
):
  result, calls = chain(
      *ARGS,
      *('--images', 'coco', stage, '--', '--gin.BATCH_SIZE=8'),
      existing=[f'gs://b/t5/{name}' for name in existing],
  )
  assert result.returncode == 2
  assert f'stage {stage} reads gs://b/t5/{missing}, where no' in result.stderr
  assert f'Make it with: {options(maker)}' in result.stderr
  assert not calls


def test_the_proposed_command_leaves_a_place_for_weights(chain):
  args = ['--model', 't5', '--root', 'gs://b/t5', 'trace']
  result, _ = chain(*args, '--', '--gin.BATCH_SIZE=8')
  assert f'Make it with: {options("weights", ["PATH"])}' in result.stderr


def test_only_complete_checkpoints_count(tmp_path):
  (tmp_path / 'ref/checkpoint_4.orbax-checkpoint-tmp-0').mkdir(parents=True)
  command = [*('launch/chain.sh', '--model', 'tiny', '--root', str(tmp_path))]
  command += ['--weights', str(tmp_path / 'none'), 'masks']

  def run():
    result = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, 'PYTHON': sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    return result.returncode, result.stdout + result.stderr

  status, told = run()
  assert status == 2
  assert f'reads {tmp_path}/ref, where no checkpoint_<step> is complete' in told
  (tmp_path / 'ref/checkpoint_4').mkdir()
  (tmp_path / 'refseg_start/checkpoint_0').mkdir(parents=True)
  assert run() == (
      0,
      f'==== masks ====\n{tmp_path}/refseg_start is there already\n',
  )


@pytest.mark.parametrize(
    'args, message',
    [
        (['--model', 't5'], '--root is not given'),
        ([*ARGS, '--model', 'gpt'], "'gpt' is none of t5, bert, tiny"),
        ([*ARGS, 'refsec'], "unknown stage 'refsec'"),
        ([*ARGS, '--weight', 'x'], 'unknown option --weight'),
        ([*ARGS, '--', '--dry_run'], "'--dry_run' behind -- is no gin flag"),
        (['--model', 't5', '--root', 'x', 'weights'], 'needs --weights'),
    ],
)
def test_wrong_usage_is_told_before_anything_runs(chain, args, message):
  result, calls = chain(*args)
  assert result.returncode == 2
  assert message in result.stderr
  assert not calls


def test_storage_that_cannot_be_read_is_not_taken_for_empty():
  command = [*('launch/chain.sh', '--model', 'tiny', '--root', 'r', 'ref')]
  result = subprocess.run(
      command,
      cwd=ROOT,
      env={**os.environ, 'PYTHON': 'false'},
      capture_output=True,
      text=True,
      check=False,
  )
  assert result.returncode == 2
  assert 'error: cannot look for checkpoints in r/trace' in result.stderr
  assert 'Make it with' not in result.stderr


def test_make_hands_the_chain_its_variables():
  result = subprocess.run(
      [
          *('make', '--dry-run', '--assume-old=.venv/.installed-convert'),
          *('chain', 'MODEL=t5', 'ROOT=gs://b/t5', 'WEIGHTS=sam.pth t5/'),
          *('IMAGES=a b', 'STAGES=masks refseg', 'DRY_RUN=yes'),
          'GIN_FLAGS=--gin.BATCH_SIZE=8',
      ],
      # The tests may be run by make, which hands its flags to another one.
      env={k: v for k, v in os.environ.items() if not k.startswith('MAKE')},
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=True,
  )
  assert shlex.split(result.stdout.replace('\\\n', ' ')) == [
      *('PYTHON=.venv/bin/python', 'launch/chain.sh', '--model', 't5'),
      *('--root', 'gs://b/t5', '--weights', 'sam.pth', '--weights', 't5/'),
      *('--images', 'a', '--images', 'b', '--dry_run', 'masks', 'refseg'),
      *('--', '--gin.BATCH_SIZE=8'),
  ]


SIZES = {
    **shallow_runs.SIZES,
    **shallow_runs.MASK_SIZES,
    # As EVA02-CLIP has it.
    'eva02_vit.Eva02Vit.attention_norm': True,
}


def save_torch_models(path):
  """Saves SAM, T5 and EVA02 of the sizes above, with random weights."""
  sam = transformers.SamConfig(
      vision_config={
          'hidden_size': 96,
          'num_hidden_layers': 1,
          'num_attention_heads': 4,
          'image_size': 64,
          'patch_size': 16,
          'mlp_dim': 384,
          'global_attn_indexes': [0],
          'window_size': 5,
      },
      prompt_encoder_config={'image_size': 64, 'patch_size': 16},
  )
  t5 = transformers.T5Config(
      vocab_size=32128,
      d_model=128,
      d_kv=32,
      d_ff=256,
      num_layers=1,
      num_decoder_layers=1,
      num_heads=4,
      feed_forward_proj='gated-gelu',
      tie_word_embeddings=False,
  )
  tower = torch_models.import_eva().Eva(
      img_size=64,
      patch_size=16,
      embed_dim=96,
      depth=1,
      num_heads=4,
      mlp_ratio=4 * 2 / 3,
      qkv_fused=False,
      swiglu_mlp=True,
      scale_mlp=True,
      scale_attn_inner=True,
      use_rot_pos_emb=True,
      ref_feat_shape=(4, 4),
      global_pool='token',
      num_classes=5,
  )
  transformers.SamModel(sam).save_pretrained(path / 'sam')
  transformers.T5ForConditionalGeneration(t5).save_pretrained(path / 't5')
  safetensors.torch.save_file(tower.state_dict(), path / 'eva02.safetensors')
  return [path / name for name in ('sam', 't5', 'eva02.safetensors')]


@pytest.fixture(scope='module', name='data_dir')
def _data_dir(tmp_path_factory):
  data_dir = tmp_path_factory.mktemp('data')
  shallow_runs.build_sample(data_dir, ('refcoco', 'ln', 'vg'), FOLDERS)
  return data_dir


@pytest.mark.slow
def test_one_command_goes_from_torch_weights_to_the_report(tmp_path, data_dir):
  root = tmp_path / 'runs'
  command = ['launch/chain.sh', '--model', 'tiny', '--root', str(root)]
  for source in save_torch_models(tmp_path):
    command += ['--weights', str(source)]
  for folder in FOLDERS:
    command += ['--images', f'tasks/sample/{folder}']
  command += ['--', *(f'--gin.{k}={v!r}' for k, v in SIZES.items())]
  environment = {
      **os.environ,
      'PYTHON': sys.executable,
      'PIXEL_LLM_DATA_DIR': str(data_dir),
      'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'xla'),
  }

  def run(*more):
    result = subprocess.run(
        [*command[:5], *more, *command[5:]],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout

  run('--dry_run')
  assert not root.exists()
  run()
  assert (root / 'report.html').exists()
  for name in ('trace', 'ref', 'refseg', 'densecap'):
    (metrics,) = (root / name / 'inference_eval').glob('*-metrics.jsonl')
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert rows[-1]['step'] == 4

  def read(path):
    return checkpoints.load_t5x_checkpoint(str(root / path))['target']

  theirs = transformers.SamModel.from_pretrained(tmp_path / 'sam').state_dict()
  neck = theirs['vision_encoder.neck.conv1.weight'].numpy()
  token = theirs['mask_decoder.iou_token.weight'].numpy()
  # SAM's tower is frozen all the way.
  for run_name in ('start', 'trace', 'ref', 'refseg_start', 'refseg'):
    kernel = read(run_name)['sam_backbone']['neck']['0']['kernel']
    assert (kernel == neck.transpose(2, 3, 1, 0)).all(), run_name
  # Its mask decoder joins where it is read, beside what the run has learned.
  start, ref = read('refseg_start'), read('ref')
  assert 'mask_decoder' not in ref
  assert (start['mask_decoder']['iou_token.weight'] == token).all()
  learned = ref['point_predictor']['mlp']['layers.0']['kernel']
  again = start['point_predictor']['mlp']['layers.0']['kernel']
  assert (again == learned).all()
  # All is there: the second time nothing is trained or imported.
  saved = sorted(root.glob('*/checkpoint_*'))
  shown = run()
  assert sorted(root.glob('*/checkpoint_*')) == saved
  assert shown.count('is there already') == 2
