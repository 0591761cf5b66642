"""Streams by places: one order for any number of hosts, restarts without replay."""

import collections
import types

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from run_kwargs import partitioner
import seqio
import tensorflow as tf

from t5x import batches
from t5x import checkpoint_config
from t5x import data_stream
from t5x import datasets
from t5x import state_restoring

BATCH = 8
# Records of each task, and its weight in the mixture.
TASKS = {'stream_a': (7, 3.0), 'stream_b': (50, 1.0), 'stream_c': (3, 4.0)}
NAMES = []
READS = collections.Counter()


class Numbers(seqio.DataSource):
  """Numbers that know where they come from; every read is counted."""

  reads_places = True

  def __init__(self, name, size):
    super().__init__(
        splits=('train', 'other'),
        caching_permitted=False,
        performs_internal_shuffling=True,
    )
    self._name, self._size = name, size

  @property
  def supports_arbitrary_sharding(self):
    return True

  def num_records(self, split):
    return self._size

  def list_shards(self, split):
    return ['all']

  def get_dataset(
      self, split='train', shuffle=True, seed=None, shard_info=None, **_
  ):
    if hasattr(shard_info, 'places'):
      places = shard_info.places()
    else:
      places = tf.data.Dataset.range(
          shard_info.index, self._size, shard_info.num_shards
      )

    def read(place):
      READS[self._name] += 1
      return np.asarray([NAMES.index(self._name), place, seed], np.int32)

    def example(place):
      x = tf.numpy_function(read, [place], tf.int32, stateful=False)
      return {'x': tf.ensure_shape(x, [3])}

    return places.map(example)


def add_task(name, size, *preprocessors, **kwargs):
  NAMES.append(name)
  seqio.TaskRegistry.add(
      name,
      Numbers(name, size),
      preprocessors=list(preprocessors),
      output_features={
          'x': seqio.Feature(
              seqio.PassThroughVocabulary(100), add_eos=False, dtype=tf.int32
          )
      },
      **{'shuffle_buffer_size': None, **kwargs},
  )


for _name, (_size, _) in TASKS.items():
  add_task(_name, _size)
seqio.MixtureRegistry.add(
    'stream_mixture', [(name, weight) for name, (_, weight) in TASKS.items()]
)
add_task(
    'stream_filtered', 9, lambda ds: ds.filter(lambda e: e['x'][1] % 2 == 0)
)
add_task('stream_buffered', 9, shuffle_buffer_size=4)


def config(name='stream_mixture', seed=3, **kwargs):
  return datasets.DatasetConfig(
      name, {'x': 3}, 'train', BATCH, True, seed, **kwargs
  )


def open_shard(cfg, index=0, count=1, **kwargs):
  return datasets.get_dataset(
      cfg, index, count, seqio.PassThroughFeatureConverter, **kwargs
  )


def rows(batch):
  return [
      (NAMES[task], int(place)) for task, place, _ in np.asarray(batch['x'])
  ]


def take(iterator, number):
  return [rows(next(iterator)) for _ in range(number)]


def global_batches(cfg, count, number):
  """The rows of all shards, put together as the trainer does."""
  shards = [open_shard(cfg, i, count).as_numpy_iterator() for i in range(count)]
  return [
      sum((part[0] for part in parts), [])
      for parts in zip(*([[b] for b in take(s, number)] for s in shards))
  ]


def train_iterator(dataset, save_dataset=True):
  save = checkpoint_config.SaveCheckpointConfig(save_dataset=save_dataset)
  return batches.prepare_train_iter(
      dataset,
      partitioner=partitioner(),
      checkpoint_cfg=checkpoint_config.CheckpointConfig(save=save),
      data_layout=types.SimpleNamespace(batch_size=BATCH),
  )


@pytest.mark.parametrize('name', ['stream_a', 'stream_mixture'])
def test_global_batches_are_the_same_on_any_number_of_hosts(name):
  one = global_batches(config(name), 1, 12)
  assert global_batches(config(name), 2, 12) == one
  assert global_batches(config(name), 4, 12) == one
  assert global_batches(config(name), 8, 12) == one


def test_a_single_source_is_read_place_by_place():
  batches_of_a = global_batches(config('stream_a'), 2, 3)
  assert sum(batches_of_a, []) == [('stream_a', place) for place in range(24)]


def test_a_mixture_reads_every_source_in_order_and_by_weight():
  drawn = collections.defaultdict(list)
  for name, place in sum(global_batches(config(), 4, 200), []):
    drawn[name].append(place)
  for name, places in drawn.items():
    # Each epoch exactly once: no place is left out, none comes twice.
    assert places == list(range(len(places))), name
  total = 200 * BATCH
  for name, (_, weight) in TASKS.items():
    share = weight / 8
    error = abs(len(drawn[name]) / total - share)
    assert error < 3 * np.sqrt(share * (1 - share) / total)


def test_the_order_is_the_seeds():
  assert global_batches(config(), 1, 4) == global_batches(config(), 1, 4)
  other = global_batches(config(seed=4), 1, 4)
  assert other != global_batches(config(), 1, 4)


@pytest.mark.parametrize('peeks', [False, True])
@pytest.mark.parametrize('name', ['stream_b', 'stream_mixture'])
def test_a_restart_reads_nothing_again(name, peeks, tmp_path):
  straight = take(train_iterator(open_shard(config(name))), 30)
  first = train_iterator(open_shard(config(name)))
  assert take(first, 21) == straight[:21]
  if peeks:
    first.peek()
  first.save(tmp_path / 'train_ds-000-of-001')
  first.close()
  second = train_iterator(open_shard(config(name)))
  assert second.is_same_for_all_shards
  second.restore(tmp_path / 'train_ds-000-of-001')
  READS.clear()
  assert take(second, 9) == straight[21:]
  second.close()
  # What lies ahead in the buffers, but none of the 168 that came before.
  assert sum(READS.values()) < 9 * BATCH + 70
  (file,) = tmp_path.iterdir()
  assert file.stat().st_size < 100


def test_any_number_of_hosts_goes_on_where_another_one_stopped(tmp_path):
  straight = global_batches(config(), 1, 9)
  directory = tmp_path / 'checkpoint_5'
  directory.mkdir()
  (directory / '_CHECKPOINT_METADATA').touch()
  for index in range(2):
    shard = train_iterator(open_shard(config(), index, 2))
    take(shard, 5)
    shard.save(directory / f'train_ds-{index:03d}-of-002')
  for count in (1, 4):
    parts = []
    for index in range(count):
      shard = train_iterator(open_shard(config(), index, count))
      state_restoring.restore_dataset(
          str(directory), shard, f'train_ds-{index:03d}-of-{count:03d}'
      )
      parts.append(take(shard, 4))
    assert [sum(batch, []) for batch in zip(*parts)] == straight[5:]


def test_a_stream_without_a_seed_keeps_its_first(tmp_path, monkeypatch):
  seeds = iter([11, 12])
  monkeypatch.setattr(
      datasets.multihost, 'shared_time_seed', lambda: next(seeds)
  )
  first = train_iterator(open_shard(config(seed=None)))
  next(first)
  first.save(tmp_path / 'at')
  second = train_iterator(open_shard(config(seed=None)))
  second.restore(tmp_path / 'at')
  want, got = next(first), next(second)
  assert rows(want) == rows(got)
  assert {int(x) for x in got['x'][:, 2]} == {11}
  second.reset()
  assert int(next(second)['x'][0, 2]) == 11


def test_the_metrics_tell_where_a_mixture_stands():
  iterator = train_iterator(open_shard(config()))
  counts = collections.Counter(name for name, _ in sum(take(iterator, 50), []))
  iterator.peek()
  assert iterator.scalars() == {
      'data/examples': 400.0,
      **{
          f'data/epochs/{name}': counts[name] / size
          for name, (size, _) in TASKS.items()
      },
  }


def test_a_batch_is_named_by_its_places_and_tasks():
  iterator = train_iterator(open_shard(config()))
  *_, last = take(iterator, 3)
  iterator.peek()
  assert iterator.last_place == 16
  counts = collections.Counter(name for name, _ in last)
  tasks = [f'{n} ({counts[n]} rows)' for n in TASKS if counts[n]]
  assert iterator.describe(16) == (
      f'places 16 to 23 of the stream, tasks: {", ".join(tasks)}'
  )
  single = train_iterator(open_shard(config('stream_a')))
  next(single)
  assert single.describe(single.last_place) == (
      'places 0 to 7 of the stream, tasks: stream_a'
  )
  other = train_iterator(open_shard(config('stream_filtered')))
  assert other.last_place is None


@pytest.mark.parametrize(
    ('cfg', 'kwargs'),
    [
        (config('stream_filtered'), {}),
        (config('stream_buffered'), {}),
        (config('stream_a'), {'num_epochs': 2}),
    ],
)
def test_what_drops_shuffles_or_ends_is_no_stream(cfg, kwargs):
  dataset = open_shard(cfg, **kwargs)
  assert data_stream.stream_of(dataset) is None
  assert not train_iterator(dataset).is_same_for_all_shards


def test_the_state_of_another_kind_of_stream_is_refused(tmp_path):
  (tmp_path / 'at.index').touch()
  with pytest.raises(FileNotFoundError, match='restore_dataset = False'):
    train_iterator(open_shard(config())).restore(tmp_path / 'at')


def test_other_iterators_need_the_number_of_hosts_that_saved(tmp_path):
  (tmp_path / '_CHECKPOINT_METADATA').touch()
  (tmp_path / 'train_ds-000-of-002.index').touch()
  iterator = train_iterator(open_shard(config('stream_filtered')))
  with pytest.raises(FileNotFoundError, match='of 2 data shards, this run'):
    state_restoring.restore_dataset(
        str(tmp_path), iterator, 'train_ds-000-of-001'
    )


@hypothesis.given(
    weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=9),
    seed=st.integers(0, 2**31 - 1),
)
@hypothesis.settings(max_examples=50, deadline=None)
def test_a_cycle_has_every_task_by_weight_and_counts_its_places(weights, seed):
  cycle = 512
  schedule = data_stream.Schedule.create(weights, seed, cycle)
  counts = np.bincount(schedule.tasks, minlength=len(weights))
  np.testing.assert_array_equal(counts, schedule.counts)
  assert len(schedule.tasks) == cycle and counts.min() >= 1
  wanted = np.asarray(weights) / sum(weights) * cycle
  # Tasks of next to no weight take their one draw from others.
  assert np.all(np.abs(counts - wanted) <= 1 + (wanted < 1).sum())
  for task in range(len(weights)):
    np.testing.assert_array_equal(
        schedule.ranks[schedule.tasks == task], np.arange(counts[task])
    )
  for places in (0, 1, 100, cycle, 3 * cycle + 7):
    drawn = np.bincount(
        np.resize(schedule.tasks, places), minlength=len(weights)
    )
    np.testing.assert_array_equal(schedule.drawn(places), drawn)


def test_weights_must_be_positive():
  with pytest.raises(ValueError, match='must be positive'):
    data_stream.Schedule.create([1.0, -1.0], 0)
