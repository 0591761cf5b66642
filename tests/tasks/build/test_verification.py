"""`verify` finds what is not as the converter left it, and names it."""

import functools
import io
import json
import shutil

from hypothesis import example
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
from PIL import Image
import pytest

from tasks.build import __main__ as build
from tasks.build import example_proto
from tasks.build import records
from tasks.build import reports
from tasks.build import segmentations
from tasks.build import shards
from tasks.build import verification
from tasks.build import workers

HEIGHT, WIDTH = 24, 32


def _jpeg(seed):
  pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3))
  file = io.BytesIO()
  Image.fromarray(pixels.astype(np.uint8)).save(file, 'JPEG', quality=98)
  return file.getvalue()


def _mask():
  return segmentations.to_mask([[2.0, 2.0, 9.0, 2.0, 9.0, 9.0]], HEIGHT, WIDTH)


def _object(seed=0, **changes):
  """A record of one object."""
  prefix = 'objects/refexp'
  flat = {'refexp_id': [7], 'raw': ['A DOG'], 'sent': ['a dog']}
  values = {
      'image': _jpeg(seed),
      'image/id': seed,
      'image/file_name': f'{seed}.jpg',
      'image/height': HEIGHT,
      'image/width': WIDTH,
      'objects/id': [1],
      'objects/area': [49],
      'objects/bbox': np.array([[0.0, 0.1, 0.5, 1.0]]),
      'objects/label': [0],
      'objects/mask': [_mask().png],
      'objects/mask_rle': [_mask().rle_counts],
  }
  for name, value in {**flat, 'sent_pos': ['dog']}.items():
    values[f'{prefix}/{name}/ragged_row_lengths_0'] = [1]
    values[f'{prefix}/{name}/ragged_flat_values'] = value
  return example_proto.serialize({**values, **changes})


def _unchanged(record):
  tally = reports.Tally()
  tally.read['image'] = tally.written['image'] = 1
  return shards.Converted(record, tally)


def _build(directory, contents, num_shards=1):
  split = shards.Split(
      directory=directory,
      units=[shards.Unit(None, content) for content in contents],
      convert=_unchanged,
      tally=reports.Tally(),
      arguments={},
      sources=[],
      num_shards=num_shards,
  )
  write_all = functools.partial(workers.write_all, workers=1)
  shards.build_split(split, write_all, strict=False)
  return directory


@pytest.fixture
def unchecked(monkeypatch):
  """Writes records that a converter would not, until it is undone."""
  nothing = records.Record('', b'', 1, 1, [])
  monkeypatch.setattr(records, 'parse', lambda _: nothing)
  return monkeypatch


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  directory = tmp_path_factory.mktemp('whole')
  _build(directory, [_object(seed) for seed in range(5)], num_shards=2)
  assert verification.verify(directory, workers=1) == []
  return directory


@pytest.fixture(scope='module')
def damaged(whole, tmp_path_factory):
  """A copy whose second shard, of records 2 to 4, is overwritten."""
  return shutil.copytree(whole, tmp_path_factory.mktemp('damaged') / 'train')


def _shard(directory):
  return directory / 'data-00001-of-00002.array_record'


@settings(max_examples=25, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@example(place=0.0, bit=0)
@example(place=0.9999999, bit=7)
def test_any_flipped_bit_is_found_and_its_shard_named(
    place, bit, whole, damaged
):
  content = bytearray(_shard(whole).read_bytes())
  offset = int(place * len(content))
  content[offset] ^= 1 << bit
  _shard(damaged).write_bytes(content)
  [fault] = verification.verify(damaged, workers=1)
  assert fault.shard == _shard(damaged).name
  assert fault.reason == 'bytes_differ'


@settings(max_examples=25, deadline=None)
@given(
    number=st.integers(0, 2),
    place=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
def test_a_flipped_bit_of_a_picture_names_its_record(
    number, place, bit, whole, damaged
):
  content = bytearray(_shard(whole).read_bytes())
  picture = _jpeg(2 + number)
  # A JPEG does not compress, so its bytes stand in the shard.
  scan = picture[-len(picture) // 2 :]
  begin = content.find(scan)
  assert begin >= 0
  content[begin + int(place * len(scan))] ^= 1 << bit
  _shard(damaged).write_bytes(content)
  [fault] = verification.verify(damaged, workers=1)
  assert fault.shard == _shard(damaged).name
  assert (fault.record, fault.name) == (number, str(2 + number))


def test_verify_exits_with_1_and_prints_shard_and_record(
    whole, damaged, capsys
):
  assert build.main(['verify', str(whole)]) == 0
  content = bytearray(_shard(whole).read_bytes())
  content[content.find(_jpeg(3)[-200:])] ^= 4
  _shard(damaged).write_bytes(content)
  capsys.readouterr()
  assert build.main(['verify', str(damaged.parent)]) == 1
  shown = capsys.readouterr().out
  assert f'{_shard(damaged)} record 1 (id 3): bytes_differ' in shown


@pytest.mark.parametrize('length', [0, 70_000])
def test_a_shard_that_is_cut_off_is_found(length, whole, tmp_path):
  directory = shutil.copytree(whole, tmp_path / 'x')
  _shard(directory).write_bytes(_shard(directory).read_bytes()[:length])
  faults = verification.verify(directory, workers=1)
  assert {fault.shard for fault in faults} == {_shard(directory).name}


def test_missing_and_stray_shards_are_named(whole, tmp_path):
  directory = shutil.copytree(whole, tmp_path / 'x')
  _shard(directory).rename(directory / 'data-00007-of-00009.array_record')
  faults = verification.verify(directory, workers=1)
  assert [(fault.shard, fault.reason) for fault in faults] == [
      ('data-00007-of-00009.array_record', 'stray_shard'),
      (_shard(directory).name, 'shard_missing'),
  ]


def test_without_a_side_file_the_shard_is_named(whole, tmp_path):
  directory = shutil.copytree(whole, tmp_path / 'x')
  for path in directory.glob('data-*.json'):
    path.unlink()
  assert verification.verify(directory, workers=1) == []
  content = bytearray(_shard(directory).read_bytes())
  content[1000] ^= 1
  _shard(directory).write_bytes(content)
  [fault] = verification.verify(directory, workers=1)
  assert (fault.shard, fault.reason) == (_shard(directory).name, 'hash_differs')


def test_a_split_that_is_not_done_is_an_error(whole, tmp_path, capsys):
  directory = shutil.copytree(whole, tmp_path / 'x')
  (directory / 'manifest.json').unlink()
  for command in ('verify', 'stats'):
    assert build.main([command, str(tmp_path)]) == 1
    assert 'not done' in capsys.readouterr().err
    assert build.main([command, str(tmp_path / 'none')]) == 1
    assert 'no manifest.json' in capsys.readouterr().err


def _png(pixels):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'PNG')
  return file.getvalue()


@pytest.mark.parametrize(
    ('reason', 'changes'),
    [
        ('box_outside', {'objects/bbox': np.array([[0.0, 0.1, 0.5, 1.1]])}),
        ('box_outside', {'objects/bbox': np.array([[0.5, 0.1, 0.5, 1.0]])}),
        ('box_outside', {'objects/bbox': np.array([[np.nan, 0.1, 0.5, 1.0]])}),
        ('mask_outside', {'objects/mask': [_png(np.zeros((4, 4), np.uint8))]}),
        (
            'mask_differs',
            {'objects/mask': [_png(np.zeros((HEIGHT, WIDTH), np.uint8))]},
        ),
        ('mask_broken', {'objects/mask': [b'']}),
        ('mask_differs', {'objects/mask_rle': [b'']}),
        ('picture_size', {'image/height': HEIGHT + 1}),
        ('picture_broken', {'image': _jpeg(0)[:400]}),
        ('picture_broken', {'image': b'<html>'}),
        ('no_text', {'objects/refexp/sent/ragged_flat_values': [' ']}),
    ],
)
def test_what_is_wrong_in_a_record_is_named(
    reason, changes, tmp_path, unchecked
):
  # `picture_size` also moves the mask out of its picture.
  directory = _build(tmp_path, [_object(), _object(**changes)])
  unchecked.undo()
  faults = verification.verify(directory, workers=1)
  assert reason in {fault.reason for fault in faults}
  assert {fault.record for fault in faults} == {1}


@pytest.mark.parametrize(
    ('found', 'changes'),
    [
        ('equally long', {'objects/area': [1, 2]}),
        ('does not sum', {'objects/refexp/raw/ragged_row_lengths_0': [2]}),
        ('is a float_list', {'objects/id': np.array([1.0])}),
        ('has 0 values', {'image/width': []}),
        ('rows of', {'objects/bbox': np.zeros(5)}),
        ('UTF-8', {'objects/refexp/sent/ragged_flat_values': [b'\xff']}),
    ],
)
def test_a_record_whose_lists_do_not_fit_is_named(
    found, changes, tmp_path, unchecked
):
  bad = _build(tmp_path, [_object(**changes)])
  unchecked.undo()
  faults = verification.verify(bad, workers=1)
  [fault] = faults
  assert (fault.reason, fault.record) == ('bad_record', 0)
  assert found in fault.detail


def test_statistics_that_are_not_those_of_the_records_are_named(
    whole, tmp_path
):
  directory = shutil.copytree(whole, tmp_path / 'x')
  path = directory / 'manifest.json'
  manifest = json.loads(path.read_text())
  manifest['statistics']['words_per_text']['total'] += 1
  path.write_text(json.dumps(manifest))
  [fault] = verification.verify(directory, workers=1)
  assert fault.reason == 'statistics_differ'
  assert 'words_per_text' in fault.detail
