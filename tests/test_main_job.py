"""The main job as processes: data, two runs, evaluation, report.

The same gin files as `make train`, with fewer layers and steps.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import shallow_runs

ROOT = shallow_runs.ROOT
FOLDERS = ('train2017', 'val2017')

# A run that repeats another's losses need not be scored.
UNSCORED = {
    'train_script.train.infer_eval_dataset_cfg': None,
    'train_script.train.train_eval_dataset_cfg': None,
}


def run(module, *args, data_dir):
  result = subprocess.run(
      [sys.executable, '-m', module, *args],
      cwd=ROOT,
      env={
          **os.environ,
          'PIXEL_LLM_DATA_DIR': str(data_dir),
          # What one run has compiled the next one need not.
          'JAX_COMPILATION_CACHE_DIR': str(data_dir / 'xla'),
      },
      capture_output=True,
      text=True,
      timeout=500,
      check=False,
  )
  assert result.returncode == 0, result.stderr[-4000:]
  return result


def train(recipe, model_dir, data_dir, **bindings):
  return train_file(
      f'gin/pixel_llm_tiny_{recipe}.gin', model_dir, data_dir, **bindings
  )


def train_file(gin_file, model_dir, data_dir, **bindings):
  return run(
      't5x.train',
      f'--gin_file={gin_file}',
      f"--gin.MODEL_DIR='{model_dir}'",
      *(f'--gin.{name}={value!r}' for name, value in bindings.items()),
      data_dir=data_dir,
  )


def metrics(path, name):
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  return {row['step']: row[name] for row in rows if name in row}


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  data_dir = tmp_path_factory.mktemp('data')
  shallow_runs.build_sample(data_dir, ('refcoco', 'ln'), FOLDERS)
  return data_dir


@pytest.fixture(scope='module')
def runs(tmp_path_factory, data_dir):
  """A trace run, the same again, and a refseg run that goes on from it."""
  # A relative path, as people write it.
  root = tmp_path_factory.mktemp('runs')
  relative = pathlib.Path(os.path.relpath(root, ROOT))
  train('trace', relative / 'trace', data_dir, **shallow_runs.SIZES)
  train('trace', root / 'again', data_dir, **shallow_runs.SIZES, **UNSCORED)
  train(
      'refseg',
      root / 'refseg',
      data_dir,
      INITIAL_CHECKPOINT_PATH=str(relative / 'trace'),
      **shallow_runs.SIZES,
      **shallow_runs.MASK_SIZES,
  )
  return root


def test_the_same_seed_gives_the_same_losses_bit_for_bit(runs):
  first = metrics(runs / 'trace/train-metrics.jsonl', 'loss')
  assert set(first) == {1, 2, 3, 4}
  assert metrics(runs / 'again/train-metrics.jsonl', 'loss') == first


def test_both_runs_are_scored(runs):
  trace = runs / 'trace/inference_eval/ln_sample_trace-metrics.jsonl'
  assert metrics(trace, 'num_trace_examples') == {4: 17.0}
  assert 0 < metrics(trace, 'trace_l1')[4] < 2
  refseg = runs / 'refseg/inference_eval/refcoco_sample_refseg-metrics.jsonl'
  assert metrics(refseg, 'num_expressions') == {4: 113.0}
  for name in ('box_precision_at_0.5', 'mask_cIoU', 'mask_gIoU'):
    assert 0 <= metrics(refseg, name)[4] <= 1


def test_predictions_are_in_pixels_of_the_original_pictures(runs):
  path = (
      runs
      / 'refseg/inference_eval/refcoco_sample_refseg-predictions-000004.json'
  )
  rows = json.loads(path.read_text())
  assert len(rows) == 113
  for row in rows:
    height, width = row['segmentation']['size']
    assert {height, width} & {640, 480, 427, 428, 426, 425, 424, 500, 612}
    assert isinstance(row['segmentation']['counts'], str)


def test_refseg_starts_from_the_trace_run_but_for_the_mask_parts(
    runs, data_dir
):
  from t5x import checkpoints

  trace = checkpoints.load_t5x_checkpoint(str(runs / 'trace/checkpoint_4'))
  start = checkpoints.load_t5x_checkpoint(str(runs / 'refseg/checkpoint_2'))

  def kernel(tree):
    return tree['target']['sam_backbone']['neck']['0']['kernel']

  # Frozen in both: still the very numbers of the trace run.
  assert (kernel(trace) == kernel(start)).all()
  assert 'mask_decoder' not in trace['target']
  assert 'mask_decoder' in start['target']
  assert int(start['state']['step']) == 2


def test_the_report_shows_every_sample_in_one_file(runs, data_dir, tmp_path):
  output = tmp_path / 'report.html'
  result = run(
      'pixel_llm.evaluation.report',
      f'--model_dir={runs / "trace"}',
      f'--model_dir={runs / "refseg"}',
      *(f'--image_dir=tasks/sample/{folder}' for folder in FOLDERS),
      '--max_samples=200',
      f'--output={output}',
      data_dir=data_dir,
  )
  assert str(output) in result.stdout
  page = output.read_text()
  assert '0 missing' in result.stdout
  assert 'http://' not in page.split('Picture credits')[0]
  assert page.count('data:image/jpeg;base64') >= 16
  assert '113 of 113' in page and '17 of 17' in page


@pytest.mark.slow
def test_a_run_with_the_bert_head_is_scored_in_word_pieces(data_dir, tmp_path):
  settings = {
      k: v for k, v in shallow_runs.SIZES.items() if 't5_text_head' not in k
  }
  train_file('tests/tiny_bert.gin', tmp_path, data_dir, **settings)
  scores = tmp_path / 'inference_eval/ln_sample_trace_bert-metrics.jsonl'
  assert metrics(scores, 'num_trace_examples') == {4: 17.0}
  assert 0 < metrics(scores, 'trace_l1')[4] < 2
  [path] = tmp_path.glob('inference_eval/*-predictions-000004.json')
  for row in json.loads(path.read_text()):
    words = [word['word'] for word in row['truth']['trace']]
    text = ''.join(row['truth']['text'].lower().split())
    # The caption as far as its tokens fit, in whole words.
    assert words and text.startswith(''.join(words[:-1]))
    assert len(row['trace']) == len(row['caption'].split())
