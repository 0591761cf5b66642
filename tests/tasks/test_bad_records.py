"""What training does about records that are damaged, and about slow reads."""

import json
import os
import threading
import time

from array_record.python import array_record_module
import numpy as np
import pytest
import tensorflow as tf

from pixel_llm import feature_converters
from pixel_llm import features
from t5x import data_stream
from t5x import datasets
from tasks import records
from tasks import sources

TASK = 'refcoco_sample_refseg'
SPLIT = 'sample/refcoco/train'
BATCH = 4
FLIPPED, GARBAGE, CUT_OFF, FIELDLESS, RESIZED = 1, 3, 4, 6, 9
REASONS = {
    FLIPPED: 'RuntimeError: Corrupted Riegeli/records file',
    GARBAGE: 'DecodeError: ',
    CUT_OFF: 'Invalid JPEG data',
    FIELDLESS: 'Feature: image/id (data type: int64) is required',
    RESIZED: 'the picture has another size than image/height',
}


def damage(index, record):
  example = tf.train.Example.FromString(record)
  fields = example.features.feature
  if index == GARBAGE:
    return b'\xff' * 99
  if index == CUT_OFF:
    fields['image'].bytes_list.value[0] = b'\xff\xd8\xff\xe0 no picture'
  if index == FIELDLESS:
    del fields['image/id']
  if index == RESIZED:
    fields['image/height'].int64_list.value[0] += 1
  return example.SerializeToString(deterministic=True)


def write(folder, lines):
  """Two shards and a manifest."""
  folder.mkdir(parents=True)
  shards = []
  for number, part in enumerate((lines[:6], lines[6:])):
    file = folder / f'{number}.array_record'
    writer = array_record_module.ArrayRecordWriter(
        str(file), 'group_size:1,uncompressed'
    )
    for line in part:
      writer.write(line)
    writer.close()
    shards.append({'file': file.name, 'num_records': len(part)})
  manifest = {'schema_version': sources.SCHEMA_VERSION, 'shards': shards}
  (folder / sources.MANIFEST).write_text(json.dumps(manifest))


@pytest.fixture(name='roots')
def _roots(built_sample, tmp_path):
  """The sample as it is, and with five damaged records of ten."""
  source = sources.ArrayRecordSource({'train': SPLIT}, 'BUILD')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv(sources.ENVIRONMENT_VARIABLE, str(built_sample))
    lines = [source.records('train').read(i) for i in range(10)]
  bad = [damage(i, line) for i, line in enumerate(lines)]
  write(tmp_path / 'good' / SPLIT, lines)
  write(tmp_path / 'bad' / SPLIT, bad)
  file = tmp_path / 'bad' / SPLIT / '0.array_record'
  data = bytearray(file.read_bytes())
  data[data.index(lines[FLIPPED][:500]) + 300] ^= 1
  file.write_bytes(data)
  return tmp_path / 'good', tmp_path / 'bad'


@pytest.fixture(name='stream')
def _stream(roots, monkeypatch):
  """Opens a host's part of the good or the bad stream at a step."""

  def stream(kind, index=0, count=1, step=0, max_skipped_share=0.05):
    root = dict(zip(('good', 'bad'), roots))[kind]
    monkeypatch.setenv(sources.ENVIRONMENT_VARIABLE, str(root))
    lengths = features.feature_lengths(32, 2, 12, 6, with_masks=True)
    cfg = datasets.DatasetConfig(
        TASK,
        lengths,
        'train',
        BATCH,
        shuffle=True,
        seed=5,
        max_skipped_share=max_skipped_share,
    )
    dataset = datasets.get_dataset(
        cfg, index, count, feature_converters.PixelLLMMaskFeatureConverter
    )
    opened = data_stream.stream_of(dataset).open(step * BATCH, 5, False)
    return data_stream.StreamIterator(opened)

  return stream


def rows(iterator, number):
  """The rows of some batches."""
  batches = [next(iterator) for _ in range(number)]
  return [
      {name: value[row] for name, value in batch.items()}
      for batch in batches
      for row in range(len(batch['image']))
  ]


def assert_same(left, right):
  for name, value in left.items():
    np.testing.assert_array_equal(value, right[name], err_msg=name)


def test_a_bad_record_is_a_blank_picture_at_its_place(stream, caplog):
  good = rows(stream('good'), 5)
  caplog.clear()
  iterator = stream('bad')
  bad = rows(iterator, 5)
  # Two epochs: each of the five comes twice.
  blank = [not row['image'].any() for row in bad]
  assert sum(blank) == 2 * len(REASONS)
  for is_blank, left, right in zip(blank, good, bad):
    if is_blank:
      assert not right['prompt_mask'].any()
      assert right['image_hw'].tolist() == [32, 32]
    else:
      assert_same(left, right)
  # The readers are ahead of what is taken.
  assert iterator.stream.scalars(20)[f'data/skipped/{TASK}'] >= 10
  named = [r.message for r in caplog.records if 'Skipped' in r.message]
  assert len(named) == len(REASONS)
  for index, reason in REASONS.items():
    file, number = ('0', index) if index < 6 else ('1', index - 6)
    [line] = [m for m in named if f'{file}.array_record, record {number}:' in m]
    assert reason in line, line
  # The same on two hosts, from a step in the middle on.
  hosts = [rows(stream('bad', i, 2, step=2), 3) for i in range(2)]
  for step in range(3):
    part = slice(2 * step, 2 * step + 2)
    for place, row in enumerate(hosts[0][part] + hosts[1][part]):
      assert_same(bad[(2 + step) * BATCH + place], row)


def test_too_many_bad_records_end_the_training(stream):
  iterator = stream('bad', max_skipped_share=0.002)
  with pytest.raises(ValueError, match='max_skipped_share = 0.002') as error:
    rows(iterator, 20)
  assert f'of 1000 examples had to be skipped ({TASK}: ' in str(error.value)
  with pytest.raises(ValueError, match='from 0 to 1; got 2'):
    stream('bad', max_skipped_share=2)


def test_evaluation_leaves_nothing_out(stream, roots, monkeypatch):
  monkeypatch.setenv(sources.ENVIRONMENT_VARIABLE, str(roots[1]))
  source = sources.ArrayRecordSource({'validation': SPLIT}, 'BUILD')
  with pytest.raises(tf.errors.OpError, match='Corrupted Riegeli/records'):
    list(source.get_dataset('validation', shuffle=False))


def test_a_reader_that_hangs_is_named(tmp_path):
  pipe = tmp_path / 'stuck.array_record'
  os.mkfifo(pipe)
  opened = records.Records([(str(pipe), 4)])
  thread = threading.Thread(
      target=lambda: pytest.raises(RuntimeError, opened.read, 2)
  )
  thread.start()
  deadline = time.monotonic() + 30
  while not opened.waits() and time.monotonic() < deadline:
    time.sleep(0.01)
  [(where, seconds)] = opened.waits()
  assert where == f'{pipe}, record 2' and seconds >= 0
  # A writer that says nothing lets it go.
  os.close(os.open(pipe, os.O_WRONLY))
  thread.join(30)
  assert opened.waits() == []
