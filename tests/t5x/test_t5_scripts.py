"""A T5 is trained, evaluated and run by scripts and gin files alone."""

import json

import pytest
import scripts


def run(module, *args):
  result = scripts.run(module, *args)
  assert result.returncode == 0, result.stderr
  return result


@pytest.fixture(scope='module')
def model_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp('t5') / 'run'
  run('t5x.train', '--gin_file=tiny_t5.gin', f"--gin.MODEL_DIR='{path}'")
  return path


def test_pretraining_lowers_the_loss_of_a_tiny_t5(model_dir):
  lines = (model_dir / 'train-metrics.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  losses = [
      row['loss_per_nonpadding_target_token'] for row in rows if 'loss' in row
  ]
  assert len(losses) == 40
  assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
  # Packed: more examples than rows.
  assert all(
      row['effective_batch_size/decoder'] > 4 for row in rows if 'loss' in row
  )
  steps = sorted(path.name for path in model_dir.glob('checkpoint_*'))
  assert steps == ['checkpoint_0', 'checkpoint_20', 'checkpoint_40']
  assert (model_dir / 'training_eval' / 'tiny_text').is_dir()
  assert 'DROPOUT_RATE = 0.0' in (model_dir / 'config.gin').read_text()
