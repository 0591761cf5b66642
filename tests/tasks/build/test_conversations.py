"""LLaVA conversations, sample and hazards."""

import io
import json
import pathlib
import shutil

import converted
import numpy as np
from PIL import Image
import pytest

from tasks.build import __main__ as build

REPOSITORY = pathlib.Path(__file__).parents[3]
SAMPLE = REPOSITORY / 'tasks' / 'sample'
HAZARDS = REPOSITORY / 'tests' / 'data' / 'hazards'


def _build(output, images, file, *arguments):
  return build.main(
      [
          'llava',
          '--images',
          str(images),
          '--output',
          str(output),
          '--split',
          f'train={file}',
          '--shards',
          '2',
          *arguments,
      ]
  )


def test_sample_keeps_every_turn_and_counts_text_only_rows(tmp_path):
  file = SAMPLE / 'llava' / 'llava_v1_5_mix665k.json'
  assert _build(tmp_path, SAMPLE, file) == 3
  directory = tmp_path / 'train'
  converted.assert_adds_up(directory, 'row')
  rows = json.loads(file.read_text())
  with_picture = [row for row in rows if row.get('image')]
  counts = converted.manifest(directory)['counts']
  assert counts['text_only_row']['read'] == len(rows) - len(with_picture) > 0
  assert counts['row']['written'] == len(with_picture)
  for record, row in zip(converted.records(directory), with_picture):
    turns = row['conversations']
    assert converted.texts(record, 'conversations/human') == [
        turn['value'] for turn in turns[::2]
    ]
    assert converted.texts(record, 'conversations/agent') == [
        turn['value'] for turn in turns[1::2]
    ]
    picture = (SAMPLE / row['image']).read_bytes()
    assert record['image/encoded'].bytes_list.value[0] == picture


@pytest.fixture(scope='module')
def hazards(tmp_path_factory):
  """All hazards, converted: row number to record, and the folder."""
  root = tmp_path_factory.mktemp('llava')
  images = root / 'images'
  shutil.copytree(HAZARDS / 'images', images / 'hazards' / 'images')
  (images / 'coco' / 'train2017').mkdir(parents=True)
  shutil.copy(SAMPLE / 'train2017/000000196393.jpg', images / 'coco/train2017')
  assert _build(root, images, HAZARDS / 'llava_hazards.json') == 3
  directory = root / 'train'
  records = {
      record['row'].int64_list.value[0]: record
      for record in converted.records(directory)
  }
  return records, directory


def test_every_hazard_is_reported_with_its_reason(hazards):
  records, directory = hazards
  converted.assert_adds_up(directory, 'row')
  assert converted.reasons(directory, 'row') == {
      'row 9': 'image_truncated',
      'row 10': 'image_empty',
      'row 11': 'not_an_image',
      'row 15': 'image_missing',
      'row 25': 'no_conversation',
      'row 26': 'no_conversation',
      'row 32': 'path_outside',
      'row 33': 'bad_field',
  }
  assert set(converted.reasons(directory, 'text_only_row')) == {
      f'row {number}' for number in (16, 17, 18)
  }
  assert (
      converted.reasons(directory, 'row', 'repaired').items()
      >= {
          'row 0': 'picture_reencoded',
          'row 1': 'picture_reencoded',
          'row 2': 'picture_reencoded',
          'row 3': 'picture_reencoded',
          'row 5': 'picture_reencoded',
          'row 6': 'picture_reencoded',
          'row 7': 'picture_reencoded',
          'row 22': 'answer_dropped',
          'row 23': 'question_dropped',
          'row 24': 'question_dropped',
          'row 27': 'turn_dropped',
      }.items()
  )
  assert len(records) == 34 - 8 - 3


def test_turns_without_a_partner_leave_the_others_paired(hazards):
  records, _ = hazards
  for row in (22, 23, 24, 27):
    human = converted.texts(records[row], 'conversations/human')
    agent = converted.texts(records[row], 'conversations/agent')
    assert agent == ['A cat.'], row
    assert len(human) == 1 and 'What is this?' in human[0], row
  assert converted.texts(records[28], 'image/id') == ['196393']
  assert converted.texts(records[29], 'image/id') == ['row 29']


def test_other_formats_become_jpeg_of_the_same_picture(hazards):
  records, _ = hazards
  names = {
      0: 'png_named.jpg',
      1: 'gif_named.jpg',
      2: 'webp_named.jpg',
      3: 'cmyk.jpg',
      5: 'rgba.png',
      6: 'palette.png',
      7: 'gray16.png',
  }
  for row, name in names.items():
    encoded = records[row]['image/encoded'].bytes_list.value[0]
    picture = Image.open(io.BytesIO(encoded))
    assert picture.format == 'JPEG' and picture.mode in ('L', 'RGB'), name
    source = Image.open(io.BytesIO((HAZARDS / 'images' / name).read_bytes()))
    assert picture.size == source.size, name
    if source.mode.startswith('I'):
      wanted = np.asarray(source).astype(float) / 257
      found = np.asarray(picture.convert('L'), float)
    else:
      if source.has_transparency_data:
        rgba = np.asarray(source.convert('RGBA'), float)
        alpha = rgba[..., 3:] / 255
        wanted = rgba[..., :3] * alpha + 255 * (1 - alpha)
      else:
        wanted = np.asarray(source.convert('RGB'), float)
      found = np.asarray(picture.convert('RGB'), float)
    assert np.abs(found - wanted).mean() < 3.0, name
