"""One of two processes that save a state together; prints JSON.

Run by `test_two_processes.py`: `two_processes.py ADDRESS INDEX DIRECTORY`.
"""

import json
import pathlib
import shutil
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import jax
from jax.experimental import multihost_utils
import numpy as np
import tiny_regression

from t5x import checkpoint_reader
from t5x import checkpoints
from t5x import legacy_writer
from t5x import local_tier
from t5x import multihost
from t5x import partitioning
from t5x import step_guard
from t5x import stored_state


class Data:
  """Stands where it was last told to."""

  position = 0

  def save(self, filename):
    filename.write_text(str(self.position))

  def restore(self, filename):
    self.position = int(filename.read_text())


def make_partitioner():
  """Parameters over both axes of all devices."""
  return partitioning.PjitPartitioner(
      num_partitions=1,
      logical_axis_rules=partitioning.standard_logical_axis_rules(
          parameter_partitioning_dims=2
      ),
  )


def make_state(partitioner):
  """A state of step 1 over all devices of a mesh."""
  model = tiny_regression.Regression(tiny_regression.optimizer())
  state = tiny_regression.state(model)
  axes = partitioner.get_mesh_axes(state)
  state = partitioner.move_params_to_devices(state, axes)
  state = partitioner.partition(
      lambda s: jax.tree.map(lambda x: x + 1, s), (axes,), axes
  )(state)
  return state


def same(a, b):
  """Tells whether this process's parts of two states are equal."""
  a, b = (stored_state.flatten(x.state_dict()) for x in (a, b))
  return all(
      np.array_equal(x.data, y.data)
      for name in a
      for x, y in zip(a[name].addressable_shards, b[name].addressable_shards)
  )


def error(call):
  try:
    call()
  except (OSError, RuntimeError, ValueError) as caught:
    return f'{type(caught).__name__}: {caught}'
  return None


def remembered(state, partitioner, directory):
  """Tells of every kind of save whether both read the guard's memory there."""
  shape = jax.eval_shape(lambda: state.replace(guard_memory=None))
  step = int(state.step)
  managers = {
      'orbax': checkpoints.OrbaxCheckpointManagerInterface(
          f'{directory}/guarded_orbax', shape, partitioner
      ),
      'legacy': checkpoints.Checkpointer(
          shape, partitioner, f'{directory}/guarded_legacy'
      ),
  }
  found = {}
  for name, manager in managers.items():
    manager.save(state)
    if name == 'orbax':
      manager.close()
    found[name] = step_guard.GuardMemory.from_stored(
        checkpoint_reader.read_tree(
            f'{directory}/guarded_{name}/checkpoint_{step}'
        )
    )
  tier = local_tier.LocalTier(
      f'{directory}/guarded_disk', f'{directory}/run', shape, partitioner
  )
  tier.save(state)
  tier.wait_until_finished()
  multihost.sync_global_devices('guarded')
  found['local'] = tier.restore_newest(1).guard_memory
  tier.close()
  want = jax.tree.map(multihost.get_local_data, state.guard_memory)
  return {
      name: jax.tree.all(jax.tree.map(np.array_equal, memory, want))
      for name, memory in found.items()
  }


def guarded(index, partitioner, directory):
  """Trains past a batch that is bad on process 1 only, then ends at one."""
  trainer = tiny_regression.trainer(
      tiny_regression.Regression(tiny_regression.optimizer()),
      partitioner=partitioner,
      guard=step_guard.StepGuard(max_in_a_row=1, id_features=('y',)),
  )
  host = list(tiny_regression.batches(4, batch_size=4))
  if index == 1:
    for batch in host[1:3]:
      batch['x'] = batch['x'] * np.nan
  rows = [
      {
          name: partitioning.host_local_array_to_global_array(
              x, partitioner.mesh, partitioner.data_partition_spec
          )
          for name, x in batch.items()
      }
      for batch in host
  ]
  message = error(lambda: trainer.train(iter(rows), 4))
  params = multihost_utils.process_allgather(
      trainer.train_state.params, tiled=True
  )
  trainer.close()
  return {
      'error': message,
      'ids': host[2]['y'].tolist(),
      'step': int(trainer.train_state.step),
      'params': jax.tree.map(lambda x: x.tolist(), params),
      'remembered': remembered(trainer.train_state, partitioner, directory),
  }


def main(address, index, directory):
  jax.distributed.initialize(address, 2, index)
  partitioner = make_partitioner()
  state = make_state(partitioner)
  shape = jax.eval_shape(lambda: state)
  report = {'devices': jax.device_count()}
  report['whole'] = {
      '/'.join(path): multihost_utils.process_allgather(leaf, tiled=True)
      .astype(float)
      .tolist()
      for path, leaf in stored_state.flatten(state.state_dict()).items()
  }

  # The legacy layout: both write, process 0 completes.
  data = Data()
  data.position = 10 + index
  legacy = checkpoints.Checkpointer(
      shape, partitioner, f'{directory}/run', data
  )
  legacy.save(state.replace_step(state.step * 0))
  legacy.save(state)
  data.position = 0
  report['legacy'] = same(legacy.restore(1), state)
  report['legacy data'] = data.position

  # Orbax: theirs, and what one process wrote.
  def orbax(name, **kwargs):
    return checkpoints.OrbaxCheckpointManagerInterface(
        f'{directory}/{name}', shape, partitioner, **kwargs
    )

  manager = orbax('orbax')
  manager.save(state)
  manager.close()
  for layout in ('orbax', 'legacy'):
    reader = orbax(f'one/{layout}', read_only=True)
    report[f'one {layout}'] = same(reader.restore(1), state)
    reader.close()

  # A disk that is full on one of them.
  write_arrays = legacy_writer.write_arrays

  def full(*args):
    if index == 1:
      raise OSError('No space left on device')
    return write_arrays(*args)

  legacy_writer.write_arrays = full
  later = state.replace_step(state.step + 1)
  report['error'] = error(lambda: legacy.save(later))
  report['steps'] = legacy.all_steps()
  legacy_writer.write_arrays = write_arrays

  # Local disks, here one directory with a part a process.
  def tier():
    return local_tier.LocalTier(
        f'{directory}/disk', f'{directory}/run', shape, partitioner, data
    )

  first = tier()
  data.position = 20 + index
  first.save(later)
  first.close()
  data.position = 0
  multihost.sync_global_devices('saved')
  report['local'] = same(tier().restore_newest(1), later)
  report['local data'] = data.position
  data.position = 0
  # The disk of process 1 is lost.
  if index == 1:
    shutil.rmtree(first.directory)
  multihost.sync_global_devices('lost')
  report['lost'] = tier().restore_newest(1) is None
  report['lost data'] = data.position
  report['left'] = tier().all_steps()
  report['guarded'] = guarded(index, partitioner, directory)
  multihost.sync_global_devices('end')
  print(json.dumps(report))


if __name__ == '__main__':
  main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
