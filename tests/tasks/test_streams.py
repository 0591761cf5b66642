"""The streams of the recipes: one order on any number of hosts, restarts."""

import collections
import hashlib

import numpy as np
import pytest
import seqio

from pixel_llm import feature_converters
from pixel_llm import features
from t5x import batches
from t5x import checkpoint_config
from t5x import data_stream
from t5x import datasets
from t5x import partitioning

BATCH = 8
MIXTURE = 'pixel_llm_sample_joint'
CONVERTERS = {
    'ln_sample_trace': feature_converters.PixelLLMFeatureConverter,
    'refcoco_sample_refseg': feature_converters.PixelLLMMaskFeatureConverter,
    MIXTURE: feature_converters.PixelLLMFeatureConverter,
}


def open_shard(name, index=0, count=1):
  lengths = features.feature_lengths(
      32, 2, 12, 6, with_masks=name.endswith('refseg')
  )
  cfg = datasets.DatasetConfig(name, lengths, 'train', BATCH, True, 5)
  return datasets.get_dataset(cfg, index, count, CONVERTERS[name])


def digests(batch):
  """One number a row, of all its features."""
  rows = zip(*(np.asarray(batch[name]) for name in sorted(batch)))
  return [
      hashlib.sha256(b''.join(x.tobytes() for x in row)).hexdigest()
      for row in rows
  ]


def take(dataset, number):
  iterator = dataset.as_numpy_iterator()
  return [digests(next(iterator)) for _ in range(number)]


def check_stream(name, steps, start, counts):
  """Goes on at a step on several hosts as straight through on one."""
  straight = take(open_shard(name), steps)
  for count in counts:
    shards = []
    for index in range(count):
      shard = data_stream.stream_of(open_shard(name, index, count))
      shards.append(take(shard.open(start * BATCH, 5, False), steps - start))
    joined = [sum(parts, []) for parts in zip(*shards)]
    assert joined == straight[start:], count
  return straight


@pytest.mark.parametrize('name', ['ln_sample_trace', 'refcoco_sample_refseg'])
def test_the_order_is_a_function_of_the_step(name, data_dir):
  check_stream(name, 6, 3, [2])


@pytest.mark.slow
@pytest.mark.parametrize('name', CONVERTERS)
def test_two_hundred_steps_are_a_function_of_the_step(name, data_dir):
  straight = sum(check_stream(name, 200, 100, [1, 2, 4]), [])
  # Views differ from epoch to epoch.
  assert len(set(straight)) > 0.5 * len(straight)


def test_every_record_comes_once_an_epoch(data_dir):
  task = seqio.get_mixture_or_task('refcoco_sample_refseg')
  size = task.source.num_records('train')
  shard = data_stream.StreamShard(0, 1, batch_size=4)
  places = list(
      task.source.get_dataset('train', seed=2, shard_info=shard).take(3 * size)
  )
  orders = []
  for epoch in range(3):
    part = places[epoch * size : (epoch + 1) * size]
    orders.append([int(p['index']) for p in part])
    assert sorted(orders[-1]) == list(range(size))
  assert orders[0] != orders[1] != orders[2]
  # Each epoch draws anew.
  assert len({tuple(p['seed'].numpy()) for p in places}) == 3 * size
  again = task.source.get_dataset('train', seed=2, shard_info=shard).take(size)
  assert [int(p['index']) for p in again] == orders[0]


def test_a_mixture_has_each_task_by_weight(data_dir):
  stream = data_stream.stream_of(open_shard(MIXTURE))
  mixture = seqio.get_mixture_or_task(MIXTURE)
  drawn = dict(zip(stream.names, stream.schedule.drawn(10_000)))
  for task in mixture.tasks:
    share = mixture.get_rate(task) / mixture.total_rate
    error = abs(drawn[task.name] / 10_000 - share)
    assert error < 3 * np.sqrt(share * (1 - share) / 10_000), task.name
  assert stream.scalars(10_000)['data/epochs/vg_sample_densecap'] == (
      drawn['vg_sample_densecap']
      / seqio.get_mixture_or_task('vg_sample_densecap').source.num_records(
          'train'
      )
  )


def test_a_run_saves_a_place_and_goes_on_from_it(data_dir, tmp_path):
  partitioner = partitioning.PjitPartitioner(num_partitions=1)

  def stream():
    return batches.prepare_train_iter(
        open_shard('ln_sample_trace'),
        partitioner=partitioner,
        checkpoint_cfg=checkpoint_config.CheckpointConfig(
            save=checkpoint_config.SaveCheckpointConfig(save_dataset=True)
        ),
        data_layout=partitioner.get_data_layout(BATCH),
    )

  first = stream()
  for _ in range(3):
    next(first)
  first.peek()
  first.save(tmp_path / 'train_ds-000-of-001')
  want = [digests(next(first)) for _ in range(2)]
  second = stream()
  second.restore(tmp_path / 'train_ds-000-of-001')
  assert [digests(next(second)) for _ in range(2)] == want
  assert second.scalars()['data/examples'] == 5 * BATCH
  counts = collections.Counter(path.name for path in tmp_path.iterdir())
  assert list(counts) == ['train_ds-000-of-001.stream.json']
