"""The order of the records, their seeds, and what a checkpoint holds."""

import os

import pytest
import seqio
import tensorflow as tf

from pixel_llm import features
from tasks import sources

SPLITS = {
    'train': 'sample/refcoco/train',
    'real_val': 'sample/refcoco/real_val',
}


@pytest.fixture
def source(data_dir):
  return sources.ArrayRecordSource(SPLITS, 'python -m tasks.build refcoco …')


def _order(dataset):
  return [int(place['index']) for place in dataset]


def test_an_epoch_shows_every_record_once_in_an_order_of_the_seed(source):
  first = _order(source.get_dataset('train', seed=1))
  again = _order(source.get_dataset('train', seed=1))
  other = _order(source.get_dataset('train', seed=2))
  assert sorted(first) == list(range(10)) == sorted(other)
  assert first == again
  assert first != other
  assert first != list(range(10))


def test_each_epoch_has_its_own_order_and_seeds(source):
  places = list(source.get_dataset('train', seed=1).repeat(2))
  first, second = places[:10], places[10:]
  order = [int(p['index']) for p in first]
  assert order != [int(p['index']) for p in second]
  assert sorted(order) == list(range(10))
  seeds = {tuple(p['seed'].numpy()) for p in places}
  assert len(seeds) == 20


def test_hosts_share_an_epoch_without_changing_the_examples(source):
  def by_index(dataset):
    return {int(p['index']): tuple(p['seed'].numpy()) for p in dataset}

  whole = by_index(source.get_dataset('train', seed=3))
  parts = [
      by_index(
          source.get_dataset(
              'train', seed=3, shard_info=seqio.ShardInfo(index, 3)
          )
      )
      for index in range(3)
  ]
  assert [len(part) for part in parts] == [4, 3, 3]
  assert {k: v for part in parts for k, v in part.items()} == whole


def test_without_shuffling_the_records_keep_their_order(source):
  assert _order(source.get_dataset('train', shuffle=False)) == list(range(10))
  assert source.num_records('train') == 10
  assert source.num_input_examples('train') is None


def test_only_training_splits_are_marked_so(source):
  for split, training in (('train', True), ('real_val', False)):
    place = next(iter(source.get_dataset(split)))
    assert (sources.TRAINING in place) is training


def test_missing_data_names_file_variable_and_command(tmp_path, monkeypatch):
  monkeypatch.setenv('PIXEL_LLM_DATA_DIR', str(tmp_path))
  task = seqio.get_mixture_or_task('refcoco_sample_refseg')
  with pytest.raises(FileNotFoundError) as error:
    task.get_dataset(features.feature_lengths(32, 2, 8, 8, with_masks=True))
  message = str(error.value)
  assert str(tmp_path / 'sample/refcoco/train/manifest.json') in message
  assert 'PIXEL_LLM_DATA_DIR' in message
  assert 'python -m tasks.build refcoco --images' in message
  assert f'--output {tmp_path}/sample/refcoco ' in message


def test_data_of_another_schema_is_refused(tmp_path, monkeypatch):
  monkeypatch.setenv('PIXEL_LLM_DATA_DIR', str(tmp_path))
  directory = tmp_path / SPLITS['train']
  directory.mkdir(parents=True)
  (directory / 'manifest.json').write_text('{"schema_version": 99}')
  source = sources.ArrayRecordSource(SPLITS, 'BUILD')
  with pytest.raises(ValueError, match='schema_version is 99.*`BUILD`'):
    source.get_dataset('train')


def test_a_checkpoint_is_small_and_continues_exactly(data_dir, tmp_path):
  task = seqio.get_mixture_or_task('refcoco_sample_refseg')
  lengths = features.feature_lengths(256, 4, 12, 12, with_masks=True)

  def iterator():
    dataset = task.get_dataset(
        lengths, split='train', shuffle=True, seed=5, num_epochs=3
    )
    return iter(dataset)

  def look(example):
    return (
        example['texts'].numpy().tolist(),
        example['image'].numpy().tobytes(),
        example['masks'].numpy().tobytes(),
    )

  straight = iterator()
  # Into the second epoch.
  for _ in range(14):
    next(straight)
  path = tf.train.Checkpoint(iterator=straight).write(str(tmp_path / 'ckpt'))
  expected = [look(next(straight)) for _ in range(10)]
  resumed = iterator()
  tf.train.Checkpoint(iterator=resumed).read(path)
  assert [look(next(resumed)) for _ in range(10)] == expected
  size = sum(os.path.getsize(p) for p in tmp_path.glob('ckpt*'))
  # One decoded example alone has 450 kB.
  assert size < 20_000
