"""A project as users of T5X write them: model, network, task and gin files."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from scripts import HERE
from scripts import environment


@pytest.fixture
def project(tmp_path):
  """A copy that knows nothing of this repository but the name `t5x`."""
  shutil.copytree(HERE / 'user_project', tmp_path / 'project')
  return tmp_path / 'project'


def run(project, module, *args):
  paths = [str(project), environment()['PYTHONPATH']]
  result = subprocess.run(
      [sys.executable, '-m', module, *args],
      cwd=project,
      env=environment() | {'PYTHONPATH': os.pathsep.join(paths)},
      capture_output=True,
      text=True,
      timeout=500,
      check=False,
  )
  assert result.returncode == 0, result.stderr
  return result


@pytest.mark.slow
def test_it_trains_and_infers_unchanged(project, tmp_path):
  model_dir = tmp_path / 'run'
  result = run(
      project,
      't5x.train',
      '--gin_file=word_repeat/configs/pretrain_bag.gin',
      f'--gin.MODEL_DIR="{model_dir}"',
  )
  assert "bag.gin, line 12: no gin file reads the macro 'NUM_LAYERS'" in (
      result.stderr
  )
  rows = [
      json.loads(line)
      for line in (model_dir / 'train-metrics.jsonl').read_text().splitlines()
  ]
  values = {name: value for row in rows for name, value in row.items()}
  assert values['penalty'] > 0 and 0 < values['batch_share'] < 1
  assert values['loss'] > values['cross_ent_loss']
  assert 'weight_gradient_norm' in values
  path = model_dir / 'inference_eval/word_repeat-metrics.jsonl'
  metrics = json.loads(path.read_text().splitlines()[-1])
  assert metrics['step'] == 2 and 'exact_match' in json.dumps(metrics)
  assert (model_dir / 'checkpoint_2').is_dir()
  run(
      project,
      't5x.infer',
      '--gin_file=word_repeat/configs/bag.gin',
      '--gin_file=t5x/configs/runs/infer.gin',
      "--gin.MIXTURE_OR_TASK_NAME='word_repeat'",
      "--gin.MIXTURE_OR_TASK_SPLIT='validation'",
      "--gin.TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 4}",
      f'--gin.CHECKPOINT_PATH="{model_dir}/checkpoint_2"',
      f'--gin.INFER_OUTPUT_DIR="{tmp_path}/inferred"',
  )
  (path,) = (tmp_path / 'inferred').glob('*.jsonl-00000-of-00001')
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  assert [line['inputs']['inputs_pretokenized'] for line in lines][:2] == [
      'ab ba',
      'ba ab',
  ]
