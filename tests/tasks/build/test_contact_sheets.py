"""Contact sheets show what the records hold, where they hold it."""

import base64
import io
import re

import numpy as np
from PIL import Image
import pytest

from tasks.build import __main__ as build
from tasks.build import drawings
from tasks.build import records

WIDTH, HEIGHT = 40, 20
WHITE = (255, 255, 255)


def _png(pixels):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'PNG')
  return file.getvalue()


def _drawn(*places, width=WIDTH):
  white = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
  record = records.Record('1', _png(white), HEIGHT, WIDTH, list(places))
  return np.asarray(drawings.draw(record, width)).astype(int)


def test_boxes_are_drawn_on_their_edges():
  drawn = _drawn(
      records.Place(['a'], np.array([0.25, 0.25, 0.75, 0.75])),
      records.Place(['b'], np.array([0.0, 0.0, 0.1, 0.1])),
  )
  for y, x in ((5, 10), (5, 20), (15, 30), (10, 10), (10, 30)):
    assert tuple(drawn[y, x]) == drawings.place_color(0), (y, x)
  assert tuple(drawn[0, 0]) == drawings.place_color(1)
  assert tuple(drawn[10, 20]) == WHITE  # Inside.
  assert tuple(drawn[18, 35]) == WHITE  # Outside.


def test_a_mask_colours_its_pixels_and_no_other():
  mask = np.zeros((HEIGHT, WIDTH), np.uint8)
  mask[4:9, 7:20] = 255
  place = records.Place(['a'], None, _png(mask), b'')
  tinted = np.any(_drawn(place) != 255, axis=-1)
  np.testing.assert_array_equal(tinted, mask > 0)


def test_a_trace_passes_through_its_points_and_scales_with_the_drawing():
  points = np.zeros((2, 16, 2))
  points[0] = np.stack([np.linspace(0.1, 0.4, 16), np.full(16, 0.5)], -1)
  points[1] = [0.9, 2.0]  # Below the picture.
  centers = np.array([[0.25, 0.5], [0.9, 2.0]])
  trace = records.Trace(['a', 'b'], centers, points)
  drawn = _drawn(records.Place(['a b'], trace=trace), width=4 * WIDTH)
  assert drawn.shape == (4 * HEIGHT, 4 * WIDTH, 3)
  for x in (16, 40, 62):
    assert tuple(drawn[40, x]) == drawings.utterance_color(0, 2)
  assert np.all(drawn[70:] == 255)


def test_a_page_holds_its_pictures_and_texts_itself(built_sample, tmp_path):
  arguments = ['show', str(built_sample / 'sample'), '--count', '6', '--seed']
  output = tmp_path / 'sheet.html'
  assert build.main([*arguments, '1', '--output', str(output)]) == 0
  text = output.read_text()
  pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
  assert len(pictures) == 6
  for picture in pictures:
    Image.open(io.BytesIO(base64.b64decode(picture))).load()
  assert not re.search(r'(src|href)="(?!data:)', text)
  again, other = tmp_path / 'again.html', tmp_path / 'other.html'
  build.main([*arguments, '1', '--output', str(again)])
  build.main([*arguments, '2', '--output', str(other)])
  assert again.read_text() == text != other.read_text()


def test_records_are_shown_by_their_ids(built_sample, tmp_path, capsys):
  ln = str(built_sample / 'sample' / 'ln')
  output = tmp_path / 'sheet.png'
  arguments = ['show', ln, '--output', str(output)]
  assert build.main([*arguments, '--id', '173350']) == 0
  with Image.open(output) as picture:
    assert picture.width < 500  # One column.
  assert build.main([*arguments, '--id', '17']) == 1
  assert "['17']" in capsys.readouterr().err


@pytest.mark.parametrize(
    'wrong', [['--output', 'x.gif'], ['--output', 'x.png', '--count', '0']]
)
def test_wrong_arguments_exit_with_2(wrong, built_sample, capsys):
  with pytest.raises(SystemExit) as error:
    build.main(['show', str(built_sample), *wrong])
  assert error.value.code == 2
  assert wrong[-1] in capsys.readouterr().err
