"""Localized Narratives to records, one a picture (RefA).

A mouse trace is integrated over the time span of each utterance: 16 times
evenly spread over the span, x and y linearly interpolated there, their time
average as centre, their extremes as box. An utterance outside the recorded
times takes the nearest end of the trace; the original extends the last
stretch as a straight line, up to several picture widths away.

Record, in the names of the reference's TFRecords: `image/encoded`, `image/id`
(text), `meta/dataset_id`, `caption/string` (K narratives), and for all their
utterances in a row `caption/{center,bbox,point}` (2, 4 and 32 relative
numbers, x first, not clipped) and `caption/utterance`, with
`caption/ragged_row_lengths_0` utterances a narrative. Added here:
`image/{file_name,height,width}`, `caption/annotator_id`.

RefA: google/localized-narratives, description of the file format.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import json
import marshal
import pathlib
import re
from typing import Any

import numpy as np

from tasks.build import example_proto
from tasks.build import kinds
from tasks.build import pictures
from tasks.build import reports
from tasks.build import shards

LEAST_SHARDS = 64
NUM_SAMPLES = 16

# A span shorter than this, in seconds, has no time average.
_LEAST_DURATION = 1e-5

_FIELDS = ('image_id', 'annotator_id', 'caption', 'timed_caption', 'traces')
# Within a text of JSON the quotes would be escaped.
_PLAIN_ID = re.compile(rb'"image_id"\s*:\s*"?(\d+)"?\s*[,}]')


@dataclasses.dataclass(frozen=True)
class Line:
  """Where a narrative stands: they are too many to keep in memory.

  Attributes:
    file: its JSON Lines file.
    number: of the line, from 1.
    offset: its first byte.
  """

  file: pathlib.Path
  number: int
  offset: int

  def __str__(self) -> str:
    return f'{self.file.name}:{self.number}'


@dataclasses.dataclass
class ImageLines:
  """A picture and its narratives.

  Attributes:
    image_id: COCO image id.
    path: of the picture, None if it is not there.
    lines: its narratives, in the order of the files.
  """

  image_id: int
  path: pictures.PictureFile | None = None
  lines: list[Line] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Trace:
  """A trace integrated over U utterances; relative (x, y).

  Attributes:
    centers: time averages [U, 2].
    boxes: x0, y0, x1, y1 of the samples [U, 4].
    points: the samples [U, 16, 2].
  """

  centers: np.ndarray
  boxes: np.ndarray
  points: np.ndarray


class NarrativeError(Exception):
  """A narrative that cannot be used; reason and detail are its arguments."""


def read_split(
    directory: pathlib.Path,
    files: Sequence[pathlib.Path],
    folders: Sequence[pathlib.Path],
    num_shards: int | None,
) -> shards.Split:
  """Reads JSON Lines files into the plan of a split.

  Args:
    directory: where the shards go.
    files: JSON Lines; one picture's lines may lie in several of them.
    folders: where the pictures are.
    num_shards: None takes the reference's number.

  Returns:
    The split; `tally` tells what the files lacked.
  """
  tally = reports.Tally()
  images: dict[int, ImageLines] = {}
  for file in files:
    tally.read['file'] += 1
    try:
      _check_kind(file)
    except kinds.WrongKindError as e:
      tally.reject('file', file.name, 'wrong_kind', str(file), str(e))
      continue
    tally.written['file'] += 1
    for line, text in _lines(file):
      tally.read['narrative'] += 1
      try:
        image_id = _index(text)
      except NarrativeError as e:
        tally.reject('narrative', line, e.args[0], str(file), e.args[1])
        continue
      if image_id not in images:
        tally.read['image'] += 1
        images[image_id] = ImageLines(image_id)
      images[image_id].lines.append(line)
  for image in images.values():
    image.path = pictures.find_or_none(
        folders, pictures.coco_names(image.image_id)
    )
  units = [
      shards.Unit(images[image_id].path, images[image_id])
      for image_id in sorted(images)
  ]
  return shards.Split(
      directory=directory,
      units=units,
      convert=convert_image,
      tally=tally,
      arguments={'format': 'ln', 'num_samples': NUM_SAMPLES},
      sources=shards.checksums(files),
      num_shards=num_shards
      or shards.default_num_shards(len(units), LEAST_SHARDS),
  )


def _lines(file: pathlib.Path) -> Iterator[tuple[Line, bytes]]:
  """The lines of a file that are not blank."""
  offset = 0
  with open(file, 'rb') as f:
    for number, text in enumerate(f, 1):
      if text.strip():
        yield Line(file, number, offset), text
      offset += len(text)


def _check_kind(file: pathlib.Path) -> None:
  """Looks at the first line that is JSON.

  Raises:
    WrongKindError: if it is no narrative, or there is none.
  """
  error: Exception = ValueError('the file is empty')
  for _, text in _lines(file):
    try:
      found = kinds.describe(json.loads(text))
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
      error = e
      continue
    if found != kinds.NARRATIVES:
      raise kinds.WrongKindError(kinds.NARRATIVES, found)
    return
  try:
    found = kinds.describe(json.loads(file.read_text(encoding='utf-8')))
  except (json.JSONDecodeError, UnicodeDecodeError):
    found = kinds.describe_text(file, error)
  raise kinds.WrongKindError(kinds.NARRATIVES, found)


def _index(text: bytes) -> int:
  """The image id of a line.

  One process reads all lines, so parsing is left to those that convert but
  for lines without a plain id.
  """
  plain = _PLAIN_ID.search(text)
  if plain:
    return int(plain[1])
  image_id = _parse(text)['image_id']
  try:
    return int(image_id)
  except (TypeError, ValueError):
    raise NarrativeError('bad_id', f'image_id is {image_id!r}') from None


def _parse(text: bytes) -> dict[str, Any]:
  """A narrative that has all fields."""
  try:
    narrative = json.loads(text)
  except (json.JSONDecodeError, UnicodeDecodeError) as e:
    raise NarrativeError('bad_json', str(e)) from e
  if not isinstance(narrative, dict):
    raise NarrativeError('bad_json', f'found {narrative!r}'[:80])
  missing = [name for name in _FIELDS if name not in narrative]
  if missing:
    raise NarrativeError('missing_field', f'{missing} not there')
  return narrative


def _read(line: Line, seen: set[bytes]) -> dict[str, Any]:
  """A narrative that its picture does not have yet."""
  with open(line.file, 'rb') as f:
    f.seek(line.offset)
    narrative = _parse(f.readline())
  annotator_id = narrative['annotator_id']
  try:
    int(annotator_id)
  except (TypeError, ValueError):
    detail = f'annotator_id is {annotator_id!r}'
    raise NarrativeError('bad_id', detail) from None
  # A narrator may describe a picture twice, but not to the millisecond.
  # Version 2 writes equal values alike, whether they are one object or two.
  content = marshal.dumps([narrative[name] for name in _FIELDS[1:]], 2)
  if content in seen:
    raise NarrativeError(
        'duplicate',
        f'annotator {annotator_id}: the same words and trace as'
        ' on an earlier line',
    )
  seen.add(content)
  return narrative


def convert_image(image: ImageLines) -> shards.Converted:
  """Makes the record of a picture.

  Args:
    image: where its narratives stand.

  Returns:
    The record, or None where no narrative is left.
  """
  tally = reports.Tally()
  try:
    picture = pictures.read_picture(
        image.path, ' or '.join(pictures.coco_names(image.image_id))
    )
  except pictures.PictureError as e:
    for line in image.lines:
      tally.reject('narrative', line, e.reason, str(line.file))
    where = str(image.path or image.lines[0].file)
    tally.reject('image', image.image_id, e.reason, where, e.detail)
    return shards.Converted(None, tally)
  file = str(image.path)
  pictures.note_oddities(picture, image.path, image.image_id, (), tally)
  narratives = []
  seen: set[bytes] = set()
  for line in image.lines:
    try:
      narrative = _read(line, seen)
      trace = _integrate_narrative(narrative, line, tally)
    except NarrativeError as e:
      tally.reject('narrative', line, e.args[0], str(line.file), e.args[1])
      continue
    narratives.append((narrative, trace))
  tally.written['narrative'] += len(narratives)
  if not narratives:
    tally.reject('image', image.image_id, 'no_narrative_left', file)
    return shards.Converted(None, tally)
  tally.written['image'] += 1
  return shards.Converted(serialize(image, picture, narratives), tally)


def _integrate_narrative(
    narrative: dict[str, Any], line: Line, tally: reports.Tally
) -> Trace:
  """Checks a narrative and integrates its trace."""
  caption = narrative['caption']
  if not isinstance(caption, str) or not any(c.isalnum() for c in caption):
    raise NarrativeError('no_words', f'caption is {caption!r}'[:80])
  utterances = narrative['timed_caption']
  if not utterances:
    raise NarrativeError('no_utterances', 'timed_caption is empty')
  try:
    txy = np.array(
        [
            (point['t'], point['x'], point['y'])
            for segment in narrative['traces']
            for point in segment
        ],
        np.float64,
    ).reshape(-1, 3)
    spans = np.array(
        [(u['start_time'], u['end_time']) for u in utterances], np.float64
    )
    spoken = ''.join(u['utterance'] for u in utterances)
  except (KeyError, TypeError, ValueError) as e:
    raise NarrativeError('bad_field', f'{type(e).__name__}: {e}') from e
  if not np.all(np.isfinite(spans)):
    raise NarrativeError('bad_times', 'an utterance has no finite times')
  finite = np.all(np.isfinite(txy), axis=1)
  if np.sum(finite) < 2:
    raise NarrativeError(
        'no_trace', f'{int(np.sum(finite))} trace points; 2 are needed'
    )
  if not np.all(finite):
    tally.repair(
        'narrative',
        line,
        'points_dropped',
        str(line.file),
        f'{int(np.sum(~finite))} of {len(txy)} trace points are not finite',
    )
  if ''.join(spoken.split()) != ''.join(caption.split()):
    tally.note(
        'narrative',
        line,
        'utterances_differ',
        str(line.file),
        'the utterances do not join up to the caption',
    )
  return integrate(txy[finite], spans)


def integrate(txy: np.ndarray, spans: np.ndarray) -> Trace:
  """Integrates a trace over time spans; see the module's docstring.

  Args:
    txy: time in seconds, x and y of the trace points [M, 3], M ≥ 2, any order.
    spans: start and end of the utterances in seconds [U, 2].

  Returns:
    The trace of each utterance.
  """
  txy = txy[np.argsort(txy[:, 0], kind='stable')]
  times = np.linspace(spans[:, 0], spans[:, 1], NUM_SAMPLES, axis=1)
  # np.interp holds the first and the last value beyond the recorded times.
  points = np.stack(
      [np.interp(times, txy[:, 0], txy[:, axis]) for axis in (1, 2)], axis=-1
  )
  durations = (spans[:, 1] - spans[:, 0])[:, np.newaxis]
  too_short = np.abs(durations) < _LEAST_DURATION
  centers = np.where(
      too_short,
      points.mean(axis=1),
      np.trapezoid(points, times[:, :, np.newaxis], axis=1)
      / np.where(too_short, 1.0, durations),
  )
  boxes = np.concatenate([points.min(axis=1), points.max(axis=1)], axis=-1)
  return Trace(centers, boxes, points)


def serialize(
    image: ImageLines,
    picture: pictures.Picture,
    narratives: list[tuple[dict[str, Any], Trace]],
) -> bytes:
  """Puts a picture and its narratives into an Example.

  Args:
    image: its id and path.
    picture: as read.
    narratives: fields as in the JSON Lines, and the integrated trace.
  """
  traces = [trace for _, trace in narratives]
  return example_proto.serialize({
      'image/encoded': picture.encoded,
      'image/id': str(image.image_id),
      'image/file_name': image.path.name,
      'image/height': picture.height,
      'image/width': picture.width,
      'meta/dataset_id': str(narratives[0][0].get('dataset_id', '')),
      'caption/string': [narrative['caption'] for narrative, _ in narratives],
      'caption/annotator_id': [
          int(narrative['annotator_id']) for narrative, _ in narratives
      ],
      'caption/ragged_row_lengths_0': [
          len(narrative['timed_caption']) for narrative, _ in narratives
      ],
      'caption/utterance/ragged_flat_values': [
          utterance['utterance']
          for narrative, _ in narratives
          for utterance in narrative['timed_caption']
      ],
      'caption/center': np.concatenate([t.centers for t in traces]),
      'caption/bbox': np.concatenate([t.boxes for t in traces]),
      'caption/point': np.concatenate([t.points for t in traces]),
  })
