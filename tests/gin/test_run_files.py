"""`gin/runs/eval.gin` and `infer.gin`: what becomes of a run's checkpoint."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import recipe_files

from pixel_llm.pretrained import import_weights
from pixel_llm.pretrained import target_model

RUN = 'gin/pixel_llm_tiny_refseg.gin'
PICTURES = [
    f'tasks/sample/{name}' for name in ('train2017', 'val2017', 'train2014')
]
# One layer of everything, three batches.
SMALL = {
    'TINY_IMAGE_SIZE': 64,
    'eva02_vit.Eva02Vit.depth': 1,
    'sam_image_encoder.SamImageEncoder.depth': 1,
    'sam_image_encoder.SamImageEncoder.global_block_indexes': (0,),
    'prompt_adapter.PromptAdapter.depth': 1,
    'mask_adapter.MaskAdapter.depth': 1,
    't5_text_head.T5TextConfig.num_encoder_layers': 1,
    't5_text_head.T5TextConfig.num_decoder_layers': 1,
    'EVALUATOR_NUM_EXAMPLES': 6,
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module', name='run_dir')
def _run_dir(tmp_path_factory):
  """A checkpoint of step 0, drawn at random, beside its data."""
  root = tmp_path_factory.mktemp('run')
  model = target_model.from_gin(
      [RUN], [f'{k} = {v!r}' for k, v in SMALL.items()]
  )
  rng = np.random.default_rng(0)
  params = {
      name: rng.normal(0, 0.05, shape.shape).astype(np.float32)
      for name, shape in _flat(model.params)
  }
  import_weights.save(str(root / 'model/checkpoint_0'), params)
  truth = 'tasks/sample/refcoco/merge_coco_img_safe_train.json'
  command = [sys.executable, '-m', 'tasks.build', 'refcoco']
  command += ['--images', *PICTURES, '--split', f'train={truth}']
  command += ['--output', str(root / 'data/sample/refcoco')]
  subprocess.run(command, cwd=recipe_files.ROOT, check=True)
  return root


def _flat(tree, prefix=''):
  for key, value in tree.items():
    if hasattr(value, 'items'):
      yield from _flat(value, f'{prefix}{key}/')
    else:
      yield f'{prefix}{key}', value


def run_script(script, run_dir, **bindings):
  bindings = {'MODEL_DIR': str(run_dir / 'model'), **SMALL, **bindings}
  result = subprocess.run(
      [
          sys.executable,
          '-m',
          f't5x.{script}',
          f'--gin_file={RUN}',
          f'--gin_file=gin/runs/{script}.gin',
          *(f'--gin.{k}={v!r}' for k, v in bindings.items()),
      ],
      cwd=recipe_files.ROOT,
      env={**os.environ, 'PIXEL_LLM_DATA_DIR': str(run_dir / 'data')},
      capture_output=True,
      text=True,
      timeout=900,
      check=False,
  )
  assert result.returncode == 0, result.stderr[-4000:]


def test_the_latest_checkpoint_of_a_run_is_evaluated(run_dir, tmp_path):
  run_script('eval', run_dir, EVAL_OUTPUT_DIR=str(tmp_path))
  results = tmp_path / 'inference_eval'
  name = 'refcoco_sample_refseg'
  (line,) = (results / f'{name}-metrics.jsonl').read_text().splitlines()
  metrics = json.loads(line)
  assert metrics['step'] == 0
  rows = json.loads((results / f'{name}-predictions-000000.json').read_text())
  right = [row for row in rows if row['bbox'] is not None]
  assert right and all(row['segmentation'] for row in right)
  assert 0 <= metrics['mask_cIoU'] <= 1
  done = (tmp_path / f'eval.{name}.ckpt').read_text()
  assert done.strip() == str(run_dir / 'model/checkpoint_0')


def test_the_texts_of_a_checkpoint_are_written_prompt_by_prompt(
    run_dir, tmp_path
):
  run_script('infer', run_dir, INFER_OUTPUT_DIR=str(tmp_path))
  (path,) = tmp_path.glob('refcoco_sample_refseg-predict.jsonl-*-of-00001')
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  ids = {
      (row['inputs']['image_id'], p)
      for row in rows
      for p in row['inputs']['prompt_ids']
  }
  assert len(ids) == 113
  for row in rows:
    texts = row['inputs']['texts']
    # It decodes nothing: an expression is its own text.
    assert row['prediction'][: len(texts)] == texts
