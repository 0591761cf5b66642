"""Contact sheets of built sets: one self-contained HTML page, or one PNG."""

import base64
from collections.abc import Sequence
import dataclasses
import html
import io
import pathlib
import random
import textwrap

from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont

from tasks.build import built_sets
from tasks.build import drawings
from tasks.build import records

WIDTH = 400
_COLUMNS = 4
_MARGIN = 12
_FONT_SIZE = 14
_LINE_HEIGHT = 18
# Letters of the font that fit beside each other in a drawing's width.
_LETTERS = 52
_MOST_LINES = 12
_INK, _PAPER = (34, 34, 34), (255, 255, 255)

_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 24px; color: #222; }
main { display: grid; gap: 20px;
  grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); }
figure { margin: 0; } img { width: 100%; height: auto; }
figcaption b { display: block; }
i { display: inline-block; width: .8em; height: .8em; margin-right: .4em; }
ul { margin: 4px 0; padding: 0; list-style: none; }
"""


@dataclasses.dataclass(frozen=True)
class Cell:
  """A record and where it stands.

  Attributes:
    split: the folder.
    shard: name of the file.
    number: in the shard.
    record: as read.
  """

  split: pathlib.Path
  shard: str
  number: int
  record: records.Record

  @property
  def title(self) -> str:
    """Split, id and place of the record."""
    return (
        f'{self.split.parent.name}/{self.split.name} id {self.record.name}'
        f' ({self.shard} record {self.number})'
    )


def choose(
    directory: pathlib.Path, count: int, seed: int, names: Sequence[str] = ()
) -> list[Cell]:
  """Draws records from the splits in a folder, the same for the same seed.

  Args:
    directory: of a split, or of sets of them.
    count: how many, fewer where there are fewer.
    seed: of the draw.
    names: takes the records with these ids instead.

  Returns:
    The records, in the order of the shards.

  Raises:
    BuiltSetError: if there is no finished split, or none has an id.
  """
  places = [
      (split, row['file'], number)
      for split in built_sets.find_splits(directory)
      for row in built_sets.read_manifest(split)['shards']
      for number in range(row['num_records'])
  ]
  if not names:
    chosen = random.Random(seed).sample(range(len(places)), min(count, len(places)))
    places = [places[index] for index in sorted(chosen)]
  cells = []
  for split, shard, number in places:
    with built_sets.open_shard(split / shard) as read:
      record = records.parse(read(number))
    if not names or record.name in names:
      cells.append(Cell(split, shard, number, record))
  missing = sorted(set(names) - {cell.record.name for cell in cells})
  if missing:
    raise built_sets.BuiltSetError(f'{directory}: no record has id {missing}')
  return cells


def page(cells: Sequence[Cell]) -> str:
  """Returns an HTML page that holds its pictures itself."""
  figures = '\n'.join(map(_figure, cells))
  return (
      '<!doctype html>\n<html lang="en"><meta charset="utf-8">\n'
      f'<title>{len(cells)} records</title>\n<style>{_STYLE}</style>\n'
      f'<main>\n{figures}\n</main></html>\n'
  )


def _figure(cell: Cell) -> str:
  jpeg = io.BytesIO()
  drawings.draw(cell.record, WIDTH).save(jpeg, 'JPEG', quality=88)
  data = base64.b64encode(jpeg.getvalue()).decode('ascii')
  places = ''.join(
      f'<li>{_chip(number, place)}{line}</li>'
      for number, place in enumerate(cell.record.places)
      for line in _lines(place)
  )
  title = html.escape(cell.title)
  return (
      f'<figure><img alt="{title}" src="data:image/jpeg;base64,{data}">'
      f'<figcaption><b>{title}</b><ul>{places}</ul></figcaption></figure>'
  )


def _lines(place: records.Place) -> list[str]:
  """The texts; of a narrative, its utterances in the colours of their trace."""
  if place.trace is None:
    return [html.escape(text) for text in place.texts]
  utterances = place.trace.utterances
  spans = (
      f'<span style="border-bottom: 3px solid rgb{color}">'
      f'{html.escape(utterance)}</span>'
      for utterance, color in (
          (utterance, drawings.utterance_color(number, len(utterances)))
          for number, utterance in enumerate(utterances)
      )
  )
  return [' '.join(spans)]


def _chip(number: int, place: records.Place) -> str:
  if place.box is None:
    return ''
  return f'<i style="background: rgb{drawings.place_color(number)}"></i>'


def sheet(cells: Sequence[Cell]) -> Image.Image:
  """Returns the same as one picture, with the first lines of the texts."""
  tiles = [_tile(cell) for cell in cells]
  columns = min(_COLUMNS, len(tiles))
  rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
  heights = [max(tile.height for tile in row) for row in rows]
  step = WIDTH + _MARGIN
  size = (columns * step + _MARGIN, sum(heights) + (len(rows) + 1) * _MARGIN)
  whole = Image.new('RGB', size, _PAPER)
  y = _MARGIN
  for row, height in zip(rows, heights):
    for column, tile in enumerate(row):
      whole.paste(tile, (_MARGIN + column * step, y))
    y += height + _MARGIN
  return whole


def _tile(cell: Cell) -> Image.Image:
  drawing = drawings.draw(cell.record, WIDTH)
  lines = [(line, _INK) for line in textwrap.wrap(cell.title, _LETTERS)]
  for number, place in enumerate(cell.record.places):
    color = _INK if place.box is None else drawings.place_color(number)
    for text in place.texts:
      lines += [(line, color) for line in textwrap.wrap(text, _LETTERS)]
  if len(lines) > _MOST_LINES:
    lines = [*lines[: _MOST_LINES - 1], ('…', _INK)]
  height = drawing.height + len(lines) * _LINE_HEIGHT
  tile = Image.new('RGB', (WIDTH, height), _PAPER)
  tile.paste(drawing, (0, 0))
  canvas = ImageDraw.Draw(tile)
  font = ImageFont.load_default(_FONT_SIZE)
  for number, (line, color) in enumerate(lines):
    place = (0, drawing.height + number * _LINE_HEIGHT)
    canvas.text(place, line, color, font)
  return tile
