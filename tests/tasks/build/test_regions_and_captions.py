"""Visual Genome regions and COCO captions, sample and hazards."""

import json
import pathlib
import shutil

import converted
import numpy as np
import pytest

from tasks.build import __main__ as build

REPOSITORY = pathlib.Path(__file__).parents[3]
SAMPLE = REPOSITORY / 'tasks' / 'sample'
HAZARDS = REPOSITORY / 'tests' / 'data' / 'hazards'
IMAGES = [str(SAMPLE / n) for n in ('train2017', 'val2017', 'train2014')]


def _build(source, output, split, *arguments, images=IMAGES):
  return build.main(
      [
          source,
          '--images',
          *images,
          '--output',
          str(output),
          '--split',
          split,
          *arguments,
      ]
  )


def test_vg_sample_keeps_every_region_with_its_box(tmp_path):
  for split in ('train', 'test'):
    file = SAMPLE / 'vg' / f'{split}.json'
    assert _build('vg', tmp_path, f'{split}={file}', '--shards', '2') == 0
    converted.assert_adds_up(tmp_path / split)
    document = json.loads(file.read_text())
    truth = {a['id']: a for a in document['annotations']}
    seen = set()
    for record in converted.records(tmp_path / split):
      height = record['image/height'].int64_list.value[0]
      width = record['image/width'].int64_list.value[0]
      found = np.reshape(record['regions/bbox'].float_list.value, (-1, 4))
      ids = record['regions/id'].int64_list.value
      phrases = converted.texts(record, 'regions/phrase')
      assert len(ids) == len(found) == len(phrases)
      for region_id, box, phrase in zip(ids, found, phrases):
        y0, x0, y1, x1 = box * [height, width, height, width]
        annotation = truth[region_id]
        assert annotation['image_id'] == record['img_id'].int64_list.value[0]
        assert annotation['caption'] == phrase
        np.testing.assert_allclose(
            [x0, y0, x1 - x0, y1 - y0], annotation['bbox'], atol=1e-3
        )
        seen.add(region_id)
    assert seen == set(truth)


def test_every_hazard_of_vg_is_reported_with_its_reason(tmp_path):
  file = HAZARDS / 'vg_hazards.json'
  assert _build('vg', tmp_path, f'train={file}') == 3
  directory = tmp_path / 'train'
  converted.assert_adds_up(directory)
  first = 9900000
  annotations = json.loads(file.read_text())['annotations']
  doubled = str(annotations[18]['id'])
  assert converted.reasons(directory, 'region') == {
      str(first + 3): 'empty_box',
      str(first + 4): 'empty_box',
      str(first + 5): 'empty_box',
      str(first + 6): 'box_outside',
      str(first + 8): 'no_words',
      str(first + 9): 'no_words',
      str(first + 16): 'crowd',
      str(first + 17): 'no_image',
      doubled: 'duplicate_id',
  }
  assert converted.reasons(directory, 'region', 'repaired') == {
      str(first + 1): 'box_clipped',
      str(first + 2): 'box_clipped',
  }
  assert converted.reasons(directory, 'image') == {
      '555705': 'no_region_left',
      '777': 'image_missing',
  }
  [record] = converted.records(directory)
  phrases = converted.texts(record, 'regions/phrase')
  assert all(phrase == ' '.join(phrase.split()) for phrase in phrases)
  boxes = np.reshape(record['regions/bbox'].float_list.value, (-1, 4))
  assert boxes.min() >= 0 and boxes.max() <= 1
  assert np.all(boxes[:, 2:] > boxes[:, :2])


def test_coco_captions_sample_keeps_every_caption(tmp_path):
  file = SAMPLE / 'coco_captions' / 'captions_train2017.json'
  assert _build('coco_captions', tmp_path, f'train={file}') == 0
  converted.assert_adds_up(tmp_path / 'train')
  truth = {
      a['id']: ' '.join(a['caption'].split())
      for a in json.loads(file.read_text())['annotations']
  }
  found = {}
  for record in converted.records(tmp_path / 'train'):
    ids = record['caption/id'].int64_list.value
    found.update(zip(ids, converted.texts(record, 'caption/string')))
  assert found == truth


def test_bad_captions_are_reported(tmp_path):
  document = {
      'images': [{'id': 60623}, {'id': 60623}, {'id': 1}, {}, {'id': 107438}],
      'annotations': [
          {'id': 1, 'image_id': 60623, 'caption': ' A dish.\nWith rice '},
          {'id': 1, 'image_id': 60623, 'caption': 'again'},
          {'id': 2, 'image_id': 60623, 'caption': ' \n'},
          {'id': 3, 'image_id': 9, 'caption': 'nowhere'},
          {'id': 4, 'image_id': 1, 'caption': 'no file'},
          {'image_id': 60623, 'caption': 'no id'},
      ],
  }
  file = tmp_path / 'captions.json'
  file.write_text(json.dumps(document))
  assert _build('coco_captions', tmp_path, f'train={file}') == 3
  directory = tmp_path / 'train'
  converted.assert_adds_up(directory)
  assert converted.reasons(directory, 'caption') == {
      '1': 'duplicate_id',
      '2': 'no_words',
      '3': 'no_image',
      '4': 'image_missing',
      'caption 5': 'bad_id',
  }
  assert converted.reasons(directory, 'image') == {
      '60623': 'duplicate_id',
      '1': 'image_missing',
      'row 3': 'bad_id',
      '107438': 'no_caption_left',
  }
  [record] = converted.records(directory)
  assert converted.texts(record, 'caption/string') == ['A dish. With rice']


@pytest.mark.parametrize(
    ('part', 'ids'),
    [('val', [107438]), ('train+restval', [60623, 173350]), ('', None)],
)
def test_karpathys_parts_are_chosen_by_name(part, ids, tmp_path):
  rows = (('train', 60623), ('restval', 173350), ('val', 107438))
  document = {
      'dataset': 'coco',
      'images': [
          {
              'split': split,
              'cocoid': image_id,
              'sentences': [{'sentid': image_id, 'raw': f'A {split} thing.'}],
          }
          for split, image_id in rows
      ],
  }
  file = tmp_path / 'dataset_coco.json'
  file.write_text(json.dumps(document))
  split = f'x={file}#{part}' if part else f'x={file}'
  assert _build('coco_captions', tmp_path, split) == 0
  found = [
      record['image/id'].int64_list.value[0]
      for record in converted.records(tmp_path / 'x')
  ]
  assert found == (ids or [60623, 107438, 173350])


def test_a_grayscale_picture_keeps_its_bytes(tmp_path):
  images = tmp_path / 'images'
  images.mkdir()
  gray = HAZARDS / 'images' / 'grayscale.jpg'
  shutil.copy(gray, images / '000000000001.jpg')
  file = tmp_path / 'captions.json'
  file.write_text(
      json.dumps(
          {
              'images': [{'id': 1}],
              'annotations': [{'id': 1, 'image_id': 1, 'caption': 'gray'}],
          }
      )
  )
  split = f'train={file}'
  assert _build('coco_captions', tmp_path, split, images=[str(images)]) == 0
  [record] = converted.records(tmp_path / 'train')
  assert record['image'].bytes_list.value[0] == gray.read_bytes()
