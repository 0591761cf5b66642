"""TFRecords of the original scripts become the records of our converters."""

import gzip
import pathlib

import converted
import numpy as np
import pytest
import tensorflow as tf

from tasks.build import __main__ as build
from tasks.build import tfrecords
from tasks.build import verification

SAMPLE = pathlib.Path(__file__).parents[3] / 'tasks' / 'sample'
IMAGES = [str(SAMPLE / folder) for folder in ('train2017', 'train2014')]
# Source: annotation file, and fields that no TFRecord of the original has.
SOURCES = {
    'vg': ('vg/train.json', []),
    'refcoco': ('refcoco/merge_coco_img_safe_train.json', ['objects/mask_rle']),
    'llava': ('llava/llava_v1_5_mix665k.json', ['row']),
    'ln': ('localized_narratives/coco_train_*.jsonl', ['caption/annotator_id']),
}
ADDED = ['image/file_name', 'image/height', 'image/width']


def _bytes(*values):
  return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def _floats(values):
  return tf.train.Feature(
      float_list=tf.train.FloatList(value=np.reshape(values, -1))
  )


def _original(source, features):
  """A record of ours as the original script would have written it."""
  kept = {k: v for k, v in features.items() if k not in ADDED}
  if source != 'ln':
    for name in SOURCES[source][1]:
      del kept[name]
    return tf.train.Example(features=tf.train.Features(feature=kept))
  lengths = features['caption/ragged_row_lengths_0'].int64_list.value
  ends = np.cumsum(lengths)
  flat = features['caption/utterance/ragged_flat_values'].bytes_list.value
  lists = {'utterance': [_bytes(*flat[e - n : e]) for n, e in zip(lengths, ends)]}
  for name, size in (('center', 2), ('bbox', 4), ('point', 32)):
    values = features[f'caption/{name}'].float_list.value
    rows = np.reshape(values, (-1, size))
    lists[name] = [_floats(rows[e - n : e]) for n, e in zip(lengths, ends)]
  names = ('image/encoded', 'image/id', 'meta/dataset_id', 'caption/string')
  return tf.train.SequenceExample(
      context=tf.train.Features(feature={n: features[n] for n in names}),
      feature_lists=tf.train.FeatureLists(
          feature_list={
              f'caption/{name}': tf.train.FeatureList(feature=entries)
              for name, entries in lists.items()
          }
      ),
  )


def _write(path, examples):
  with tf.io.TFRecordWriter(str(path)) as writer:
    for example in examples:
      writer.write(example.SerializeToString())


def _convert(output, *files, arguments=()):
  split = f'train={",".join(map(str, files))}'
  return build.main(
      ['tfrecord', '--split', split, '--output', str(output), *arguments]
  )


def _plain(features):
  """Feature name to its values."""
  result = {}
  for name, feature in features.items():
    kind = feature.WhichOneof('kind')
    result[name] = list(getattr(feature, kind).value) if kind else []
  return result


@pytest.fixture(scope='module')
def built(tmp_path_factory):
  """The sample as our converters write it."""
  root = tmp_path_factory.mktemp('built')
  for source, (file, _) in SOURCES.items():
    folders = [str(SAMPLE)] if source == 'llava' else IMAGES
    arguments = ['--images', *folders, '--output', str(root / source)]
    arguments += ['--split', f'train={SAMPLE / file}', '--shards', '2']
    build.main([source, *arguments])
  return root


@pytest.mark.parametrize('source', sorted(SOURCES))
def test_records_are_those_of_the_original_annotations(
    source, built, tmp_path, capsys
):
  expected = converted.records(built / source / 'train')
  assert len(expected) >= 10
  originals = [_original(source, features) for features in expected]
  files = [tmp_path / f'a-{number}.tfrecord' for number in range(2)]
  _write(files[0], originals[:4])
  _write(files[1], originals[4:])
  # Positions in files travel to other processes; one source shows it.
  workers = '2' if source == 'vg' else '1'
  arguments = ('--shards', '3', '--workers', workers)
  assert _convert(tmp_path, f'{tmp_path}/a-*', arguments=arguments) == 0
  directory = tmp_path / 'train'
  converted.assert_adds_up(directory, 'tfrecord')
  assert verification.verify(directory, workers=1) == []
  found = converted.records(directory)
  assert len(found) == len(expected)
  # Names of files, annotators and rows are not in the TFRecords.
  unknown = {'image/file_name', 'caption/annotator_id', 'row'}
  for ours, direct in zip(found, expected):
    ours, direct = _plain(ours), _plain(direct)
    assert set(ours) == set(direct)
    for name in set(direct) - unknown:
      assert ours[name] == direct[name], name
  fields = converted.manifest(directory)['fields']
  for name, outcomes in fields.items():
    if name in ADDED or name in SOURCES[source][1]:
      assert set(outcomes) == {'added'}, name
    else:
      assert set(outcomes) == {'same'}, name
  text = {'vg': 'regions/phrase', 'llava': 'conversations/agent'}.get(source)
  if text:
    count = sum(len(r[text].bytes_list.value) for r in expected)
    assert fields[text] == {'same': count}
  assert 'left_out' in capsys.readouterr().out  # The table's head.


def _region_example(**changes):
  picture = (SAMPLE / 'train2017' / '000000173350.jpg').read_bytes()
  values = {
      'image': _bytes(picture),
      'img_id': tf.train.Feature(int64_list=tf.train.Int64List(value=[5])),
      'regions/id': tf.train.Feature(
          int64_list=tf.train.Int64List(value=[1, 2, 3])
      ),
      'regions/bbox': _floats(
          [[0.1, 0.1, 0.5, 0.5], [0.2, 0.2, 0.9, 1.2], [0.5, 1.1, 0.6, 1.3]]
      ),
      'regions/phrase': _bytes(b' a  dog\n', b'a cat', b'a bird'),
      **changes,
  }
  return tf.train.Example(features=tf.train.Features(feature=values))


def test_the_audit_tells_what_became_of_every_value(tmp_path):
  none = tf.train.Feature(float_list=tf.train.FloatList(value=[]))
  nothing = _region_example(
      **{
          'regions/id': tf.train.Feature(),
          'regions/bbox': none,
          'regions/phrase': _bytes(),
      }
  )
  broken = _region_example(**{'regions/id': _bytes(b'1')})
  _write(
      tmp_path / 'a.tfrecord',
      [_region_example(secret=_bytes(b'x')), nothing, broken],
  )
  assert _convert(tmp_path, tmp_path / 'a.tfrecord') == 3
  directory = tmp_path / 'train'
  converted.assert_adds_up(directory, 'tfrecord')
  fields = converted.manifest(directory)['fields']
  assert fields['regions/phrase'] == {'same': 1, 'changed': 1, 'left_out': 1}
  assert fields['regions/bbox'] == {'same': 1, 'changed': 1, 'left_out': 1}
  assert fields['regions/id'] == {'same': 2, 'left_out': 1}
  assert fields['secret'] == {'left_out': 1}
  assert fields['image'] == {'same': 1, 'left_out': 1}
  assert converted.reasons(directory, 'region') == {'3': 'box_outside'}
  assert converted.reasons(directory, 'image') == {'5': 'no_region_left'}
  reasons = converted.reasons(directory, 'tfrecord')
  assert list(reasons.values()) == ['nothing_left', 'bad_record']
  assert all(name.startswith('a.tfrecord byte') for name in reasons)


def test_traces_that_cannot_be_are_left_out_and_far_ones_noted(
    built, tmp_path
):
  [first, *_] = converted.records(built / 'ln' / 'train')
  example = _original('ln', first)
  points = example.feature_lists.feature_list['caption/point'].feature[0]
  copies = [tf.train.SequenceExample() for _ in range(2)]
  for copy, value in zip(copies, (float('nan'), 3.0)):
    points.float_list.value[5] = value
    copy.CopyFrom(example)
  _write(tmp_path / 'a.tfrecord', copies)
  assert _convert(tmp_path, tmp_path / 'a.tfrecord') == 3
  directory = tmp_path / 'train'
  converted.assert_adds_up(directory, 'tfrecord')
  assert list(converted.reasons(directory, 'narrative').values()) == [
      'bad_trace'
  ]
  assert list(converted.reasons(directory, 'narrative', 'noted').values()) == [
      'trace_far_outside'
  ]


@pytest.mark.parametrize(
    ('damage', 'level', 'reason'),
    [
        (lambda data: data[:-1], 'file', 'cut_off'),
        (lambda data: data[:5], 'file', 'cut_off'),
        (lambda data: b'\1' + data[1:], 'file', 'bad_length'),
        (gzip.compress, 'file', 'bad_length'),
        (lambda data: data[:-1] + b'\1', 'tfrecord', 'bad_check_sum'),
    ],
)
def test_damaged_files_and_records_are_named(
    damage, level, reason, tmp_path
):
  good, bad = tmp_path / 'good.tfrecord', tmp_path / 'bad.tfrecord'
  _write(good, [_region_example()])
  _write(bad, [_region_example()] * 2)
  bad.write_bytes(damage(bad.read_bytes()))
  assert _convert(tmp_path, good, bad) == 3
  directory = tmp_path / 'train'
  converted.assert_adds_up(directory, 'tfrecord')
  [(name, found)] = converted.reasons(directory, level).items()
  assert name.startswith('bad.tfrecord') and found == reason


def test_a_file_of_an_unknown_layout_names_its_features(tmp_path, capsys):
  example = tf.train.Example()
  example.features.feature['pixels'].int64_list.value.append(1)
  _write(tmp_path / 'a.tfrecord', [example])
  assert _convert(tmp_path, tmp_path / 'a.tfrecord') == 1
  assert "['pixels']" in capsys.readouterr().err


def test_reading_equals_tensorflows_writing(tmp_path):
  path = tmp_path / 'x.tfrecord'
  rng = np.random.default_rng(0)
  contents = [rng.bytes(size) for size in (0, 1, 7, 1000, 70_000)]
  with tf.io.TFRecordWriter(str(path)) as writer:
    for content in contents:
      writer.write(content)
  offsets = list(tfrecords.offsets(path))
  assert [tfrecords.read(path, offset) for offset in offsets] == contents
  data = path.read_bytes()
  for byte in rng.integers(0, len(data), 40):
    damaged = bytearray(data)
    damaged[byte] ^= 1 << int(rng.integers(8))
    path.write_bytes(damaged)
    with pytest.raises(tfrecords.TfRecordError):
      for offset in tfrecords.offsets(path):
        tfrecords.read(path, offset)
