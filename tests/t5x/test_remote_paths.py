"""`gs://` paths stay as they are, and files go through epath.

The bucket is fsspec's memory; its zarr arrays, which TensorStore would write
over the network, lie on the local disk.
"""

import os

from etils import epath
from etils.epath import gpath
import fsspec
from fsspec.implementations import memory
import numpy as np
from orbax.checkpoint._src.path import gcs_utils
import pytest
from run_kwargs import partitioner
from test_checkpoints import make
from test_checkpoints import restore_cfg
from test_checkpoints import state_at

from t5x import checkpoint_dirs
from t5x import checkpoint_utils
from t5x import checkpoints
from t5x import restore_report
from t5x import restoring
from t5x import stored_state
from t5x import tensorstore_array

RUN = 'gs://bucket/team/run'


class Bucket(memory.MemoryFileSystem):
  """Memory under the scheme `gs`."""

  protocol = ('gs', 'gcs')
  store = {}
  pseudo_dirs = ['']
  cachable = False

  def __init__(self, **kwargs):
    del kwargs
    super().__init__()

  @classmethod
  def _strip_protocol(cls, path):
    path = os.fspath(path).split('://')[-1].strip('/')
    return f'/{path}' if path else ''


@pytest.fixture
def bucket(monkeypatch, tmp_path):
  """An empty bucket; returns the local directory of its arrays."""
  fsspec.register_implementation('gcs', Bucket, clobber=True)
  # With TensorFlow, epath would ask Google.
  monkeypatch.setattr(gpath, '_is_tf_installed', lambda: False)
  # Nor need Orbax, for the kind of bucket.
  monkeypatch.setattr(
      gcs_utils, 'is_hierarchical_namespace_enabled', lambda path: False
  )
  monkeypatch.setattr(Bucket, 'store', {})
  monkeypatch.setattr(Bucket, 'pseudo_dirs', [''])
  real = tensorstore_array._kvstore

  def on_disk(kvstore, path, directory):
    store = real(kvstore, path, directory)
    if store['driver'] == 'file':
      return store
    assert (store['driver'], store['bucket']) == ('gcs', 'bucket')
    return {'driver': 'file', 'path': str(tmp_path / store['path'])}

  monkeypatch.setattr(tensorstore_array, '_kvstore', on_disk)
  return tmp_path


def complete(step, mark='commit_success.txt'):
  directory = epath.Path(f'{RUN}/checkpoint_{step}')
  directory.mkdir(parents=True)
  if mark:
    (directory / mark).write_text('done')


@pytest.mark.parametrize('path', [RUN, f'{RUN}/', 's3://bucket/run'])
def test_paths_are_never_made_local(path):
  assert checkpoint_dirs.absolute(path) == path
  assert checkpoint_dirs.absolute(epath.Path(path)) == path.rstrip('/')
  directory = checkpoint_dirs.get_checkpoint_dir(path, 7)
  assert directory == f'{path.rstrip("/")}/checkpoint_7'
  assert checkpoint_dirs.get_step_from_checkpoint_dir(directory + '/') == (
      path.rstrip('/'),
      7,
  )
  assert checkpoint_utils.pinned_checkpoint_filepath(directory) == (
      f'{directory}/PINNED'
  )


def test_only_whole_checkpoints_of_a_bucket_count(bucket):
  del bucket
  assert checkpoints.all_steps(RUN) == []
  complete(1)
  complete(2, mark='checkpoint')  # the legacy layout's file, written last
  complete(3, mark=None)
  assert checkpoints.all_steps(RUN) == [1, 2]
  assert checkpoints.latest_step(RUN) == 2
  paths = restoring.get_first_valid_restore_config_and_paths(
      [restore_cfg(RUN, mode='all')]
  )[1]
  assert paths == [f'{RUN}/checkpoint_1', f'{RUN}/checkpoint_2']


def test_pins_and_removal_work_in_a_bucket(bucket):
  del bucket
  complete(1)
  path = f'{RUN}/checkpoint_1'
  checkpoint_utils.pin_checkpoint(path, 'the best')
  checkpoint_utils.remove_checkpoint_dir(path)
  assert checkpoints.all_steps(RUN) == [1]
  checkpoint_utils.unpin_checkpoint(path)
  checkpoint_utils.remove_checkpoint_dir(path)
  assert checkpoints.all_steps(RUN) == []


def test_a_legacy_checkpoint_is_saved_pruned_and_restored_in_a_bucket(bucket):
  shape = make().global_train_state_shape
  c = checkpoints.Checkpointer(shape, partitioner(), RUN, keep=2)
  for step in (1, 2, 3):
    assert c.save(state_at(step))
  assert c.all_steps() == [2, 3]
  # In place, as nothing can be renamed there.
  assert not list(epath.Path(RUN).glob('*tmp*'))
  arrays = bucket / 'team/run/checkpoint_3'
  assert (arrays / 'target.head.kernel/.zarray').exists()
  state = c.restore()
  want = stored_state.flatten(state_at(3).state_dict())
  for name, leaf in stored_state.flatten(state.state_dict()).items():
    np.testing.assert_array_equal(leaf, want[name])
  # And by a run that starts from there.
  initializer = make()
  state = initializer.from_checkpoint([restore_cfg(RUN)])
  assert int(state.step) == 3
  restore_report.write(initializer.restore_report, RUN)
  text = epath.Path(f'{RUN}/restored.txt').read_text()
  assert text.startswith(f'{RUN}/checkpoint_3: ')


def test_a_half_written_legacy_checkpoint_is_written_anew(bucket):
  del bucket
  c = checkpoints.Checkpointer(
      make().global_train_state_shape, partitioner(), RUN
  )
  complete(4, mark='target.w')
  assert c.all_steps() == []
  assert c.save(state_at(4))
  assert c.all_steps() == [4]
  assert not (epath.Path(RUN) / 'checkpoint_4/target.w').exists()


def test_a_local_legacy_checkpoint_may_be_copied_to_a_bucket(bucket, tmp_path):
  shape = make().global_train_state_shape
  local = tmp_path / 'local'
  checkpoints.Checkpointer(shape, partitioner(), str(local)).save(state_at(1))
  (bucket / 'team/run').mkdir(parents=True)
  (local / 'checkpoint_1').rename(bucket / 'team/run/checkpoint_1')
  file = epath.Path(f'{RUN}/checkpoint_1/checkpoint')
  file.parent.mkdir(parents=True)
  file.write_bytes((bucket / 'team/run/checkpoint_1/checkpoint').read_bytes())
  stored = checkpoints.load_t5x_checkpoint(RUN)
  np.testing.assert_array_equal(
      stored['target']['head']['kernel'],
      state_at(1).params['head']['kernel'],
  )


def test_the_orbax_manager_looks_into_the_bucket(bucket):
  del bucket
  complete(5)
  m = checkpoints.OrbaxCheckpointManagerInterface(
      RUN,
      make().global_train_state_shape,
      partitioner(),
      read_only=True,
  )
  assert m.all_steps() == [5]
  assert os.fspath(m._manager.directory) == RUN
  m.close()


def test_unknown_schemes_are_told():
  spec = {
      'driver': 'zarr',
      'dtype': 'float32',
      'kvstore': {'driver': 'file', 'path': 'target.w'},
      'metadata': {'shape': [2]},
  }
  with pytest.raises(ValueError, match='az://b/m.*knows gs://, s3://'):
    tensorstore_array.local_spec('w', spec, 'az://b/m')
  opened = tensorstore_array.local_spec('w', spec, 's3://b/m')
  assert opened['kvstore'] == {
      'driver': 's3',
      'bucket': 'b',
      'path': 'm/target.w',
  }
