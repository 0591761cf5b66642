import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_kwargs import dataset_cfg
from run_kwargs import partitioner
import tiny_task

from t5x import axis_names
from t5x import datasets
from t5x import inference
from t5x import initializer


@pytest.fixture(scope='module')
def setup():
  model = tiny_task.TinyModel(None)
  init = initializer.TrainStateInitializer(
      None,
      model.get_initial_variables,
      {'x': (4, 4), 'image': (4, 2, 2, 3)},
      partitioner(),
      {'x': jnp.float32, 'image': jnp.uint8},
  )
  data = datasets.get_dataset(
      dataset_cfg('validation', batch_size=1),
      0,
      1,
      tiny_task.Converter,
      num_epochs=1,
  ).unbatch()
  return model, init, init.from_scratch(jax.random.PRNGKey(0)), data


def infer(setup, step, **kwargs):
  _, init, state, data = setup
  fn = inference.get_infer_fn(
      step, 4, init.train_state_axes, partitioner(), **kwargs
  )
  return fn(data.enumerate(), state, rng=jax.random.PRNGKey(1))


def test_results_come_in_order_without_the_padding(setup):
  results = infer(setup, lambda params, batch: batch['tokens'])
  expected = [ex['tokens'].tolist() for ex in setup[3].as_numpy_iterator()]
  assert results == list(enumerate(expected))
  assert len(results) == 10


def test_aux_values_are_lists_over_the_examples(setup):
  model = setup[0]
  results, aux = infer(setup, model.predict_batch_with_aux)
  scores = infer(setup, model.score_batch)
  assert [score for _, score in scores] == aux['scores']
  _, arrays = infer(
      setup,
      lambda params, batch: (batch['x'], {'image': batch['image']}),
      keep_aux_as_numpy=True,
  )
  assert len(arrays['image']) == len(results) == 10
  assert arrays['image'][0].dtype == np.uint8


def test_each_batch_has_its_own_key_if_the_step_takes_one(setup):
  def step(params, batch, rng):
    return jax.random.uniform(rng, (4,))

  values = [value for _, value in infer(setup, step)]
  assert len(set(values)) == 10
  assert values == [value for _, value in infer(setup, step)]


def test_vocabularies_are_rounded_up():
  for size, rounded in ((129, 256), (128, 128), (1, 128)):
    vocabulary = types.SimpleNamespace(vocab_size=size)
    assert axis_names.round_vocab_size_to_multiple(vocabulary) == rounded


def test_axes_are_renamed_by_the_first_full_match(setup):
  model = setup[0]
  variables = model.get_initial_variables(
      jax.random.PRNGKey(0),
      {'x': (1, 4), 'image': (1, 2, 2, 3)},
      {'x': jnp.float32, 'image': jnp.uint8},
  )
  changed = axis_names.override_params_axes_names(
      variables,
      [('kernel', ('a', 'b')), ('.*kernel', ('c', 'd')), ('.*', ('e', 'f'))],
  )
  axes = changed['params_axes']
  assert axes['head']['kernel_axes'].names == ('c', 'd')
  with pytest.raises(ValueError, match='have rank 1'):
    axis_names.override_params_axes_names(variables, [('head/.*', ('a',))])
  with pytest.raises(ValueError, match='params_axes'):
    axis_names.override_params_axes_names({'params': {}})
