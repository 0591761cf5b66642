import jax
import numpy as np
import pytest
import run_kwargs
import seqio
import tiny_regression
import tiny_task

from t5x import actions
from t5x import adafactor
from t5x import checkpoint_config
from t5x import checkpoints
from t5x import convert_checkpoint
from t5x import ema
from t5x import inference_states
from t5x import initializer
from t5x import loop
from t5x import optimizers
from t5x import partitioning
from t5x import step_guard
from t5x import stored_state

DECAY = 0.25
HEAD = ('head', 'kernel')


def _trainer(decay=DECAY, **kwargs):
  optimizer = ema.EmaOptimizer(tiny_regression.optimizer(), decay)
  return tiny_regression.trainer(
      tiny_regression.Regression(optimizer), **kwargs
  )


def _host(tree):
  return jax.tree.map(np.array, tree)


def test_the_average_is_that_of_the_parameters_and_changes_no_step():
  plain = tiny_regression.trainer(
      tiny_regression.Regression(tiny_regression.optimizer())
  )
  averaged = _trainer()
  history = []
  for batch in tiny_regression.batches(5):
    for trainer in (plain, averaged):
      trainer.train(iter([batch]), 1).result()
    history.append(_host(plain.train_state.params)['hidden']['kernel'])
  jax.tree.map(
      np.testing.assert_array_equal,
      plain.train_state.params,
      averaged.train_state.params,
  )
  want = history[0]
  for n, new in enumerate(history[1:], start=1):
    kept = min(DECAY, n / (n + 9))
    want = kept * want + (1 - kept) * new
  states = averaged.train_state.param_states
  np.testing.assert_allclose(states['ema']['hidden']['kernel'], want, rtol=1e-6)
  # What is frozen has none.
  assert states['ema'][tiny_regression.FROZEN]['kernel'] is None
  assert int(states['ema_count']) == 5


def test_the_average_lies_on_the_mesh_as_its_parameter_does():
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  trainer = _trainer(partitioner=partitioner)
  axes = partitioner.get_mesh_axes(trainer.train_state)
  average = axes.param_states['ema']
  assert average['hidden'] == axes.params['hidden']
  assert average[tiny_regression.FROZEN]['kernel'] is None
  state = trainer.train_state.state_dict()['state']
  assert set(state['param_states']['ema']) == {'head', 'hidden'}


def test_a_skipped_step_is_not_averaged():
  trainer = _trainer(guard=step_guard.StepGuard())
  (batch,) = tiny_regression.batches(1)
  trainer.train(iter([batch, batch]), 2).result()
  before = _host(trainer.train_state.param_states)
  bad = {**batch, 'x': batch['x'] * np.nan}
  trainer.train(iter([bad]), 1).result()
  jax.tree.map(
      np.testing.assert_array_equal, before, trainer.train_state.param_states
  )


@pytest.mark.parametrize('decay', [0.0, 1.0])
def test_a_decay_that_averages_nothing_is_refused(decay):
  with pytest.raises(ValueError, match='EmaOptimizer.decay'):
    ema.EmaOptimizer(optimizers.sgd(1.0), decay)


def test_optimizers_that_need_axes_or_keep_nothing_can_be_wrapped():
  assert not hasattr(ema.EmaOptimizer(optimizers.sgd(1.0)), 'set_param_axes')
  assert hasattr(ema.EmaOptimizer(adafactor.Adafactor()), 'set_param_axes')
  params = {'kernel': np.ones((2, 2), np.float32)}
  bound = ema.EmaOptimizer(optimizers.sgd(1.0)).create(params)
  restored = bound.restore_state(bound.apply_gradient(params).state_dict())
  assert int(restored.state.param_states['ema_count']) == 1
  np.testing.assert_array_equal(
      restored.state.param_states['ema']['kernel'], np.zeros((2, 2))
  )
  # The learning rate of the trainer gets through.
  factored = ema.EmaOptimizer(adafactor.Adafactor()).create(params)
  moved = factored.apply_gradient(params, learning_rate=0.5)
  assert np.all(np.asarray(moved.target['kernel']) < 1)


class _Records(actions.BaseAction):
  """Keeps what it sees."""

  def run(self, train_state, metrics_by_task):
    self.step = int(train_state.step)
    self.params = _host(train_state.params)
    self.average = _host(train_state.param_states['ema'])
    (self.metrics,) = metrics_by_task.values()
    return False


@pytest.mark.parametrize('evaluates', [True, False])
def test_the_evaluations_of_a_run_take_the_average_if_they_shall(
    tmp_path, evaluates
):
  validation = run_kwargs.dataset_cfg('validation')
  loss, decoded = _Records(), _Records()
  model = tiny_task.TinyModel(
      ema.EmaOptimizer(optimizers.adamw(0.1), 0.5, evaluate_average=evaluates)
  )
  kwargs = run_kwargs.run_kwargs(
      tmp_path,
      model=model,
      total_steps=2,
      eval_period=2,
      eval_steps=1,
      train_eval_dataset_cfg=validation,
      infer_eval_dataset_cfg=validation,
      inference_evaluator_cls=lambda **kwargs: seqio.Evaluator(
          target_field_name='tokens', **kwargs
      ),
      concurrent_metrics=False,
      actions={'TRAIN_EVAL': [loss], 'INFER_EVAL': [decoded]},
  )
  _, state = loop.train(**kwargs)
  data = seqio.get_mixture_or_task('tiny_plain_task').get_dataset(
      tiny_task.feature_lengths(), 'validation', shuffle=False
  )
  (whole,) = data.batch(10).as_numpy_iterator()
  first = {name: array[:8] for name, array in whole.items()}
  params = decoded.average if evaluates else decoded.params
  # Actions see the state that goes on.
  for seen in (loss, decoded):
    assert seen.step == 2
    jax.tree.map(np.testing.assert_array_equal, seen.params, state.params)
  np.testing.assert_allclose(
      loss.metrics['loss'].value,
      model.loss_fn(params, first, None)[0],
      rtol=1e-5,
  )
  np.testing.assert_allclose(
      decoded.metrics['mean_score'],
      np.mean(model.score_batch(params, whole)),
      rtol=1e-5,
  )
  other = decoded.params if evaluates else decoded.average
  with pytest.raises(AssertionError):
    np.testing.assert_allclose(
        loss.metrics['loss'].value,
        model.loss_fn(other, first, None)[0],
        rtol=1e-3,
    )


def test_without_an_update_the_parameters_are_evaluated():
  trainer = _trainer()
  moved = jax.tree.map(lambda x: x + 1, trainer.train_state.params)
  # As where a checkpoint gave parameters, and no state of an optimizer.
  state = trainer.train_state.replace_params(moved)
  jax.tree.map(np.testing.assert_array_equal, state.to_evaluate().params, moved)
  trainer.train(tiny_regression.batches(1), 1).result()
  # What is frozen stays as it is.
  got, kept = trainer.train_state.to_evaluate(), trainer.train_state
  name = tiny_regression.FROZEN
  assert got.params[name]['kernel'] is kept.params[name]['kernel']
  average = kept.param_states['ema']['head']['kernel']
  assert got.params['head']['kernel'] is average


def _flat(state):
  return stored_state.flatten(_host(state.state_dict()))


def test_a_run_saves_resumes_and_evaluates_its_average(tmp_path):
  def run(directory, total):
    model = tiny_task.TinyModel(ema.EmaOptimizer(optimizers.adamw(0.01), 0.5))
    kwargs = run_kwargs.run_kwargs(
        directory, model=model, total_steps=total, save={'period': 2}
    )
    return model, loop.train(**kwargs)[1]

  _, whole = run(tmp_path / 'whole', 4)
  run(tmp_path / 'cut', 2)
  model, resumed = run(tmp_path / 'cut', 4)
  want, got = _flat(whole), _flat(resumed)
  assert any(path[2:3] == ('ema',) for path in got)
  for path, leaf in want.items():
    np.testing.assert_array_equal(leaf, got[path], err_msg='/'.join(path))

  def target_of(path, fns):
    states = inference_states.InferenceStates(
        model=model,
        input_shapes={'x': (8, 4), 'image': (8, 2, 2, 3)},
        input_types={'x': np.float32, 'image': np.uint8},
        partitioner=run_kwargs.partitioner(),
        restore_cfg=checkpoint_config.RestoreCheckpointConfig(
            path=str(path), mode='latest', state_transformation_fns=fns
        ),
        model_info_path=None,
        train_state_initializer_cls=initializer.TrainStateInitializer,
        fallback_init_rng=None,
        use_orbax=True,
    )
    return _flat(states.restore(states.paths[0]))

  plain, averaged = (
      target_of(tmp_path / 'whole', fns) for fns in ([], [ema.use_ema])
  )
  changed = 0
  for path, leaf in averaged.items():
    if path[0] != 'target':
      continue
    name = ('state', 'param_states', 'ema', *path[1:])
    np.testing.assert_array_equal(leaf, want[name])
    np.testing.assert_array_equal(plain[path], want[path])
    changed += not np.array_equal(leaf, plain[path])
  assert changed
  # To export it, as the parameters of a checkpoint.
  converted = convert_checkpoint.convert(
      str(tmp_path / 'whole'), str(tmp_path / 'ema'), use_ema=True
  )
  exported = stored_state.flatten(checkpoints.load_t5x_checkpoint(converted))
  for path, leaf in averaged.items():
    np.testing.assert_array_equal(exported[path], leaf)


def test_a_checkpoint_without_an_average_says_so():
  with pytest.raises(ValueError, match='holds no average'):
    ema.use_ema({'target': {'kernel': 1}, 'state': {'step': 1}}, {})
