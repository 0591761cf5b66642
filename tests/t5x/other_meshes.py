"""Saves on a mesh of 4 x 2 CPU devices, restores on others; prints JSON.

Run by `test_restore_elsewhere.py` in a process of its own: the number of
devices is fixed when JAX starts.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import eight_devices
import jax
import jax.numpy as jnp
import numpy as np
import tiny_regression

from t5x import checkpoints
from t5x import local_tier
from t5x import partitioning
from t5x import stored_state


def on(submesh):
  return partitioning.PjitPartitioner(
      model_parallel_submesh=submesh,
      logical_axis_rules=partitioning.standard_logical_axis_rules(
          parameter_partitioning_dims=2
      ),
  )


MESHES = {
    '4x2': on((1, 1, 1, 2)),
    '2x4': on((1, 1, 1, 4)),
    '1x1': eight_devices.OneDevice(num_partitions=1),
}


# One for all meshes: its optimizer is part of the state's structure.
MODEL = tiny_regression.Regression(tiny_regression.optimizer())


def trainer(partitioner, **kwargs):
  return tiny_regression.trainer(MODEL, partitioner=partitioner, **kwargs)


def next_loss(trained, state):
  """The loss of the step after the saved one."""
  trained.train_state = state
  batch = list(tiny_regression.batches(2))[1:]
  return float(trained.train(iter(batch), 1).result()['loss'].value)


def differing(state, want, mesh):
  """Names whose numbers or whose placing are not as they should be."""
  wrong = []
  for path, leaf in stored_state.flatten(state.state_dict()).items():
    same = np.array_equal(leaf, want[path]) and leaf.dtype == want[path].dtype
    if not same or leaf.sharding.mesh != mesh:
      wrong.append('/'.join(path))
  return wrong


def main(directory):
  assert jax.device_count() == 8
  saved_by = trainer(MESHES['4x2'])
  saved_by.train(tiny_regression.batches(1), 1).result()
  state = saved_by.train_state
  want = {
      path: np.asarray(leaf)
      for path, leaf in stored_state.flatten(state.state_dict()).items()
  }
  report = {
      'parts': {
          '/'.join(path): len({str(s.index) for s in leaf.addressable_shards})
          for path, leaf in stored_state.flatten(state.state_dict()).items()
      },
      'differing': {},
      'losses': {},
      'dtypes': {},
  }
  shape = jax.eval_shape(lambda: state)

  def orbax(name, **kwargs):
    return checkpoints.OrbaxCheckpointManagerInterface(
        f'{directory}/orbax', shape, MESHES[name], **kwargs
    )

  def legacy(name, **kwargs):
    return checkpoints.Checkpointer(
        shape, MESHES[name], f'{directory}/legacy', **kwargs
    )

  def local(name):
    return local_tier.LocalTier(
        f'{directory}/disk', f'{directory}/run', shape, MESHES[name]
    )

  manager = orbax('4x2')
  manager.save(state)
  manager.close()
  legacy('4x2').save(state)
  # The local save comes after the durable one of step 0.
  pathlib.Path(directory, 'run/checkpoint_0').mkdir(parents=True)
  tier = local('4x2')
  tier.save(state)
  tier.close()
  for name, partitioner in MESHES.items():
    reader = orbax(name, read_only=True)
    restored = {
        'orbax': reader.restore(1),
        'legacy': legacy(name).restore(1),
        'local': local(name).restore_newest(0),
    }
    reader.close()
    for layout, got in restored.items():
      key = f'{layout} {name}'
      report['differing'][key] = differing(got, want, partitioner.mesh)
      report['losses'][key] = next_loss(
          trainer(partitioner, num_microbatches=2 if name == '2x4' else None),
          got,
      )
    half = legacy(name, restore_dtype=jnp.bfloat16).restore(1)
    report['dtypes'][name] = sorted(
        {str(leaf.dtype) for leaf in jax.tree.leaves(half.params)}
    )
  print(json.dumps(report))


if __name__ == '__main__':
  main(sys.argv[1])
