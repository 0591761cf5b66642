"""The tiny task with numbered examples, and a model that tells which it saw.

Of each step the curves hold the sum of 2 ** number over its examples, in two
halves that float32 keeps exactly. Forty powers of two whose sum is 2 ** 40 - 1
are forty different ones: that is how a test knows an epoch.
"""

import os
import time

import jax.numpy as jnp
import numpy as np
import scripts
import seqio
import tensorflow as tf
import tiny_task

from t5x import metrics as metrics_lib

NUM_EXAMPLES = 40
_HALF = 20


class _Source(seqio.DataSource):
  """Reads examples by places, in an order of each epoch's own."""

  reads_places = True

  def __init__(self):
    super().__init__(
        splits=['train'],
        caching_permitted=False,
        performs_internal_shuffling=True,
    )

  @property
  def supports_arbitrary_sharding(self):
    return True

  def num_records(self, split):
    return NUM_EXAMPLES

  def list_shards(self, split):
    return ['all']

  def get_dataset(
      self, split='train', shuffle=True, seed=None, shard_info=None, **_
  ):
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=(NUM_EXAMPLES, 4)), tf.float32)
    images = rng.integers(0, 255, (NUM_EXAMPLES, 2, 2, 3)).astype('u1')
    images = tf.constant(images)

    def example(place):
      epoch, number = place // NUM_EXAMPLES, place % NUM_EXAMPLES
      number = tf.random.experimental.index_shuffle(
          number, tf.stack([epoch, 7]), tf.constant(NUM_EXAMPLES - 1, tf.int64)
      )
      return {
          'x': x[number],
          'image': images[number],
          'tokens': tf.pad(tf.cast(number, tf.int32)[None], [[0, 5]]),
          'flag': tf.reshape(x[number, 0] > 0, [1]),
      }

    return shard_info.places().map(example)


def _pause(dataset):
  """Reads as slowly as a test asks for, so that it can catch the run at work."""
  seconds = float(os.environ.get('TINY_PAUSE', '0'))

  def pause(example):
    def wait(image):
      time.sleep(seconds)
      return image

    image = tf.numpy_function(wait, [example['image']], tf.uint8)
    return {**example, 'image': tf.ensure_shape(image, (2, 2, 3))}

  return dataset.map(pause)


seqio.TaskRegistry.add(
    'numbered_task',
    source=_Source(),
    preprocessors=[_pause],
    output_features=tiny_task.OUTPUT_FEATURES,
    shuffle_buffer_size=None,
)


class WatchfulModel(tiny_task.TinyModel):
  """Adds `seen/low` and `seen/high` to the curves."""

  def loss_fn(self, params, batch, dropout_rng):
    loss, metrics = super().loss_fn(params, batch, dropout_rng)
    number = batch['tokens'][:, 0]
    halves = {'low': number, 'high': number - _HALF}
    for name, bit in halves.items():
      mine = (bit >= 0) & (bit < _HALF)
      power = jnp.where(mine, 2 ** jnp.clip(bit, 0, _HALF - 1), 0)
      metrics[f'seen/{name}'] = metrics_lib.Sum.from_model_output(
          power.astype(jnp.float32)
      )
    return loss, metrics


def curves(model_dir):
  """Step -> its loss, and what it saw; the last writing of a step counts."""
  found = {}
  for step, values in scripts.logged(model_dir).items():
    seen = int(values['seen/low']) + (int(values['seen/high']) << _HALF)
    found[step] = values['loss'], seen
  return found


def are_epochs(found, batch_size):
  """Whether all steps together saw every example once an epoch."""
  steps = NUM_EXAMPLES // batch_size
  return all(
      sum(found[first + i][1] for i in range(steps)) == 2**NUM_EXAMPLES - 1
      for first in range(1, len(found), steps)
  )
