"""Saving in T5X's legacy layout, held against `legacy_layout`'s description."""

import functools
import os

from flax import serialization
from flax import traverse_util
import jax
import jax.numpy as jnp
import legacy_layout
import numpy as np
import pytest
from run_kwargs import partitioner
import tensorstore as ts
import tiny_task

from t5x import adafactor
from t5x import checkpoint_config
from t5x import checkpoint_utils
from t5x import checkpoints
from t5x import initializer
from t5x import legacy_writer
from t5x import optimizers
from t5x import stored_state
from t5x import tensorstore_array
from t5x import utils


@functools.cache
def make(optimizer='adamw'):
  optimizer_def = {
      'adamw': lambda: optimizers.adamw(0.01),
      'adafactor': lambda: adafactor.Adafactor(decay_rate=0.8),
  }[optimizer]()
  model = tiny_task.TinyModel(optimizer_def)
  return initializer.TrainStateInitializer(
      optimizer_def,
      model.get_initial_variables,
      {'x': (8, 4), 'image': (8, 2, 2, 3)},
      partitioner(),
      {'x': jnp.float32, 'image': jnp.uint8},
  )


@functools.cache
def _fresh(optimizer):
  return make(optimizer).from_scratch(jax.random.PRNGKey(0))


def state_at(step, optimizer='adamw'):
  return _fresh(optimizer).replace_step(jnp.asarray(step, jnp.int32))


def checkpointer(directory, cls=checkpoints.Checkpointer, **kwargs):
  shape = make(kwargs.pop('optimizer', 'adamw')).global_train_state_shape
  return cls(shape, partitioner(), str(directory), **kwargs)


def flat(state):
  return stored_state.flatten(state.state_dict())


def read_file(directory):
  content = serialization.msgpack_restore(
      (directory / 'checkpoint').read_bytes()
  )
  assert content.keys() == {'version', 'optimizer'}
  assert content['version'] == 3
  return traverse_util.flatten_dict(
      content['optimizer'],
      is_leaf=lambda _, x: isinstance(x, dict) and 'driver' in x,
  )


def test_the_files_are_those_of_the_described_layout(tmp_path):
  state = state_at(3, 'adafactor')
  assert checkpointer(tmp_path / 'a', optimizer='adafactor').save(state)
  got = read_file(tmp_path / 'a/checkpoint_3')
  want = read_file(
      legacy_layout.write(tmp_path / 'b', state.state_dict(), driver='file')
  )
  assert got.keys() == want.keys()
  specs = 0
  for path, leaf in want.items():
    name = '.'.join(path)
    if not isinstance(leaf, dict):  # the step, and slots that are not used
      assert got[path].dtype == leaf.dtype
      np.testing.assert_array_equal(got[path], leaf)
      assert not (tmp_path / 'a/checkpoint_3' / name).exists()
      continue
    specs += 1
    # Chunks are the writer's to choose, and level and kind of compression.
    for spec in (leaf, got[path]):
      assert len(spec['metadata'].pop('chunks')) == len(
          spec['metadata']['shape']
      )
      assert spec['metadata'].pop('compressor')['id'] == 'gzip'
    assert got[path] == leaf
    assert leaf['kvstore'] == {'driver': 'file', 'path': name}
    array = {
        'driver': 'zarr',
        'kvstore': {
            'driver': 'file',
            'path': str(tmp_path / 'a/checkpoint_3' / name),
        },
    }
    np.testing.assert_array_equal(
        ts.open(array, read=True).result().read().result(), flat(state)[path]
    )
  assert specs == 4  # two kernels and their second moments
  names = {name for name in os.listdir(tmp_path / 'a/checkpoint_3')}
  assert names == {'checkpoint'} | {
      '.'.join(path) for path, leaf in want.items() if isinstance(leaf, dict)
  }


@pytest.mark.parametrize('dtype', [None, 'float32', 'bfloat16'])
def test_what_is_saved_comes_back(tmp_path, dtype):
  state = state_at(3)
  c = checkpointer(tmp_path, save_dtype=dtype)
  assert c.save(state)
  assert not c.save(state)
  restored = flat(c.restore())
  for path, leaf in flat(state).items():
    # Moments keep theirs: only parameters are cast.
    if path[0] == 'target' and dtype:
      leaf = leaf.astype(dtype)
    assert restored[path].dtype == leaf.dtype
    assert restored[path].sharding.mesh == partitioner().mesh
    np.testing.assert_array_equal(restored[path], leaf)
  # The reader that needs no model agrees.
  stored = stored_state.flatten(checkpoints.load_t5x_checkpoint(str(tmp_path)))
  for path, leaf in restored.items():
    assert stored[path].dtype == leaf.dtype
    np.testing.assert_array_equal(stored[path], leaf)


def test_restoring_casts_maps_and_stays_lazy(tmp_path):
  state = state_at(3)
  checkpointer(tmp_path).save(state)
  c = checkpointer(tmp_path, restore_dtype='bfloat16')
  kernel = c.restore(3).params['head']['kernel']
  assert kernel.dtype == jnp.bfloat16
  lazy = c.restore(path=str(tmp_path / 'checkpoint_3'), lazy_parameters=True)
  np.testing.assert_array_equal(
      lazy.params['head']['kernel'].get(), state.params['head']['kernel']
  )

  def zero(stored, target):
    del target
    stored['target']['head']['kernel'] = np.zeros((8, 1), np.float32)
    return stored

  assert (
      not c.restore(state_transformation_fns=[zero])
      .params['head']['kernel']
      .any()
  )
  assert [row.name for row in c.restore_report.computed] == [
      'target/head/kernel'
  ]
  with pytest.raises(ValueError, match='not both'):
    c.restore(3, str(tmp_path / 'checkpoint_3'))
  with pytest.raises(FileNotFoundError, match='No checkpoint'):
    checkpointer(tmp_path / 'empty').restore()


def test_saving_functions_rename_what_is_written(tmp_path):
  def rename(state, infos):
    assert infos['target']['head']['kernel'].mesh_axes is not None
    for tree in (state, infos):
      tree['target'] = {'heads': tree['target']['head']}
    return state, infos

  checkpointer(tmp_path).save(state_at(3), [rename])
  assert (tmp_path / 'checkpoint_3/target.heads.kernel').is_dir()


def test_old_ones_go_pinned_ones_stay_and_nothing_unfinished_counts(tmp_path):
  c = checkpointer(tmp_path, keep=2)
  c.save(state_at(1))
  checkpoint_utils.pin_checkpoint(str(tmp_path / 'checkpoint_1'))
  # A run that was killed while it saved step 9.
  (tmp_path / 'checkpoint_9.tmp/target.w').mkdir(parents=True)
  assert c.latest_step() == 1
  for step in (2, 3, 4):
    c.save(state_at(step))
  assert c.all_steps() == [1, 3, 4]
  c.remove_unfinished()
  assert not (tmp_path / 'checkpoint_9.tmp').exists()


def test_a_save_that_fails_leaves_nothing_that_counts(tmp_path, monkeypatch):
  c = checkpointer(tmp_path)
  c.save(state_at(1))

  def full(*args):
    raise OSError('No space left on device')

  with monkeypatch.context() as patched:
    patched.setattr(legacy_writer, 'write_file', full)
    with pytest.raises(OSError, match='No space'):
      c.save(state_at(2))
  assert c.all_steps() == [1]
  assert c.save(state_at(2))
  assert c.all_steps() == [1, 2]


def write_scalars(directory, tag, values):
  from clu import metric_writers

  writer = metric_writers.SummaryWriter(str(directory))
  for step, value in values.items():
    writer.write_scalars(step, {tag: value})
  writer.close()


def test_the_best_stay_whatever_form_the_settings_have(tmp_path):
  write_scalars(tmp_path / 'train', 'loss', {1: 0.1, 2: 0.9, 3: 0.5})
  best = functools.partial(
      checkpoints.SaveBestCheckpointer,
      metric_name_to_monitor='train/loss',
      metric_mode='min',
      keep_checkpoints_without_metrics=False,
  )
  cfg = checkpoint_config.SaveCheckpointConfig(
      period=1, keep=1, checkpointer_cls=best
  )
  m = utils.LegacyCheckpointManager(
      save_cfg=cfg,
      train_state_shape=make().global_train_state_shape,
      partitioner=partitioner(),
      model_dir=str(tmp_path),
  )
  for step in (1, 2, 3, 4):
    assert m.save(state_at(step))
  assert m.all_steps() == [1, 4]
  with pytest.raises(ValueError, match="'max' or 'min'"):
    checkpointer(tmp_path, checkpoints.SaveBestCheckpointer, metric_mode='most')


def test_the_manager_follows_its_configs(tmp_path):
  save_cfg = checkpoint_config.SaveCheckpointConfig(
      dtype='bfloat16', period=2, checkpoint_steps=[3], keep=2
  )
  restore_cfg = checkpoint_config.RestoreCheckpointConfig(
      str(tmp_path), dtype='float32'
  )
  (tmp_path / 'checkpoint_9.tmp').mkdir()
  init = make()
  none, m = utils.create_checkpoint_manager_and_restore(
      init,
      partitioner(),
      restore_cfg,
      None,
      None,
      save_cfg,
      str(tmp_path),
      use_orbax=False,
  )
  assert none is None
  assert isinstance(m, utils.LegacyCheckpointManager)
  assert not (tmp_path / 'checkpoint_9.tmp').exists()
  saved = [s for s in range(1, 5) if m.save(state_at(s), force=False)]
  assert saved == [2, 3, 4]
  assert m.all_steps() == [3, 4]
  assert m.latest_step() == 4
  m.wait_until_finished()
  path = str(tmp_path / 'checkpoint_3')
  states = utils.restore(m, [path, path], restore_cfg)
  assert [int(state.step) for state in states] == [3, 3]
  assert states[0].params['head']['kernel'].dtype == jnp.float32
  reader = utils.LegacyCheckpointManager(
      restore_cfg=restore_cfg,
      train_state_shape=init.global_train_state_shape,
      partitioner=partitioner(),
      model_dir=str(tmp_path),
  )
  assert int(reader.restore([path], restore_cfg)[0].step) == 3
  with pytest.raises(ValueError, match='only restores'):
    reader.save(state_at(5))
  m.close()


def test_chunks_divide_the_part_of_a_device():
  assert legacy_writer.get_chunk_shape((6, 4), 4, 48) == [3, 4]
  assert legacy_writer.get_chunk_shape((6, 4), 4, 96) == [6, 4]
  assert legacy_writer.get_chunk_shape((7, 2), 4, 8) == [1, 2]
  assert legacy_writer.get_chunk_shape((2, 2), 8, 1) == [1, 1]


def test_buckets_get_specs_that_any_reader_can_place():
  leaf = np.zeros((4, 2), np.float32)
  spec = legacy_writer._stored_spec('target.w', leaf, 'gs://b/m/checkpoint_1')
  assert spec['kvstore'] == {
      'driver': 'gcs',
      'bucket': 't5x-dummy-bucket',
      'path': 'target.w',
  }
  opened = tensorstore_array.local_spec('w', spec, 'gs://b/m/checkpoint_1')
  assert opened['kvstore']['bucket'] == 'b'
  assert opened['kvstore']['path'] == 'm/checkpoint_1/target.w'
  opened = tensorstore_array.local_spec('w', spec, '/copied')
  assert opened['kvstore'] == {'driver': 'file', 'path': '/copied/target.w'}
