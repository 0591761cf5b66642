"""RefCOCO-like lists of UNINEXT, sample and hazards."""

import json
import pathlib

import converted
import numpy as np
import pytest

from tasks.build import __main__ as build

REPOSITORY = pathlib.Path(__file__).parents[3]
SAMPLE = REPOSITORY / 'tasks' / 'sample'
MIXED = SAMPLE / 'uninext' / 'mixed_instances.json'
IMAGES = [str(SAMPLE / n) for n in ('train2017', 'train2014', 'VG_100K')]


def _build(output, split, *arguments):
  return build.main(
      [
          'uninext',
          '--images',
          *IMAGES,
          '--output',
          str(output),
          '--split',
          split,
          '--shards',
          '2',
          *arguments,
      ]
  )


def _objects(directory):
  """Object id to (box in pixels x y w h, expressions, has a mask)."""
  found = {}
  for record in converted.records(directory):
    height = record['image/height'].int64_list.value[0]
    width = record['image/width'].int64_list.value[0]
    boxes = np.reshape(record['objects/bbox'].float_list.value, (-1, 4))
    prefix = 'objects/refexp/sent/ragged'
    lengths = record[f'{prefix}_row_lengths_0'].int64_list.value
    sents = iter(converted.texts(record, f'{prefix}_flat_values'))
    masks = record['objects/mask'].bytes_list.value
    ids = record['objects/id'].int64_list.value
    for object_id, box, length, mask in zip(ids, boxes, lengths, masks):
      y0, x0, y1, x1 = box * [height, width, height, width]
      expressions = [next(sents) for _ in range(length)]
      xywh = [x0, y0, x1 - x0, y1 - y0]
      found[object_id] = (xywh, expressions, bool(mask))
  return found


@pytest.mark.parametrize('source', ['coco', 'vg'])
def test_sample_keeps_every_object_of_a_source(source, tmp_path):
  split = f'{source}={MIXED}#train'
  assert _build(tmp_path, split, '--data_source', source) == 0
  directory = tmp_path / source
  converted.assert_adds_up(directory)
  rows = json.loads(MIXED.read_text())['train']
  found = _objects(directory)
  assert set(found) == {
      n for n, row in enumerate(rows) if row['data_source'] == source
  }
  for number, (xywh, expressions, has_mask) in found.items():
    row = rows[number]
    np.testing.assert_allclose(xywh, row['bbox'], atol=1e-2)
    assert expressions == [' '.join(e.split()) for e in row['expressions']]
    assert has_mask == ('mask' in row)
  # Boxes-only rows are no fault.
  assert not [n for n in converted.notes(directory) if 'mask' in n['reason']]


def test_bad_rows_are_reported_and_keep_the_numbers_of_the_others(tmp_path):
  good = {
      'bbox': [10, 10, 50, 50],
      'image_id': 173350,
      'height': 480,
      'width': 640,
      'expressions': ['dog', ' black  dog '],
  }
  rows = [
      good,
      'nothing',
      {**good, 'bbox': [1, 2, 3]},
      {**good, 'image_id': None},
      {**good, 'expressions': 'dog'},
      {**good, 'expressions': ['?!', 'cat']},
      {**good, 'expressions': ['...']},
      {**good, 'data_source': 'web'},
      {**good, 'bbox': [700, 10, 50, 50]},
      {**good, 'image_id': 5},
  ]
  file = tmp_path / 'instances.json'
  file.write_text(json.dumps({'train': rows, 'val': [good]}))
  assert _build(tmp_path, f'train={file}#train') == 3
  directory = tmp_path / 'train'
  converted.assert_adds_up(directory)
  name = f'{file.name} row'
  assert converted.reasons(directory, 'object') == {
      f'{name} 1': 'bad_row',
      f'{name} 2': 'missing_field',
      f'{name} 3': 'bad_id',
      f'{name} 4': 'missing_field',
      f'{name} 6': 'no_expression_left',
      f'{name} 7': 'bad_field',
      '8': 'box_outside',
      '9': 'image_missing',
  }
  assert converted.reasons(directory, 'object', 'noted') == {
      '5': 'box_repeated',
  }
  found = _objects(directory)
  assert {k: v[1] for k, v in found.items()} == {
      0: ['dog', 'black dog'],
      5: ['cat'],
  }


def test_a_part_that_is_not_there_is_named_with_those_that_are(
    tmp_path, capsys
):
  assert _build(tmp_path, f'val={MIXED}#val') == 1
  message = capsys.readouterr().err
  assert "name one of ['train']" in message
