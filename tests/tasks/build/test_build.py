"""The converters as a user runs them."""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import converted
import numpy as np
from PIL import Image
import pytest

from tasks.build import __main__ as build

REPOSITORY = pathlib.Path(__file__).parents[3]
SAMPLE = REPOSITORY / 'tasks' / 'sample'
PICTURE = SAMPLE / 'train2017' / '000000173350.jpg'
HEIGHT, WIDTH = 480, 640


def test_refcoco_sample_keeps_pictures_boxes_and_expressions(built_sample):
  directory = built_sample / 'sample' / 'refcoco' / 'train'
  document = json.loads(
      (SAMPLE / 'refcoco/merge_coco_img_safe_train.json').read_text()
  )
  rows = {
      row['refexp_id']: (row, annotation)
      for row, annotation in zip(document['images'], document['annotations'])
  }
  seen = set()
  for record in converted.records(directory):
    file_name = record['image/file_name'].bytes_list.value[0].decode()
    [path] = SAMPLE.glob(f'*/{file_name}')
    assert record['image'].bytes_list.value[0] == path.read_bytes()
    height = record['image/height'].int64_list.value[0]
    width = record['image/width'].int64_list.value[0]
    boxes = np.reshape(record['objects/bbox'].float_list.value, (-1, 4))
    prefix = 'objects/refexp'
    lengths = record[f'{prefix}/sent/ragged_row_lengths_0'].int64_list.value
    objects = np.repeat(np.arange(len(boxes)), lengths)
    ids = record[f'{prefix}/refexp_id/ragged_flat_values'].int64_list.value
    raws = record[f'{prefix}/raw/ragged_flat_values'].bytes_list.value
    sents = record[f'{prefix}/sent/ragged_flat_values'].bytes_list.value
    for refexp_id, raw, sent, number in zip(ids, raws, sents, objects):
      row, annotation = rows[refexp_id]
      seen.add(refexp_id)
      assert raw.decode() == row['raw']
      assert sent.decode() == row['caption']
      y0, x0, y1, x1 = boxes[number] * [height, width, height, width]
      np.testing.assert_allclose(
          [x0, y0, x1 - x0, y1 - y0], annotation['bbox'], atol=1e-3
      )
  assert seen == set(rows)
  converted.assert_adds_up(directory)


def test_narratives_of_one_picture_are_one_record(built_sample):
  directory = built_sample / 'sample' / 'ln' / 'train'
  records = converted.records(directory)
  assert len(records) == 16
  counts = {
      r['image/id'].bytes_list.value[0]: len(
          r['caption/string'].bytes_list.value
      )
      for r in records
  }
  assert counts[b'173350'] == 2
  for record in records:
    lengths = record['caption/ragged_row_lengths_0'].int64_list.value
    utterances = record['caption/utterance/ragged_flat_values'].bytes_list.value
    assert sum(lengths) == len(utterances)
    assert len(record['caption/center'].float_list.value) == 2 * sum(lengths)
    assert len(record['caption/bbox'].float_list.value) == 4 * sum(lengths)
    assert len(record['caption/point'].float_list.value) == 32 * sum(lengths)


def test_workers_do_not_change_a_byte(build_refcoco, tmp_path):
  for name, workers in (('one', '1'), ('two', '2')):
    arguments = ('--workers', workers, '--shards', '2')
    assert build_refcoco(tmp_path / name, *arguments) == 0
  for split in ('train', 'real_val'):
    one, two = (
        converted.manifest(tmp_path / name / split) for name in ('one', 'two')
    )
    assert one == two


def test_finished_shards_are_kept_and_changed_ones_made_anew(tmp_path):
  images = tmp_path / 'images'
  images.mkdir()
  for path in SAMPLE.glob('train2017/*.jpg'):
    shutil.copy(path, images)
  arguments = [
      'refcoco',
      '--images',
      str(images),
      '--output',
      str(tmp_path / 'out'),
      '--split',
      f'train={SAMPLE}/refcoco/refcoco_unc_train.json',
      '--shards',
      '5',
  ]
  assert build.main(arguments) == 0
  directory = tmp_path / 'out' / 'train'
  manifest = converted.manifest(directory)
  shards = sorted(directory.glob('*.array_record'))
  times = [p.stat().st_mtime_ns for p in shards]
  # A cut-off run: no manifest, one shard lost, one left half written.
  (directory / 'manifest.json').unlink()
  shards[1].unlink()
  (directory / f'.{shards[1].name}.tmp').write_bytes(b'half')
  shards[2].write_bytes(shards[2].read_bytes()[:100])
  assert build.main(arguments) == 0
  assert converted.manifest(directory) == manifest
  after = [p.stat().st_mtime_ns for p in shards]
  kept = [a == b for a, b in zip(times, after)]
  assert kept == [True, False, False, True, True]
  assert not list(directory.glob('.*.tmp'))
  # A side file that a full disk cut off is as good as none.
  side_file = shards[3].with_suffix('.json')
  side_file.write_bytes(side_file.read_bytes()[:100])
  assert build.main(arguments) == 0
  assert converted.manifest(directory) == manifest
  assert shards[3].stat().st_mtime_ns != after[3]
  # Another picture of the same name.
  Image.new('RGB', (WIDTH, HEIGHT)).save(images / PICTURE.name)
  assert build.main(arguments) == 0
  changed = [
      a['sha256'] != b['sha256']
      for a, b in zip(
          manifest['shards'], converted.manifest(directory)['shards']
      )
  ]
  assert sum(changed) == 1


def _mdetr(rows):
  """An MDETR file of (file name, image id, caption, bbox)."""
  return {
      'images': [
          {
              'id': number,
              'file_name': file_name,
              'height': HEIGHT,
              'width': WIDTH,
              'original_id': image_id,
              'caption': caption,
          }
          for number, (file_name, image_id, caption, _) in enumerate(rows)
      ],
      'annotations': [
          {
              'id': number,
              'image_id': number,
              'original_id': 100 + number,
              'category_id': 1,
              'bbox': bbox,
              'segmentation': [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0]],
              'tokens_positive': [],
          }
          for number, (*_, bbox) in enumerate(rows)
      ],
      'categories': [{'id': 1}],
  }


@pytest.fixture
def bad_pictures(tmp_path):
  """A folder with a good picture and one of each kind of bad one."""
  images = tmp_path / 'images'
  images.mkdir()
  good = PICTURE.read_bytes()
  (images / '000000000001.jpg').write_bytes(good)
  (images / '000000000002.jpg').write_bytes(good[: len(good) // 2])
  (images / '000000000003.jpg').write_bytes(b'')
  (images / '000000000004.jpg').write_text('<html>404</html>')
  Image.new('P', (8, 8)).save(images / 'gif.gif')
  (images / 'gif.gif').rename(images / '000000000005.jpg')
  turned = Image.new('RGB', (WIDTH, HEIGHT))
  exif = turned.getexif()
  exif[0x0112] = 6
  turned.save(images / '000000000007.jpg', exif=exif)
  return images


BAD_ROWS = [
    ('000000000001.jpg', 1, 'a dog', [10, 10, 50, 50]),
    ('000000000002.jpg', 2, 'a dog', [10, 10, 50, 50]),
    ('000000000003.jpg', 3, 'a dog', [10, 10, 50, 50]),
    ('000000000004.jpg', 4, 'a dog', [10, 10, 50, 50]),
    ('000000000005.jpg', 5, 'a dog', [1, 1, 5, 5]),
    ('000000000006.jpg', 6, 'a dog', [10, 10, 50, 50]),
    ('000000000007.jpg', 7, 'a dog', [10, 10, 50, 50]),
    ('000000000001.jpg', 1, 'outside', [700, 10, 50, 50]),
    ('000000000001.jpg', 1, 'no width', [10, 10, 0, 50]),
    ('000000000001.jpg', 1, 'not a number', [float('nan'), 10, 5, 50]),
    ('000000000001.jpg', 1, 'sticks out', [600, 400, 100, 100]),
    ('000000000001.jpg', 1, ' ?! ', [10, 10, 50, 50]),
]


def _build_rows(tmp_path, images, document, *arguments):
  file = tmp_path / 'rows.json'
  file.write_text(json.dumps(document))
  return build.main(
      [
          'refcoco',
          '--images',
          str(images),
          '--output',
          str(tmp_path / 'out'),
          '--split',
          f'train={file}',
          *arguments,
      ]
  )


def test_bad_input_is_reported_and_the_rest_converted(tmp_path, bad_pictures):
  assert _build_rows(tmp_path, bad_pictures, _mdetr(BAD_ROWS)) == 3
  directory = tmp_path / 'out' / 'train'
  converted.assert_adds_up(directory)
  notes = converted.notes(directory)
  reasons = {
      (n['level'], n['id']): n['reason']
      for n in notes
      if n['action'] == 'rejected'
  }
  assert (
      reasons.items()
      >= {
          ('image', '2'): 'image_truncated',
          ('image', '3'): 'image_empty',
          ('image', '4'): 'not_an_image',
          ('image', '5'): 'unsupported_format',
          ('image', '6'): 'image_missing',
          ('object', '107'): 'box_outside',
          ('object', '108'): 'empty_box',
          ('object', '109'): 'bad_box',
          ('expression', '7'): 'box_outside',
          ('expression', '11'): 'no_words',
      }.items()
  )
  others = {(n['id'], n['action'], n['reason']) for n in notes}
  assert ('110', 'repaired', 'box_clipped') in others
  assert ('7', 'noted', 'exif_turned') in others
  records = converted.records(directory)
  assert [r['image/id'].int64_list.value[0] for r in records] == [1, 7]
  clipped = np.reshape(records[0]['objects/bbox'].float_list.value, (-1, 4))[1]
  np.testing.assert_allclose(
      clipped, [400 / HEIGHT, 600 / WIDTH, 1.0, 1.0], rtol=1e-6
  )


def test_rows_that_are_none_or_lack_fields_are_rejected(tmp_path, bad_pictures):
  document = _mdetr(BAD_ROWS[:1] * 4)
  del document['images'][1]['file_name']
  document['images'][2]['original_id'] = 'x'
  document['annotations'][3]['image_id'] = 99
  document['images'].append(None)
  assert _build_rows(tmp_path, bad_pictures, document) == 3
  directory = tmp_path / 'out' / 'train'
  converted.assert_adds_up(directory)
  reasons = {n['id']: n['reason'] for n in converted.notes(directory)}
  assert reasons == {
      '1': 'missing_field',
      '2': 'bad_id',
      '3': 'no_target',
      'row 4': 'bad_row',
  }


def test_strict_fails_and_renames_nothing(tmp_path, bad_pictures, capsys):
  # The rows are fine, so only decoding the pictures shows the fault.
  document = _mdetr(BAD_ROWS[:2])
  assert _build_rows(tmp_path, bad_pictures, document, '--strict') == 1
  assert 'image_truncated' in capsys.readouterr().err
  assert not list((tmp_path / 'out' / 'train').iterdir())
  good = _mdetr(BAD_ROWS[:1])
  assert _build_rows(tmp_path, bad_pictures, good, '--strict') == 0
  files = {p.name for p in (tmp_path / 'out' / 'train').iterdir()}
  assert {'manifest.json', 'rejects.jsonl'} < files


def test_an_object_without_a_mask_is_kept_and_reported(tmp_path, bad_pictures):
  document = _mdetr(BAD_ROWS[:1])
  document['annotations'][0]['segmentation'] = {'size': [1, 2], 'counts': [2]}
  assert _build_rows(tmp_path, bad_pictures, document) == 0
  [note] = converted.notes(tmp_path / 'out' / 'train')
  assert (note['action'], note['reason']) == ('repaired', 'mask_size')
  [record] = converted.records(tmp_path / 'out' / 'train')
  assert record['objects/mask'].bytes_list.value == [b'']


@pytest.mark.parametrize(
    ('source', 'content', 'found'),
    [
        (
            'refcoco',
            {'images': [{'id': 1}], 'annotations': [{'bbox': []}]},
            'COCO instances',
        ),
        ('refcoco', {'train': [{'expressions': ['a']}]}, 'UNINEXT'),
        (
            'refcoco',
            {'timed_caption': [], 'traces': []},
            'Localized Narratives',
        ),
        ('ln', [{'conversations': []}], 'LLaVA conversations'),
        ('ln', _mdetr(BAD_ROWS[:1]), 'RefCOCO in MDETR layout'),
        (
            'ln',
            {'annotator_id': 1, 'caption': 'a', 'image_id': '1'},
            'no traces',
        ),
    ],
)
def test_a_file_of_the_wrong_kind_is_named(
    source, content, found, tmp_path, capsys
):
  file = tmp_path / 'file.json'
  file.write_text(json.dumps(content))
  arguments = ['--images', str(tmp_path), '--output', str(tmp_path / 'out')]
  assert build.main([source, *arguments, '--split', f'a={file}']) == 1
  message = capsys.readouterr().err
  assert 'expected' in message and found in message


def test_bad_narratives_are_reported_and_the_rest_converted(
    tmp_path, bad_pictures
):
  good = {
      'image_id': '1',
      'annotator_id': 1,
      'caption': 'A naïve 犬 🐕.',
      'timed_caption': [
          {'utterance': 'A naïve', 'start_time': 0.0, 'end_time': 1.0},
          {'utterance': '犬 🐕.', 'start_time': 1.0, 'end_time': 2.0},
      ],
      'traces': [
          [{'x': 0.5, 'y': 0.5, 't': 0.0}, {'x': 1.0, 'y': 1.2, 't': 2.0}]
      ],
  }
  nan = {'x': float('nan'), 'y': 0.1, 't': 1.0}
  lines = [
      good,
      good,
      {**good, 'annotator_id': 2, 'traces': []},
      {**good, 'annotator_id': 3, 'caption': '…'},
      {**good, 'annotator_id': 4, 'timed_caption': []},
      {**good, 'annotator_id': 5, 'traces': [[nan, *good['traces'][0]]]},
      {**good, 'annotator_id': 6, 'image_id': '2'},
      {**good, 'annotator_id': 7, 'image_id': '99'},
      {**good, 'annotator_id': 8, 'image_id': 'x'},
      {k: v for k, v in good.items() if k != 'traces'},
      {**good, 'annotator_id': 'y'},
      {**good, 'annotator_id': 10, 'caption': 'of "image_id": "7", a dog'},
  ]
  file = tmp_path / 'ln.jsonl'
  text = '\n'.join(json.dumps(line) for line in lines)
  # The second breaks off before its id, so that no picture is to blame.
  file.write_text(text + '\n\n{"image_id": "1", "capt\n{"image_id": "1\n[1]\n')
  status = build.main(
      [
          'ln',
          '--images',
          str(bad_pictures),
          '--output',
          str(tmp_path / 'out'),
          '--split',
          f'train={file}',
      ]
  )
  assert status == 3
  directory = tmp_path / 'out' / 'train'
  converted.assert_adds_up(directory)
  assert converted.manifest(directory)['counts']['narrative'] == {
      'read': 15,
      'written': 3,
      'rejected': 12,
      'repaired': 1,
      'noted': 1,
  }
  reasons = {
      n['id'].partition(':')[2]: n['reason']
      for n in converted.notes(directory)
      if (n['level'], n['action']) == ('narrative', 'rejected')
  }
  assert reasons == {
      '2': 'duplicate',
      '3': 'no_trace',
      '4': 'no_words',
      '5': 'no_utterances',
      '7': 'image_truncated',
      '8': 'image_missing',
      '9': 'bad_id',
      '10': 'missing_field',
      '11': 'bad_id',
      '14': 'bad_json',
      '15': 'bad_json',
      '16': 'bad_json',
  }
  [record] = converted.records(directory)
  captions = [c.decode() for c in record['caption/string'].bytes_list.value]
  assert captions == [good['caption']] * 2 + [lines[11]['caption']]


def test_real_traces_integrate_within_the_recorded_span(tmp_path):
  file = SAMPLE / 'real_traces/vidln_single_keyframe_localized_narratives.jsonl'
  images = tmp_path / 'images'
  images.mkdir()
  narratives = [json.loads(line) for line in file.read_text().splitlines()]
  for narrative in narratives:
    Image.new('RGB', (16, 12)).save(
        images / f'{int(narrative["image_id"]):012d}.jpg'
    )
  status = build.main(
      [
          'ln',
          '--images',
          str(images),
          '--output',
          str(tmp_path / 'out'),
          '--split',
          f'real={file}',
          '--shards',
          '1',
      ]
  )
  assert status == 0
  records = converted.records(tmp_path / 'out' / 'real')
  assert len(records) == 6
  for record, narrative in zip(records, narratives):
    xy = np.array([(p['x'], p['y']) for s in narrative['traces'] for p in s])
    points = np.reshape(record['caption/point'].float_list.value, (-1, 2))
    assert np.all(points >= xy.min(0) - 1e-6)
    assert np.all(points <= xy.max(0) + 1e-6)


def test_wrong_arguments_exit_with_2_and_name_the_value(tmp_path, capsys):
  for split in ('nofile', f'a={tmp_path}/none.json'):
    with pytest.raises(SystemExit) as error:
      build.main(
          ['ln', '--images', str(tmp_path), '--output', 'o', '--split', split]
      )
    assert error.value.code == 2
    assert split.rpartition('=')[2] in capsys.readouterr().err


def _run(*arguments, **environment):
  return subprocess.run(
      [sys.executable, *arguments],
      capture_output=True,
      text=True,
      cwd=REPOSITORY,
      env={**os.environ, **environment},
      check=True,
  )


def test_converting_does_not_import_tensorflow():
  shown = _run('-X', 'importtime', '-m', 'tasks.build', 'refcoco', '--help')
  assert 'NAME=FILE' in shown.stdout
  assert 'tasks.build.shards' in shown.stderr
  assert 'tensorflow' not in shown.stderr


def test_the_sample_is_small_and_every_picture_may_be_shown():
  rows = [
      line.split('\t')
      for line in (SAMPLE / 'LICENSES.tsv').read_text().splitlines()
  ]
  header, rows = rows[0], rows[1:]
  table = {row[0]: dict(zip(header, row)) for row in rows}
  pictures = {str(p.relative_to(SAMPLE)) for p in SAMPLE.rglob('*.jp*g')} | {
      str(p.relative_to(SAMPLE)) for p in SAMPLE.rglob('*.png')
  }
  assert pictures == set(table)
  for name, row in table.items():
    digest = hashlib.sha256((SAMPLE / name).read_bytes()).hexdigest()
    assert digest == row['sha256'], name
    assert row['licence_id'] in ('4', '5', '7'), name
    assert row['licence_url'].startswith('http'), name
    assert 'flickr' in row['flickr_url'], name
  shipped = [SAMPLE, pathlib.Path(SAMPLE.parent / 'assets')]
  size = sum(
      p.stat().st_size
      for root in shipped
      for p in root.rglob('*')
      if p.is_file()
  )
  assert size <= 12 * 2**20
