"""A T5 is trained, evaluated and run by scripts and gin files alone."""

import importlib
import json
import re

import processes
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


def test_every_scalar_of_a_run_is_explained(model_dir):
  pages = [scripts.HERE.parents[1] / f'docs/{n}.md' for n in ('t5x', 'ledger')]
  text = ''.join(page.read_text() for page in pages)
  # `<feature>` and the like stand for one or several names.
  known = [
      re.sub('<[a-z]+>', '.+', re.escape(name))
      for name in re.findall(r'`(\w[\w/<>]*)`', text)
  ]
  scalars = {
      name
      for path in [
          model_dir / 'train-metrics.jsonl',
          *(model_dir / 'training_eval').glob('*-metrics.jsonl'),
      ]
      for line in read_lines(path)
      for name in line
  } - {'step'}
  assert {'loss', 'timing/uptime', 'ledger/explained'} <= scalars
  unknown = {n for n in scalars if not any(re.fullmatch(k, n) for k in known)}
  assert sorted(unknown) == []


@pytest.mark.slow
def test_a_seeded_run_repeats_itself(model_dir, tmp_path):
  run(
      't5x.train',
      '--gin_file=tiny_t5.gin',
      f"--gin.MODEL_DIR='{tmp_path}'",
      '--gin.TRAIN_STEPS=4',
      '--gin.train_script.train.train_eval_dataset_cfg=None',
      '--gin.utils.SaveCheckpointConfig.period=4',
  )
  names = ('loss', 'effective_batch_size/decoder', 'learning_rate')
  first, again = (
      [
          [row[name] for name in names]
          for row in read_lines(path / 'train-metrics.jsonl')
          if 'loss' in row
      ]
      for path in (model_dir, tmp_path)
  )
  assert len(again) == 4
  assert again == first[:4]


@pytest.fixture(scope='module')
def tuned_dir(model_dir, tmp_path_factory):
  path = tmp_path_factory.mktemp('t5') / 'tuned'
  run(
      't5x.train',
      '--gin_file=tiny_t5_finetune.gin',
      f"--gin.MODEL_DIR='{path}'",
      f"--gin.INITIAL_CHECKPOINT_PATH='{model_dir / 'checkpoint_40'}'",
  )
  return path


def read_lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_evaluating_a_checkpoint_gives_the_metrics_of_the_training_run(
    tuned_dir, tmp_path
):
  checkpoint = tuned_dir / 'checkpoint_44'
  run(
      't5x.eval',
      '--gin_file=tiny_t5_eval.gin',
      f"--gin.CHECKPOINT_PATH='{checkpoint}'",
      f"--gin.EVAL_OUTPUT_DIR='{tmp_path}'",
  )
  results = 'inference_eval/tiny_text-metrics.jsonl'
  (evaluated,) = read_lines(tmp_path / results)
  trained = read_lines(tuned_dir / results)[-1]
  assert evaluated['step'] == trained['step'] == 44
  assert set(evaluated) == set(trained) >= {'exact', 'log_likelihood'}
  for name, value in trained.items():
    assert evaluated[name] == pytest.approx(value, rel=1e-5)
  record = (tmp_path / 'eval.tiny_text.ckpt').read_text()
  assert record == f'{checkpoint}\n'
  assert (tmp_path / 'config.gin').exists()
  assert 'Variable' in (tmp_path / 'model-info.txt').read_text()


def validation_texts():
  tiny_text_task = importlib.import_module('tiny_text_task')
  examples = tiny_text_task._pairs('validation', False).as_numpy_iterator()
  return [
      {name: text.decode() for name, text in example.items()}
      for example in examples
  ]


@pytest.fixture(scope='module')
def inferred_dir(tuned_dir, tmp_path_factory):
  path = tmp_path_factory.mktemp('t5') / 'inferred'
  run(
      't5x.infer',
      '--gin_file=tiny_t5_infer.gin',
      f"--gin.CHECKPOINT_PATH='{tuned_dir / 'checkpoint_44'}'",
      f"--gin.INFER_OUTPUT_DIR='{path}'",
      '--gin.infer_script.infer.checkpoint_period=1',
  )
  return path


def test_inference_writes_every_example_once_and_in_order(inferred_dir):
  name = 'tiny_text-predict.jsonl-00000-of-00001'
  rows = read_lines(inferred_dir / name)
  assert [row['inputs'] for row in rows] == [
      {f'{key}_pretokenized': text for key, text in example.items()}
      for example in validation_texts()
  ]
  assert all(isinstance(row['prediction'], str) for row in rows)
  assert (inferred_dir / f'{name}.COMPLETED').read_text() == ''
  assert not list(inferred_dir.glob('tmp-*'))


def test_examples_of_a_file_are_inferred_like_those_of_a_task(
    tuned_dir, inferred_dir, tmp_path
):
  import tensorflow as tf

  file = tmp_path / 'in.tfrecord'
  with tf.io.TFRecordWriter(str(file)) as writer:
    for example in validation_texts():
      text = tf.train.Feature(
          bytes_list=tf.train.BytesList(value=[example['inputs'].encode()])
      )
      features = tf.train.Features(feature={'text': text})
      writer.write(tf.train.Example(features=features).SerializeToString())
  run(
      't5x.infer',
      '--gin_file=tiny_t5_infer_file.gin',
      f"--gin.CHECKPOINT_PATH='{tuned_dir / 'checkpoint_44'}'",
      f"--gin.INFER_OUTPUT_DIR='{tmp_path / 'out'}'",
      f"--gin.TF_EXAMPLE_FILE_PATHS=['{file}']",
      "--gin.infer_script.create_task_from_tfexample_file.inputs_key='text'",
  )
  (path,) = (tmp_path / 'out').glob('infer_*-predict.jsonl-00000-of-00001')
  task = inferred_dir / 'tiny_text-predict.jsonl-00000-of-00001'
  for from_file, from_task in zip(read_lines(path), read_lines(task)):
    assert from_file['prediction'] == from_task['prediction']
    for rows in (from_file, from_task):
      assert rows['inputs']['inputs_pretokenized']
  assert len(read_lines(path)) == len(read_lines(task)) == 5


def run_on_several(count, module, directory, *args):
  """Runs a script as processes with a device each."""
  command = [
      *('-m', module, *processes.FLAGS),
      # A row of a batch for each.
      '--gin.utils.DatasetConfig.batch_size=4',
      *args,
  ]
  with processes.Pod(count, command, directory) as pod:
    pod.check()
    # One run of all, not a run of each.
    for index in range(count):
      assert f'Process {index} of {count} (flags)' in pod.err(index)


@pytest.mark.slow
@pytest.mark.parametrize('count', [2, 4])
def test_several_processes_evaluate_like_one(tuned_dir, tmp_path, count):
  run_on_several(
      count,
      't5x.eval',
      tmp_path / 'logs',
      '--gin_file=tiny_t5_eval.gin',
      f"--gin.CHECKPOINT_PATH='{tuned_dir / 'checkpoint_44'}'",
      f"--gin.EVAL_OUTPUT_DIR='{tmp_path / 'out'}'",
  )
  results = 'inference_eval/tiny_text-metrics.jsonl'
  (evaluated,) = read_lines(tmp_path / 'out' / results)
  trained = read_lines(tuned_dir / results)[-1]
  assert set(evaluated) == set(trained)
  for name, value in trained.items():
    assert evaluated[name] == pytest.approx(value, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('count', [2, 4])
def test_several_processes_infer_like_one(
    tuned_dir, inferred_dir, tmp_path, count
):
  run_on_several(
      count,
      't5x.infer',
      tmp_path / 'logs',
      '--gin_file=tiny_t5_infer.gin',
      f"--gin.CHECKPOINT_PATH='{tuned_dir / 'checkpoint_44'}'",
      f"--gin.INFER_OUTPUT_DIR='{tmp_path / 'out'}'",
      '--gin.infer_script.infer.checkpoint_period=1',
  )
  name = 'tiny_text-predict.jsonl-00000-of-00001'
  alone = (inferred_dir / name).read_bytes()
  assert (tmp_path / 'out' / name).read_bytes() == alone
  assert not list((tmp_path / 'out').glob('tmp-*'))
