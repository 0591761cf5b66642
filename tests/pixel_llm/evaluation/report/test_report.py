"""The report as a whole."""

import base64
import html.parser
import io
import json
import re

import numpy as np
from PIL import Image
import pytest

from pixel_llm.evaluation import masks as masks_lib
from pixel_llm.evaluation.report import __main__ as report
from pixel_llm.evaluation.report import credits as credits_lib
from pixel_llm.evaluation.report import pictures
from pixel_llm.evaluation.report import samples

# pycocotools 2.0.11 still has the __array__ of NumPy 1.
pytestmark = pytest.mark.filterwarnings(
    'ignore:__array__ implementation:DeprecationWarning'
)
_VOID = {'meta', 'br', 'img'}


class _Page(html.parser.HTMLParser):
  """Collects elements and checks that they close in order."""

  def __init__(self, text):
    super().__init__()
    self.elements = []
    self.texts = []
    self._open = []
    self.feed(text)
    assert self._open == []

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    if tag not in _VOID:
      self._open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self._open.pop() == tag

  def handle_data(self, data):
    self.texts.append(data)

  def all(self, tag, css_class=None):
    return [
        attrs
        for name, attrs in self.elements
        if name == tag and css_class in (None, attrs.get('class'))
    ]

  @property
  def text(self):
    return ' '.join(' '.join(self.texts).split())


def _mask(left, right):
  mask = np.zeros((48, 64), bool)
  mask[10:30, left:right] = True
  return masks_lib.encode_mask(mask)


def _refseg_row(number, bbox, file_name='a.jpg', text='the dog', **fields):
  return {
      'image_id': '1',
      'file_name': file_name,
      'height': 48,
      'width': 64,
      'prompt_id': str(number),
      'score': -1.0,
      'bbox': bbox,
      'segmentation': bbox and _mask(10, 20),
      'caption': text,
      'truth': {
          'text': text,
          'bbox': [10, 10, 20, 20],
          'segmentation': _mask(10, 30),
      },
  } | fields


_TRACE_ROW = {
    'image_id': '1',
    'file_name': 'a.jpg',
    'height': 48,
    'width': 64,
    'prompt_id': 'n',
    'caption': 'a <b>surfer</b>',
    'trace': [
        {'word': 'a', 'bbox': None},
        {'word': '<b>surfer</b>', 'bbox': [1.0, 2.0, 30.0, 4.0]},
    ],
    'trace_l1': 0.125,
    'truth': {
        'text': 'a dog',
        'trace': [
            {'word': 'a', 'bbox': [1.0, 2.0, 3.0, 4.0]},
            {'word': 'dog', 'bbox': [5.0, 6.0, 7.0, 8.0]},
        ],
    },
}


@pytest.fixture(name='run')
def _run(tmp_path):
  folder = tmp_path / 'my_run'
  (folder / 'train').mkdir(parents=True)
  (folder / 'train-metrics.jsonl').write_text(
      '{"step": 1, "loss": 2.0, "timing/seconds": 9}\n{"step": 2, "loss": 1}\n'
  )
  (folder / 'config.gin').write_text('LEARNING_RATE = 1e-3  # <low>\n')
  evaluation = folder / 'inference_eval'
  evaluation.mkdir()
  (evaluation / 'seg-metrics.jsonl').write_text('{"step": 2, "iou": 0.625}\n')
  rows = [
      _refseg_row(0, [10, 10, 20, 20]),
      _refseg_row(1, None),
      _refseg_row(2, [12, 10, 20, 20], text='x <script>&'),
      _refseg_row(3, [40, 10, 20, 20], file_name='lost.jpg', caption='the cat'),
  ]
  (evaluation / 'seg-predictions-000002.json').write_text(json.dumps(rows))
  (evaluation / 'trace-predictions-000002.json').write_text(
      json.dumps([_TRACE_ROW])
  )
  images = tmp_path / 'images'
  images.mkdir()
  Image.new('RGB', (64, 48), (10, 200, 30)).save(images / 'a.jpg')
  (tmp_path / 'LICENSES.tsv').write_text(
      'file\tlicence\tlicence_url\tflickr_url\n'
      'sample/a.jpg\tCC BY\thttp://cc/by\thttp://flickr/1\n'
  )
  return folder


def _report(run, *options):
  output = run.parent / 'out' / 'report.html'
  report.main(
      [
          f'--model_dir={run}',
          f'--image_dir={run.parent / "images"}',
          f'--output={output}',
          *options,
      ]
  )
  return output.read_text(encoding='utf-8')


def test_the_page_is_well_formed_and_needs_nothing_else(run):
  text = _report(run)
  page = _Page(text)
  assert not page.all('script') and not page.all('link')
  for _, attrs in page.elements:
    for name in ('src', 'href'):
      address = attrs.get(name, '#')
      # Only a reader's click leaves the page.
      assert address.startswith(('#', 'data:')) or attrs['href'] in (
          'http://cc/by',
          'http://flickr/1',
      )
  assert 'url(' not in text


def test_every_drawing_has_a_description(run):
  page = _Page(_report(run))
  drawings = [a for a in page.all('svg') if a.get('aria-hidden') != 'true']
  assert len(drawings) == 4 + 2 + 3
  assert all(a['role'] == 'img' and a['aria-label'] for a in drawings)
  labels = [a['aria-label'] for a in page.all('svg', 'picture')]
  assert any('predicted box with IoU 0.82' in label for label in labels)


def test_a_picture_is_inlined_once_and_used_often(run):
  page = _Page(_report(run))
  stored = [a for a in page.all('image') if 'id' in a]
  assert len(stored) == 1
  kind, data = stored[0]['href'].split(',')
  assert kind == 'data:image/jpeg;base64'
  with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
    assert picture.size == (64, 48)
  assert [a['href'] for a in page.all('use')] == ['#picture0'] * 5


def test_what_others_wrote_is_text_not_markup(run):
  page = _Page(_report(run))
  assert not page.all('b')
  assert '“x <script>&”' in page.text
  assert '<b>surfer</b>' in page.text
  assert 'LEARNING_RATE = 1e-3 # <low>' in page.text


def test_the_worst_samples_come_first_or_last(run):
  numbers = {
      order: re.findall(r'prompt (\d)', _report(run, f'--order={order}'))
      for order in samples.ORDERS
  }
  assert numbers == {
      'worst': ['1', '3', '2', '0'],
      'best': ['0', '2', '3', '1'],
      'file': ['0', '1', '2', '3'],
  }


def test_only_so_many_samples_are_shown_but_all_are_counted(run):
  page = _Page(_report(run, '--max_samples=2'))
  assert '2 of 4 prompts, worst first.' in page.text
  assert (
      '2 of 4 boxes have an IoU above 0.5; 1 prompts got no box.' in page.text
  )


def test_detections_are_drawn_though_they_have_no_truth(run):
  row = _refseg_row(0, [12, 10, 20, 20], caption='a <i>found</i> dog')
  del row['truth'], row['segmentation']
  row |= {'prompt_id': 'detection 0', 'detection_score': 0.75}
  (run / 'inference_eval/vg-predictions-000002.json').write_text(
      json.dumps([row, row | {'bbox': None}])
  )
  page = _Page(_report(run))
  assert page.text.count('“a <i>found</i> dog” score 0.75') == 2
  assert 'my_run' in page.text and '2 of 2 prompts' in page.text


def test_missing_pictures_are_listed(run):
  page = _Page(_report(run))
  assert 'Picture lost.jpg: in none of the folders.' in page.text
  assert 'picture not found' in page.text


def test_broken_pictures_are_listed(run):
  (run.parent / 'images' / 'lost.jpg').write_bytes(b'<html>404</html>')
  page = _Page(_report(run))
  assert 'Picture lost.jpg: could not be read' in page.text


def test_credits_metrics_and_captions_are_told(run):
  page = _Page(_report(run))
  assert 'a.jpg: CC BY , http://flickr/1' in page.text
  assert 'iou 0.625 at 2' in page.text
  assert 'the model wrote: “the cat”' in page.text
  assert '1 other curve' in page.text


def test_a_word_has_one_colour_in_caption_and_picture(run):
  page = _Page(_report(run))
  strokes = [a['stroke'] for a in page.all('rect', 'word')]
  chips = [a['style'] for a in page.all('span') if 'style' in a]
  assert len(strokes) == 3
  assert chips == [f'background:{color}' for color in strokes]


def test_several_runs_share_table_and_charts(run):
  second = run.parent / 'second'
  second.mkdir()
  (second / 'seg-metrics.jsonl').write_text('{"step": 4, "other": 1}\n')
  page = _Page(_report(run, f'--model_dir={second}'))
  heads = [a for a in page.all('th') if a.get('scope') == 'col']
  assert len(heads) == 3
  assert 'iou 0.625 at 2 –' in page.text
  assert 'my_run: seg, step 2' in page.text


def test_a_predicted_mask_is_tinted_inside_and_opaque_at_its_edge():
  mask = np.zeros((40, 60), bool)
  mask[10:30, 20:50] = True
  layer = pictures.mask_layer(
      masks_lib.encode_mask(mask), 60, 40, pictures.PREDICTED_RGB, 90
  )
  data = re.search(r'base64,([^"]+)"', layer)[1]
  with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
    pixels = np.asarray(picture.convert('RGBA'))
  assert pixels.shape == (40, 60, 4)
  assert pixels[20, 35].tolist() == [255, 140, 0, 90]
  assert pixels[10, 35].tolist() == [255, 140, 0, 255]
  np.testing.assert_array_equal(pixels[..., 3] > 0, mask)


def test_scores_of_a_row():
  sample = samples.score_row(_refseg_row(0, [10, 10, 20, 10]))
  assert sample.box_iou == pytest.approx(0.5)
  assert sample.is_right is False
  assert sample.mask_iou == pytest.approx(0.5)
  no_box = samples.score_row(_refseg_row(0, None))
  assert (no_box.box_iou, no_box.mask_iou) == (0, 0)
  assert no_box.badness > sample.badness
  assert samples.score_row(_TRACE_ROW).box_iou is None


def test_credits_without_file_names_are_an_error(tmp_path):
  (tmp_path / 'LICENSES.tsv').write_text('name\tlicence\nx\ty\n')
  with pytest.raises(ValueError, match=r"columns are \['name', 'licence'\]"):
    credits_lib.read_credits([tmp_path / 'LICENSES.tsv'])


def test_a_folder_that_is_not_there_is_an_error():
  with pytest.raises(FileNotFoundError, match='--image_dir=/nowhere'):
    pictures.PictureStore(['/nowhere'])
