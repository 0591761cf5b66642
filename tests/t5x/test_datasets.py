import types

import jax
import numpy as np
import pytest
from run_kwargs import dataset_cfg
from run_kwargs import partitioner
import seqio
import tiny_task

from t5x import batches
from t5x import checkpoint_config
from t5x import datasets


def get(cfg, shard_id=0, num_shards=1, **kwargs):
  dataset = datasets.get_dataset(
      cfg, shard_id, num_shards, tiny_task.Converter, **kwargs
  )
  return dataset


def stream(task='tiny_task', save_dataset=True):
  cfg = dataset_cfg(task=task)
  part = partitioner()
  save = checkpoint_config.SaveCheckpointConfig(save_dataset=save_dataset)
  return batches.prepare_train_iter(
      get(cfg),
      partitioner=part,
      checkpoint_cfg=checkpoint_config.CheckpointConfig(save=save),
      data_layout=part.get_data_layout(8),
  )


def test_features_of_any_rank_and_dtype_reach_the_batch():
  batch = next(stream())
  shapes = {name: (x.shape, str(x.dtype)) for name, x in batch.items()}
  assert shapes == {
      'x': ((8, 4), 'float32'),
      'image': ((8, 2, 2, 3), 'uint8'),
      'tokens': ((8, 6), 'int32'),
      'flag': ((8, 1), 'bool'),
  }
  assert all(isinstance(x, jax.Array) for x in batch.values())


@pytest.mark.parametrize('peek_before_saving', [False, True])
def test_a_restored_stream_gives_exactly_the_batches_to_come(
    tmp_path, peek_before_saving
):
  first = stream()
  for _ in range(7):  # into the second epoch
    next(first)
  if peek_before_saving:
    first.peek()
  first.save(tmp_path / 'at')
  expected = [next(first) for _ in range(6)]
  second = stream()
  next(second)
  second.restore(tmp_path / 'at')
  for want in expected:
    got = next(second)
    for name in want:
      np.testing.assert_array_equal(got[name], want[name])


def test_peeking_does_not_take():
  it = stream()
  peeked = it.peek()
  np.testing.assert_array_equal(next(it)['x'], peeked['x'])
  assert not np.array_equal(next(it)['x'], peeked['x'])


def test_shards_are_disjoint_and_divide_the_batch():
  cfg = dataset_cfg(shuffle=False, batch_size=40)
  whole = next(get(cfg, num_epochs=1).as_numpy_iterator())['x']
  parts = [
      next(get(cfg, i, 2, num_epochs=1).as_numpy_iterator())['x']
      for i in range(2)
  ]
  assert [len(part) for part in parts] == [20, 20]
  assert {tuple(row) for part in parts for row in part} == {
      tuple(row) for row in whole
  }
  with pytest.raises(ValueError, match='40 is not divisible by 3'):
    get(cfg, 0, 3)


def test_unknown_task_split_and_files_are_named():
  with pytest.raises(ValueError, match='nearest: tiny_task'):
    get(dataset_cfg(task='tinytask'))
  with pytest.raises(ValueError, match="no split 'tset'.*train, validation"):
    get(dataset_cfg('tset'))
  with pytest.raises(ValueError, match='tiny_missing_file_task.*/nowhere/'):
    get(dataset_cfg(task='tiny_missing_file_task'))


def test_a_missing_cache_names_task_directory_and_flag(monkeypatch, tmp_path):
  monkeypatch.setattr(seqio.utils, '_GLOBAL_CACHE_DIRECTORIES', [str(tmp_path)])
  cfg = dataset_cfg(task='tiny_mixture', use_cached=True)
  with pytest.raises(ValueError) as error:
    get(cfg)
  for part in (
      'tiny_plain_task',
      str(tmp_path),
      '--seqio_additional_cache_dirs=',
      'USE_CACHED_TASKS = False',
  ):
    assert part in str(error.value)


def test_eval_data_has_each_task_and_the_mixture_and_repeats():
  found = datasets.get_training_eval_datasets(
      dataset_cfg('validation', 'tiny_mixture', shuffle=False),
      0,
      1,
      3,
      tiny_task.Converter,
  )
  assert set(found) == {'tiny_task', 'tiny_plain_task', 'tiny_mixture'}
  plain = list(found['tiny_plain_task'].as_numpy_iterator())
  assert len(plain) == 3  # of ten examples, so they repeat
  np.testing.assert_array_equal(plain[0]['x'][0], plain[1]['x'][2])
  again = list(found['tiny_plain_task'].as_numpy_iterator())
  np.testing.assert_array_equal(plain[2]['x'], again[2]['x'])


def test_converter_spec_equals_the_spec_of_the_data():
  cfg = dataset_cfg()
  spec = batches.get_converter_spec(
      tiny_task.Converter(), cfg.task_feature_lengths, 8
  )
  assert spec == batches.get_batch_spec(get(cfg), 8)
  packed = seqio.EncDecFeatureConverter(pack=True)
  spec = batches.get_converter_spec(packed, {'inputs': 5, 'targets': 3}, 2)
  assert spec['encoder_segment_ids'].shape == (2, 5)
  assert spec['decoder_positions'].shape == (2, 3)


def test_zeros_have_the_shapes_of_the_data():
  zeros = batches.get_zeros_batch_like_dataset(get(dataset_cfg()), 4)
  assert zeros['image'].shape == (4, 2, 2, 3)
  assert zeros['flag'].dtype == bool
  assert not zeros['x'].any()


def test_vocabularies_of_model_and_data_must_agree():
  cfg = dataset_cfg()
  good = seqio.PassThroughVocabulary(16)
  model = types.SimpleNamespace(input_vocabulary=good, output_vocabulary=good)
  datasets.verify_matching_vocabs(cfg, model)
  model.output_vocabulary = seqio.ByteVocabulary()
  with pytest.raises(ValueError, match='do not match'):
    datasets.verify_matching_vocabs(cfg, model)
  datasets.verify_matching_vocabs(cfg, types.SimpleNamespace())


def test_shards_of_held_out_batches_are_their_rows_in_order():
  def batches_of(shard_id, num_shards):
    (dataset,) = datasets.get_training_eval_datasets(
        dataset_cfg('validation', 'tiny_plain_task', shuffle=False),
        shard_id,
        num_shards,
        3,
        tiny_task.Converter,
    ).values()
    return [batch['x'] for batch in dataset.as_numpy_iterator()]

  parts = zip(*(batches_of(i, 4) for i in range(4)))
  joined = [np.concatenate(part) for part in parts]
  np.testing.assert_array_equal(joined, batches_of(0, 1))
