import pathlib
import shutil

from flax import serialization
from flax import traverse_util
import jax
import jax.numpy as jnp
import legacy_layout
import numpy as np
import orbax.checkpoint as ocp
import pytest
from run_kwargs import partitioner
import tiny_task

from t5x import checkpoint_config
from t5x import checkpoint_importer
from t5x import checkpoint_utils
from t5x import checkpoints
from t5x import initializer
from t5x import optimizers
from t5x import tensorstore_array
from t5x.examples.t5 import network

TINY = (
    pathlib.Path(__file__).parents[1]
    / 'data/t5x_tiny/test_t5_tiny.checkpoint_0'
)
STATE = {
    'target': {
        'decoder': {'layers_0': {'kernel': np.arange(12.0).reshape(4, 3)}},
        'norm.1': {'scale': np.ones(2, np.float32)},
        'table': np.arange(8).reshape(4, 2).astype(jnp.bfloat16),
    },
    'state': {
        'step': np.asarray(70, np.int32),
        'param_states': {'table': {'v': np.zeros(5, np.float32)}},
    },
}


def assert_same(got, want):
  got, want = map(traverse_util.flatten_dict, (got, want))
  assert got.keys() == want.keys()
  for name, array in want.items():
    assert got[name].dtype == array.dtype, name
    np.testing.assert_array_equal(got[name], array)


def init(optimizer_def, width=8):
  model = tiny_task.TinyModel(optimizers.adamw(0.01), width)
  return initializer.TrainStateInitializer(
      optimizer_def,
      model.get_initial_variables,
      {'x': (8, 4), 'image': (8, 2, 2, 3)},
      partitioner(),
      {'x': jnp.float32, 'image': jnp.uint8},
  )


@pytest.mark.parametrize('driver', ['gfile', 'gcs', 'file'])
@pytest.mark.parametrize('path_at', ['kvstore', 'top'])
def test_both_places_of_the_path_and_all_drivers_are_read(
    tmp_path, driver, path_at
):
  path = legacy_layout.write(tmp_path / 'm', STATE, driver, path_at)
  # A checkpoint is copied to where it is used.
  shutil.move(path, tmp_path / 'checkpoint_70')
  for where in (
      tmp_path,
      tmp_path / 'checkpoint_70',
      tmp_path / 'checkpoint_70/checkpoint',
  ):
    assert_same(checkpoints.load_t5x_checkpoint(str(where)), STATE)


def test_lazy_parameters_read_parts_and_cast(tmp_path):
  legacy_layout.write(tmp_path, STATE)
  lazy = checkpoints.load_t5x_checkpoint(
      str(tmp_path), lazy_parameters=True, restore_dtype=np.float16
  )
  leaves = jax.tree.leaves(lazy)
  assert len(leaves) == 5
  assert all(isinstance(x, checkpoint_importer.LazyArray) for x in leaves)
  kernel = lazy['target']['decoder']['layers_0']['kernel']
  assert (kernel.shape, kernel.dtype, kernel.nbytes) == ((4, 3), np.float16, 24)
  part = kernel.read((slice(1, 3), slice(None)))
  assert part.dtype == np.float16
  np.testing.assert_array_equal(part, [[3, 4, 5], [6, 7, 8]])
  scale = lazy['target']['norm.1']['scale']
  np.testing.assert_array_equal(scale.read(slice(1, 2)), [1])
  assert lazy['state']['step'].get() == 70


def test_specs_below_a_bucket_read_from_the_bucket():
  spec = {
      'driver': 'zarr',
      'dtype': 'float32',
      'kvstore': {'driver': 'gfile', 'path': 'target.w'},
      'metadata': {'shape': [2], 'chunks': [2], 'compressor': None},
  }
  got = tensorstore_array.local_spec('w', spec, 'gs://models/t5/checkpoint_1')
  assert got == {
      'driver': 'zarr',
      'kvstore': {
          'driver': 'gcs',
          'bucket': 'models',
          'path': 't5/checkpoint_1/target.w',
      },
  }


def test_missing_and_misshapen_arrays_are_named(tmp_path):
  legacy_layout.write(tmp_path, STATE)
  directory = tmp_path / 'target.decoder.layers_0.kernel'
  legacy_layout.write_array(tmp_path, directory.name, np.zeros((4, 5)))
  with pytest.raises(
      ValueError, match=r'target/decoder/layers_0/kernel .*\(4, 3\).*\(4, 5\)'
  ):
    checkpoints.load_t5x_checkpoint(str(tmp_path))
  shutil.rmtree(directory)
  with pytest.raises(
      ValueError, match='target/decoder/layers_0/kernel (.|\n)*complete'
  ):
    checkpoints.load_t5x_checkpoint(str(tmp_path))


def test_old_versions_and_other_leaves_are_refused(tmp_path):
  legacy_layout.write(tmp_path, STATE, version=1)
  with pytest.raises(ValueError, match='version 1 .* from 2 on'):
    checkpoints.load_t5x_checkpoint(str(tmp_path))
  content = {'version': 3, 'optimizer': {'target': {'w': 'words'}}}
  (tmp_path / 'checkpoint').write_bytes(
      serialization.msgpack_serialize(content)
  )
  with pytest.raises(ValueError, match="target/w .*'words', not an array"):
    checkpoints.load_t5x_checkpoint(str(tmp_path))
  spec = {'driver': 'zarr', 'dtype': 'float32', 'kvstore': {}, 'metadata': {}}
  with pytest.raises(ValueError, match='parameter w has no path'):
    tensorstore_array.from_spec('w', spec, str(tmp_path))


def test_tensorflow_checkpoints_are_refused(tmp_path):
  (tmp_path / 'model.ckpt-7.index').touch()
  path = str(tmp_path / 'model.ckpt-7')
  kinds = checkpoint_utils.CheckpointTypes
  assert checkpoint_utils.detect_checkpoint_type(path) is kinds.T5X_TF
  with pytest.raises(ValueError, match='TensorFlow checkpoint'):
    checkpoints.load_t5x_checkpoint(path)


@pytest.mark.parametrize('use_ocdbt', [True, False])
@pytest.mark.parametrize('item', ['state', '.'])
def test_both_orbax_layouts_are_read(tmp_path, use_ocdbt, item):
  handler = ocp.PyTreeCheckpointHandler(use_ocdbt=use_ocdbt)
  directory = tmp_path / 'checkpoint_70'
  with ocp.Checkpointer(handler) as checkpointer:
    checkpointer.save(directory / item, args=ocp.args.PyTreeSave(STATE))
  assert (directory / item / 'target.table').exists() != use_ocdbt
  assert_same(checkpoints.load_t5x_checkpoint(str(tmp_path)), STATE)


def test_the_first_orbax_layout_is_read(tmp_path):
  item = tmp_path / 'checkpoint_70/state'
  item.mkdir(parents=True)
  content = traverse_util.flatten_dict(STATE)
  for path, array in content.items():
    if array.ndim:
      name = '.'.join(path)
      legacy_layout.write_array(item, name, array)
      content[path] = f'PLACEHOLDER://{name}'
  (item / 'checkpoint').write_bytes(
      serialization.msgpack_serialize(traverse_util.unflatten_dict(content))
  )
  assert_same(checkpoints.load_t5x_checkpoint(str(tmp_path)), STATE)
  shutil.rmtree(item / 'target.table')
  with pytest.raises(ValueError, match='target/table (.|\n)*complete'):
    checkpoints.load_t5x_checkpoint(str(tmp_path))


def test_a_run_starts_from_a_legacy_checkpoint(tmp_path):
  adamw = init(optimizers.adamw(0.01))
  saved = adamw.from_scratch(jax.random.PRNGKey(1))
  legacy_layout.write(tmp_path / 'checkpoint_0', saved.state_dict())
  cfg = checkpoint_config.RestoreCheckpointConfig(
      str(tmp_path / 'checkpoint_0'), mode='specific', dtype='bfloat16'
  )
  restored = adamw.from_checkpoint([cfg], init_rng=jax.random.PRNGKey(2))
  got = traverse_util.flatten_dict(restored.state_dict())
  for path, want in traverse_util.flatten_dict(saved.state_dict()).items():
    if path[0] == 'target':
      want = want.astype(jnp.bfloat16)
    assert got[path].dtype == want.dtype
    np.testing.assert_array_equal(got[path], want)


def test_a_legacy_checkpoint_of_another_width_names_the_parameter(tmp_path):
  wide = init(None, width=9).from_scratch(jax.random.PRNGKey(1))
  legacy_layout.write(tmp_path / 'checkpoint_0', wide.state_dict())
  cfg = checkpoint_config.RestoreCheckpointConfig(str(tmp_path))
  with pytest.raises(
      ValueError, match=r'blocks.0/kernel: checkpoint \(7, 9\), model \(7, 8\)'
  ):
    init(None).from_checkpoint([cfg], init_rng=jax.random.PRNGKey(2))


def test_the_checkpoint_of_t5x_itself_fits_the_t5_network():
  config = network.T5Config(
      vocab_size=32128,
      emb_dim=8,
      num_heads=4,
      head_dim=3,
      mlp_dim=16,
      num_encoder_layers=2,
      num_decoder_layers=2,
      mlp_activations=('gelu', 'linear'),
      logits_via_embedding=False,
  )
  model = network.Transformer(config)
  stored = checkpoints.load_t5x_checkpoint(str(TINY))
  assert int(stored['state']['step']) == 0
  states = traverse_util.flatten_dict(stored['state']['param_states'])
  assert {path[-1] for path in states} == {'m', 'v', 'v_row', 'v_col'}
  tokens = jnp.asarray([[7, 9, 1, 0]])
  shapes = jax.eval_shape(
      lambda: model.init(
          jax.random.PRNGKey(0), tokens, tokens, tokens, enable_dropout=False
      )
  )['params']
  got, want = (
      jax.tree.map(lambda x: x.shape, dict(tree))
      for tree in (stored['target'], shapes)
  )
  assert got == want
  logits = model.apply(
      {'params': stored['target']}, tokens, tokens, tokens, enable_dropout=False
  )
  assert logits.shape == (1, 4, 32128)
  assert np.isfinite(logits).all() and np.std(logits) > 0
