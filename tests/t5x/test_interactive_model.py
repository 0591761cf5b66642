"""Interactive calls give the numbers of the trainer and of the evaluator."""

import importlib
import sys

import jax
import numpy as np
import pytest
import seqio
import tiny_text_task

import gin
from t5x import adafactor
from t5x import batches
from t5x import datasets
from t5x import evaluation
from t5x import gin_utils
from t5x import initializer
from t5x import interactive_model
from t5x import learning_rates
from t5x import models
from t5x import partitioning
from t5x import trainer as trainer_lib
from t5x.examples.t5 import network

LENGTHS = {'inputs': 8, 'targets': 4}
BATCH = 4
SEED = 3


def make_model():
  vocabulary = seqio.ByteVocabulary()
  config = network.T5Config(
      vocab_size=384,
      emb_dim=8,
      num_heads=2,
      num_encoder_layers=1,
      num_decoder_layers=1,
      head_dim=4,
      mlp_dim=16,
      dtype='float32',
      dropout_rate=0.1,
  )
  return models.EncoderDecoderModel(
      module=network.Transformer(config),
      input_vocabulary=vocabulary,
      output_vocabulary=vocabulary,
      optimizer_def=adafactor.Adafactor(
          logical_factor_rules=adafactor.standard_logical_factor_rules()
      ),
  )


def make_partitioner():
  return partitioning.PjitPartitioner(
      num_partitions=1,
      logical_axis_rules=partitioning.standard_logical_axis_rules(),
  )


def shapes():
  names = ('encoder_input', 'decoder_input', 'decoder_target')
  lengths = (LENGTHS['inputs'], LENGTHS['targets'], LENGTHS['targets'])
  return {f'{n}_tokens': (BATCH, size) for n, size in zip(names, lengths)}


def make(output_dir, **kwargs):
  settings = {
      'batch_size': BATCH,
      'task_feature_lengths': LENGTHS,
      'output_dir': str(output_dir),
      'partitioner': make_partitioner(),
      'model': make_model(),
      'dtype': 'float32',
      'restore_mode': 'latest',
      'checkpoint_path': '',
      'input_shapes': shapes(),
      'input_types': dict.fromkeys(shapes(), np.int32),
      'init_random_seed': SEED,
  }
  return interactive_model.InteractiveModel(**settings | kwargs)


def train_examples():
  return interactive_model.get_batches_from_seqio(
      'tiny_text', 'train', BATCH, 2, shuffle=False, num_epochs=1
  )


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  model = make(tmp_path_factory.mktemp('interactive') / 'run')
  losses = []
  for examples in train_examples():
    model.train_step(examples)
    losses.append(model.train_summary['loss'].value)
  yield model, losses
  model.close()


def dataset_cfg(split):
  return datasets.DatasetConfig(
      mixture_or_task_name='tiny_text',
      task_feature_lengths=LENGTHS,
      split=split,
      batch_size=BATCH,
      shuffle=False,
      seed=0,
  )


def test_steps_are_those_of_the_trainer(trained, tmp_path):
  model, losses = trained
  plain = make_model()
  partitioner = make_partitioner()
  init = initializer.TrainStateInitializer(
      plain.optimizer_def,
      plain.get_initial_variables,
      shapes(),
      partitioner,
      dict.fromkeys(shapes(), np.int32),
  )
  init_rng, trainer_rng = jax.random.split(jax.random.PRNGKey(SEED))
  trainer = trainer_lib.Trainer(
      model=plain,
      train_state=init.from_scratch(init_rng),
      partitioner=partitioner,
      eval_names=[],
      summary_dir=None,
      train_state_axes=init.train_state_axes,
      rng=trainer_rng,
      learning_rate_fn=learning_rates.create_learning_rate_scheduler(),
      num_microbatches=None,
  )
  dataset = datasets.get_dataset(
      dataset_cfg('train'), 0, 1, plain.FEATURE_CONVERTER_CLS
  )
  data = iter(batches.GlobalBatches(dataset, partitioner, BATCH))
  expected = [trainer.train(data, 1).result()['loss'].value for _ in range(2)]
  np.testing.assert_array_equal(losses, expected)
  jax.tree.map(
      np.testing.assert_array_equal,
      model.train_state.params,
      trainer.train_state.params,
  )
  assert model.step == 2


def test_metrics_are_those_of_the_evaluator(trained):
  model, _ = trained
  (examples,) = interactive_model.get_batches_from_seqio(
      'tiny_text', 'test', 5, 1, shuffle=False
  )
  predictions = model.predict_with_aux(examples)[0]
  assert [row['inputs_pretokenized'] for row, _ in predictions] == [
      example['input'] for example in examples
  ]

  # Predictions of two steps say nothing; their number of letters differs.
  def lengths(targets, predictions, aux_values):
    del targets
    return {
        'length': sum(map(len, predictions)),
        'score': float(np.sum(aux_values['scores'])),
    }

  def log_likelihood(targets, scores):
    assert len(targets) == len(scores) == 5
    return {'log_likelihood': float(np.mean(scores))}

  seqio.TaskRegistry.add(
      'tiny_text_of_lengths',
      source=seqio.FunctionDataSource(tiny_text_task._pairs, splits=('test',)),
      preprocessors=list(interactive_model.DEFAULT_PREPROCESSORS),
      output_features=model.features,
      metric_fns=[lengths, log_likelihood],
  )
  cfg = dataset_cfg('test')
  cfg.mixture_or_task_name = 'tiny_text_of_lengths'
  evaluator = evaluation.InferenceEvaluator(
      cfg, seqio.Evaluator, model.model, model.partitioner
  )
  expected = evaluator.evaluate(
      model.train_state, model.train_state_axes
  ).result()
  evaluator.close()
  found = model.evaluate(examples, [lengths, log_likelihood])
  # Sums of lists and of arrays round differently.
  assert found == pytest.approx(expected['tiny_text_of_lengths'], rel=1e-6)
  assert found['log_likelihood'] == np.mean(
      [score for _, score in model.score(examples)]
  )


@pytest.mark.slow
def test_a_model_goes_on_from_its_directory_or_from_a_checkpoint(
    trained, tmp_path
):
  model, _ = trained
  again = make(model.output_dir)
  assert again.step == 2
  jax.tree.map(
      np.testing.assert_array_equal,
      model.train_state.params,
      again.train_state.params,
  )
  again.close()
  path = f'{model.output_dir}/checkpoint_1'
  other = make(tmp_path / 'x', checkpoint_path=path, restore_mode='specific')
  assert other.step == 1
  predictions, scores, metrics = other.train_loop(
      2,
      train_batches=train_examples()[1],
      predict_batches=['ab'],
      eval_period=2,
  )
  assert other.step == 3 and scores is metrics is None
  assert isinstance(predictions[0][1], bytes)
  # The second step on the same batch as before: the same parameters.
  third = make(
      tmp_path / 'y',
      checkpoint_path=f'{tmp_path}/x/checkpoint_2',
      restore_mode='specific',
  )
  jax.tree.map(
      np.testing.assert_array_equal,
      model.train_state.params,
      third.train_state.params,
  )
  third.close()
  other.close()


def test_what_does_not_fit_is_told(trained):
  model, _ = trained
  with pytest.raises(ValueError, match='takes 4 examples, got 1'):
    model.train_step(['a'])
  with pytest.raises(ValueError, match="no 'target'|no target"):
    model.score([{'input': 'a'}])
  with pytest.raises(ValueError, match='takes one of'):
    model.evaluate(['a'], [lambda predictions, targets: {}])
  with pytest.raises(ValueError, match='and 9 batches of 4 need 36'):
    interactive_model.get_batches_from_seqio('tiny_text', 'test', 4, 9)


@pytest.mark.parametrize('kind', list(interactive_model.T5XScriptType))
def test_its_gin_files_pass_the_check_of_the_scripts(
    trained, kind, tmp_path, monkeypatch
):
  model, _ = trained
  text = interactive_model.get_gin_config_from_interactive_model(
      model,
      kind,
      'my_task',
      'partitioning.PjitPartitioner.num_partitions = 1',
      "include 'tiny_t5_model.gin'",
      train_steps=5,
      imports_str='from t5x import partitioning',
  )
  (tmp_path / 'run.gin').write_text(text)
  scripts = {'EVALUATION': 't5x.eval', 'INFERENCE': 't5x.infer'}
  script = importlib.import_module(scripts.get(kind.name, 't5x.train'))
  monkeypatch.setitem(sys.modules, '__main__', script)
  monkeypatch.setattr(gin.config, '_LOCATION_PREFIXES', [''])
  monkeypatch.syspath_prepend(str(tmp_path))
  gin.clear_config()
  here = str(tiny_text_task.__file__).rsplit('/', 1)[0]
  root = here.rsplit('/tests/', 1)[0]
  gin_utils.parse_gin_flags([str(tmp_path), here, root], ['run.gin'], [])
  if kind.name == 'FINETUNING':
    assert gin.query_parameter('%TRAIN_STEPS') == 7
    assert gin.query_parameter('%INITIAL_CHECKPOINT_PATH') == model.output_dir
  gin.clear_config()


def test_a_task_of_examples_has_their_texts(trained):
  model, _ = trained
  examples, _ = train_examples()
  task = interactive_model.get_seqio_task_from_examples(
      'my_examples',
      model,
      examples,
      interactive_model.DEFAULT_PREPROCESSORS,
      metric_fns=[tiny_text_task._exact],
  )
  assert seqio.get_mixture_or_task('my_examples') is task
  rows = task.get_dataset(LENGTHS, 'validation', shuffle=False)
  texts = [row['targets_pretokenized'] for row in rows.as_numpy_iterator()]
  assert texts == [example['target'] for example in examples]
