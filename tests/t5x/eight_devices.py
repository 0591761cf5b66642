"""Trains a tiny model on meshes of eight CPU devices; prints JSON.

Run by `test_partitioning.py` in a process of its own: the number of devices is
fixed when JAX starts.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from flax.linen import partitioning as flax_partitioning
import jax
import numpy as np
import tiny_regression

from t5x import optimizers
from t5x import partitioning
from t5x import train_state as train_state_lib

STEPS = 3


class OneDevice(partitioning.PjitPartitioner):
  """A mesh of the first device alone."""

  mesh = jax.sharding.Mesh(
      np.array(jax.devices()[:1]).reshape(1, 1), ('data', 'model')
  )


def losses(partitioner):
  """Trains; returns the losses and the trainer."""
  model = tiny_regression.Regression(tiny_regression.optimizer())
  trainer = tiny_regression.trainer(model, partitioner=partitioner)
  batches = tiny_regression.batches(STEPS)
  values = [
      float(trainer.train(batches, 1).result()['loss'].value)
      for _ in range(STEPS)
  ]
  assert model.num_traces == 1
  trainer.close()
  return values, trainer


def error(call) -> str:
  """Returns the text of the ValueError that a call raises."""
  try:
    call()
  except ValueError as caught:
    return str(caught)
  raise AssertionError('no error')


def main() -> None:
  """Prints losses, mesh shapes, shard shapes and error texts."""
  assert jax.device_count() == 8
  partitioner = partitioning.PjitPartitioner
  both = {'model_parallel_submesh': (1, 1, 1, 2)}
  runs = {
      'default': partitioner(num_partitions=1),
      'data': partitioner(model_parallel_submesh=(1, 1, 1, 1)),
      'both': partitioner(**both),
      'both, embed over data': partitioner(
          **both,
          logical_axis_rules=partitioning.standard_logical_axis_rules(
              parameter_partitioning_dims=2
          ),
      ),
      'replicas': partitioner(
          num_partitions=2, ici_mesh_shape=(2, 2, 2), dcn_mesh_shape=(1, 1, 1)
      ),
  }
  report = {'losses': {}, 'meshes': {}, 'kernel_shards': {}}
  report['losses']['one device'], _ = losses(OneDevice(num_partitions=1))
  for name, placed in runs.items():
    report['losses'][name], trainer = losses(placed)
    report['meshes'][name] = dict(placed.mesh.shape)
    kernel = trainer.train_state.params[tiny_regression.FROZEN]['kernel']
    report['kernel_shards'][name] = kernel.addressable_shards[0].data.shape

  uneven = train_state_lib.FlaxOptimTrainState.create(
      optimizers.adam(0.1),
      {
          'params': {'layer': {'kernel': np.zeros((4, 5), np.float32)}},
          'params_axes': {
              'layer': {
                  'kernel_axes': flax_partitioning.AxisMetadata(
                      names=('embed', 'mlp')
                  )
              }
          },
      },
  )
  placed = partitioner(**both)
  halves = tiny_regression.trainer(
      tiny_regression.Regression(tiny_regression.optimizer()),
      partitioner=runs['data'],
      num_microbatches=2,
  )
  report['errors'] = [
      error(lambda: placed.get_data_layout(9)),
      error(lambda: placed.get_mesh_axes(uneven)),
      error(lambda: halves.train(tiny_regression.batches(1), 1)),
  ]
  print(json.dumps(report))


if __name__ == '__main__':
  main()
