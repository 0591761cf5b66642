import functools
import pathlib

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_kwargs import partitioner
import tiny_task

from t5x import best_checkpoints
from t5x import checkpoint_config
from t5x import checkpoint_managers
from t5x import checkpoint_utils
from t5x import checkpoints
from t5x import initializer
from t5x import optimizers
from t5x import restoring
from t5x import state_matching
from t5x import stored_state

SHAPES = {'x': (8, 4), 'image': (8, 2, 2, 3)}
TYPES = {'x': jnp.float32, 'image': jnp.uint8}


@functools.cache
def make(width=8, optimizer=True):
  model = tiny_task.TinyModel(optimizers.adamw(0.01), width)
  return initializer.TrainStateInitializer(
      model.optimizer_def if optimizer else None,
      model.get_initial_variables,
      SHAPES,
      partitioner(),
      TYPES,
  )


@functools.cache
def _fresh(seed):
  return make().from_scratch(jax.random.PRNGKey(seed))


def state_at(step, seed=0):
  # Copied, as a test may donate it.
  state = jax.tree.map(jnp.copy, _fresh(seed))
  return state.replace_step(jnp.asarray(step, jnp.int32))


def manager(directory, **kwargs):
  init = make(kwargs.pop('width', 8))
  return checkpoints.OrbaxCheckpointManagerInterface(
      str(directory), init.global_train_state_shape, partitioner(), **kwargs
  )


def save(directory, *states, fns=(), **kwargs):
  m = manager(directory, **kwargs)
  for state in states:
    assert m.save(state, fns)
    m.wait_until_finished()
  m.close()
  return pathlib.Path(directory)


def assert_same(a, b):
  a, b = (stored_state.flatten(x.state_dict()) for x in (a, b))
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name])


def restore_cfg(path, **kwargs):
  return checkpoint_config.RestoreCheckpointConfig(str(path), **kwargs)


def test_a_saved_state_comes_back_with_dots_in_names(tmp_path):
  state = state_at(3)
  save(tmp_path, state)
  m = manager(tmp_path)
  restored = m.restore(3)
  assert 'blocks.0' in restored.params
  assert_same(restored, state)
  assert m.all_steps() == [3]
  assert m.latest_step() == 3
  m.close()
  assert checkpoints.all_steps(str(tmp_path)) == [3]


def test_saving_a_step_again_is_no_error(tmp_path):
  m = manager(tmp_path)
  assert m.save(state_at(1))
  assert not m.save(state_at(1))
  m.close()


def test_unforced_saves_follow_period_and_steps(tmp_path):
  m = manager(tmp_path, period=10, checkpoint_steps=[13])
  saved = [s for s in (0, 5, 10, 13, 14) if m.save(state_at(s), force=False)]
  m.close()
  assert saved == [0, 10, 13]


def test_the_state_may_be_donated_while_it_is_saved(tmp_path):
  state = state_at(0)
  want = jax.tree.map(np.array, state.params)
  m = manager(tmp_path)
  m.save(state)
  add = jax.jit(
      lambda s: s.replace_params(jax.tree.map(lambda x: x + 1, s.params)),
      donate_argnums=0,
  )
  for _ in range(5):
    state = add(state)
  m.wait_until_finished()
  restored = m.restore(0)
  m.close()
  jax.tree.map(np.testing.assert_array_equal, restored.params, want)


def test_only_the_last_are_kept_and_pinned_ones(tmp_path):
  save(tmp_path, state_at(1), state_at(2), keep=2)
  checkpoint_utils.pin_checkpoint(str(tmp_path / 'checkpoint_1'))
  save(tmp_path, state_at(3), state_at(4), keep=2)
  assert checkpoints.all_steps(str(tmp_path)) == [1, 3, 4]
  checkpoint_utils.unpin_checkpoint(str(tmp_path / 'checkpoint_1'))
  save(tmp_path, state_at(5), keep=2)
  assert checkpoints.all_steps(str(tmp_path)) == [4, 5]


def test_multiples_of_the_forced_period_stay(tmp_path):
  save(tmp_path, *map(state_at, (2, 3, 4)), keep=1, force_keep_period=3)
  assert checkpoints.all_steps(str(tmp_path)) == [3, 4]


def test_the_best_by_a_tensorboard_scalar_stay(tmp_path):
  from clu import metric_writers

  writer = metric_writers.SummaryWriter(str(tmp_path / 'inference_eval/task'))
  for step, value in ((1, 0.9), (2, 0.1), (3, 0.5)):
    writer.write_scalars(step, {'eval/bleu': value})
  writer.close()
  name = 'inference_eval/task/eval/bleu'
  assert best_checkpoints.read_metrics(str(tmp_path), name, [2, 9]) == {
      2: pytest.approx(0.1)
  }
  save(
      tmp_path,
      *map(state_at, range(1, 5)),
      keep=1,
      metric_name_to_monitor=name,
      keep_checkpoints_without_metrics=False,
  )
  assert checkpoints.all_steps(str(tmp_path)) == [1, 4]


def test_unfinished_saves_do_not_count_and_are_cleaned_up(tmp_path):
  save(tmp_path, state_at(1))
  (tmp_path / 'checkpoint_2.orbax-checkpoint-tmp-77').mkdir()
  assert checkpoints.latest_step(str(tmp_path)) == 1
  reader = manager(tmp_path, read_only=True)
  reader.close()
  assert (tmp_path / 'checkpoint_2.orbax-checkpoint-tmp-77').exists()
  writer = manager(tmp_path)
  writer.save(state_at(3))
  writer.close()
  assert not (tmp_path / 'checkpoint_2.orbax-checkpoint-tmp-77').exists()


def test_parameters_are_cast_on_saving_and_restoring(tmp_path):
  save(tmp_path, state_at(1), save_dtype='bfloat16')
  stored = checkpoints.load_t5x_checkpoint(str(tmp_path))
  assert stored['target']['head']['kernel'].dtype == jnp.bfloat16
  mu = stored['state']['param_states']['0']['mu']
  assert mu['head']['kernel'].dtype == np.float32
  m = manager(tmp_path, restore_dtype='float16')
  assert m.restore(1).params['head']['kernel'].dtype == np.float16
  m.close()
  m = manager(tmp_path)
  assert m.restore(1).params['head']['kernel'].dtype == jnp.bfloat16
  m.close()


def test_missing_names_are_told_with_likely_ones(tmp_path):
  def rename(state, infos):
    assert infos['target']['head']['kernel'].shape == (8, 1)
    target = flax.core.unfreeze(state['target'])
    target['heads'] = target.pop('head')
    return {**state, 'target': target}, infos

  save(tmp_path, state_at(1), fns=[rename])
  m = manager(tmp_path)
  with pytest.raises(ValueError) as error:
    m.restore(1)
  m.close()
  assert 'target/head/kernel (checkpoint has target/heads/kernel)' in str(
      error.value
  )
  assert 'assignment_map' in str(error.value)


def test_other_shapes_name_the_parameter(tmp_path):
  save(tmp_path, state_at(1))
  m = manager(tmp_path, width=9)
  with pytest.raises(
      ValueError, match=r'blocks.0/kernel: checkpoint \(7, 8\), model \(7, 9\)'
  ):
    m.restore(1)
  m.close()


def test_another_model_is_refused_by_name(tmp_path):
  save(tmp_path, state_at(1))
  stored = stored_state.read_tree(str(tmp_path / 'checkpoint_1/state'))
  shape = make(optimizer=False).global_train_state_shape
  with pytest.raises(ValueError, match='Only in the checkpoint(.|\n)*/mu/'):
    state_matching.check_same_names(stored, shape.state_dict(), 'here')


def test_parts_are_mapped_and_the_rest_starts_fresh(tmp_path):
  saved = state_at(5, seed=1)
  save(tmp_path, saved)
  cfg = restore_cfg(
      tmp_path,
      assignment_map=[
          (r'target/head/kernel', None),
          (r'state/param_states/.*', None),
      ],
      fallback_to_scratch=True,
  )
  fresh = make().from_scratch(jax.random.PRNGKey(7))
  got = make().from_checkpoint_or_scratch([cfg], init_rng=jax.random.PRNGKey(7))
  assert int(got.step) == 5
  np.testing.assert_array_equal(
      got.params['blocks.0']['kernel'], saved.params['blocks.0']['kernel']
  )
  np.testing.assert_array_equal(
      got.params['head']['kernel'], fresh.params['head']['kernel']
  )


def test_one_stored_array_may_feed_two_parameters(tmp_path):
  save(tmp_path, state_at(5))
  cfg = restore_cfg(
      tmp_path,
      assignment_map=[
          (r'state/param_states/0/mu/(.*)', r'target/\1'),
          (r'target/(.*)', r'target/\1'),
      ],
  )
  got = make().from_checkpoint([cfg])
  mu = got.state_dict()['state']['param_states']['0']['mu']
  np.testing.assert_array_equal(
      mu['head']['kernel'], got.params['head']['kernel']
  )


def test_an_optimizer_that_was_not_saved_starts_fresh_if_not_strict(tmp_path):
  def drop(state, infos):
    return {
        'target': state['target'],
        'state': {'step': state['state']['step']},
    }, infos

  save(tmp_path, state_at(5), fns=[drop])
  with pytest.raises(ValueError, match='param_states'):
    make().from_checkpoint([restore_cfg(tmp_path)])
  cfg = restore_cfg(tmp_path, strict=False)
  got = make().from_checkpoint([cfg], init_rng=jax.random.PRNGKey(0))
  assert int(got.step) == 5
  assert not got.state_dict()['state']['param_states']['0']['mu']['head'][
      'kernel'
  ].any()


def test_inference_restores_parameters_alone(tmp_path):
  saved = state_at(5)
  save(tmp_path, saved)
  got = make(optimizer=False).from_checkpoint([restore_cfg(tmp_path)])
  assert int(got.step) == 5
  jax.tree.map(
      np.testing.assert_array_equal,
      flax.core.unfreeze(got.params),
      flax.core.unfreeze(saved.params),
  )


def test_modes_choose_the_checkpoints(tmp_path):
  save(tmp_path, state_at(1), state_at(4))
  find = restoring.get_first_valid_restore_config_and_paths
  empty = tmp_path / 'empty'
  empty.mkdir()
  cfgs = [
      restore_cfg(empty),
      restore_cfg(tmp_path, mode='all'),
  ]
  assert find(cfgs) == (
      cfgs[1],
      [str(tmp_path / 'checkpoint_1'), str(tmp_path / 'checkpoint_4')],
  )
  assert find([restore_cfg(tmp_path)])[1] == [str(tmp_path / 'checkpoint_4')]
  one = restore_cfg(tmp_path / 'checkpoint_1', mode='specific')
  assert find([one])[1] == [str(tmp_path / 'checkpoint_1')]
  assert find([checkpoint_config.RestoreCheckpointConfig([])]) == (None, ())
  with pytest.raises(ValueError, match='is no directory'):
    find([restore_cfg(tmp_path / 'nowhere')])
  with pytest.raises(ValueError, match="one checkpoint.*mode = 'specific'"):
    find([restore_cfg(tmp_path / 'checkpoint_4')])
  with pytest.raises(ValueError, match='found 2'):
    make().from_checkpoint([cfgs[1]])
  steps = [int(s.step) for s, _ in make().from_checkpoints([cfgs[1]])]
  assert steps == [1, 4]


def test_configs_refuse_bad_values():
  with pytest.raises(ValueError, match="'float16'"):
    checkpoint_config.SaveCheckpointConfig(dtype='float16')
  with pytest.raises(ValueError, match="'lastest'"):
    checkpoint_config.RestoreCheckpointConfig('x', mode='lastest')


def test_best_settings_may_hang_on_either_class(tmp_path):
  cfg = checkpoint_config.SaveCheckpointConfig(
      period=7,
      keep=2,
      checkpoint_manager_cls=functools.partial(
          checkpoints.OrbaxCheckpointManagerInterface, metric_mode='min'
      ),
  )
  m = checkpoint_managers.create_orbax_checkpoint_manager(
      save_cfg=cfg,
      train_state=make().global_train_state_shape,
      partitioner=partitioner(),
      model_dir=str(tmp_path),
  )
  assert m._manager._options.best_mode == 'min'
  assert m._manager._options.max_to_keep == 2
  assert m._manager._options.save_interval_steps == 7
  assert m._save_dtype == jnp.float32
  m.close()


def test_lazy_parameters_are_read_when_asked(tmp_path):
  saved = state_at(2)
  save(tmp_path, saved)
  lazy = checkpoints.load_t5x_checkpoint(str(tmp_path), lazy_parameters=True)
  leaf = lazy['target']['head']['kernel']
  assert leaf.shape == (8, 1)
  np.testing.assert_array_equal(
      leaf.astype(np.float64).get(), saved.params['head']['kernel']
  )


def test_checkpoint_types_and_names(tmp_path):
  save(tmp_path, state_at(12))
  path = str(tmp_path / 'checkpoint_12')
  assert checkpoints.find_checkpoint(str(tmp_path)) == path
  assert checkpoints.get_step_from_checkpoint_dir(path) == (str(tmp_path), 12)
  kinds = checkpoint_utils.CheckpointTypes
  assert checkpoint_utils.detect_checkpoint_type(path) is kinds.ORBAX
  with pytest.raises(FileNotFoundError):
    checkpoints.find_checkpoint(str(tmp_path), 99)
