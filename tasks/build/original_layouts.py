"""Records of the original PixelLLM scripts, a layout a source (RefA).

Each becomes what the converter of its source makes of the original
annotations, so that the same checks hold: boxes are cut to their picture,
texts get single blanks. What a TFRecord does not tell is filled in: file names
after the picture's id, annotators as -1.

Localized Narratives are sequence examples: `caption/{center,bbox,point,
utterance}` are lists of an entry a narrative. Their traces were extrapolated
beyond the recorded times, by several picture widths at times. That cannot be
undone here and is noted (`trace_far_outside`); narratives converted from the
JSON Lines files do not have it.

RefA: google-research/scenic `projects/pixel_llm/tools/build_*_tfrecord.py`.
"""

from collections.abc import Callable
import dataclasses
import io
import pathlib
from typing import Any

import numpy as np
import PIL
from PIL import Image
from pycocotools import mask as mask_lib

from tasks.build import example_proto
from tasks.build import llava
from tasks.build import localized_narratives
from tasks.build import pictures
from tasks.build import records
from tasks.build import referred_objects
from tasks.build import reports
from tasks.build import shards
from tasks.build import visual_genome
from tasks.build import words

_UNKNOWN_ANNOTATOR = -1
_LIST_KINDS = {
    'caption/utterance': 'bytes_list',
    'caption/center': 'float_list',
    'caption/bbox': 'float_list',
    'caption/point': 'float_list',
}
# Pointing a little outside the picture was recorded too.
_MOST_OUTSIDE = 0.25


@dataclasses.dataclass(frozen=True)
class Stored:
  """Where a TFRecord stands.

  Attributes:
    path: of the file.
    offset: its first byte.
    number: in the order of all files.
  """

  path: pathlib.Path
  offset: int
  number: int

  def __str__(self) -> str:
    return f'{self.path.name} byte {self.offset}'


@dataclasses.dataclass(frozen=True)
class _Embedded:
  """A picture in a TFRecord, a `pictures.PictureFile`."""

  encoded: bytes
  name: str
  stored: Stored

  def read_bytes(self) -> bytes:
    """All bytes of the picture."""
    return self.encoded

  def __str__(self) -> str:
    return str(self.stored)

  def size(self) -> tuple[int, int]:
    """Height and width; 1 x 1 for what is no picture, and rejected later."""
    try:
      with Image.open(io.BytesIO(self.encoded)) as picture:
        return picture.height, picture.width
    except (PIL.UnidentifiedImageError, OSError):
      return 1, 1


@dataclasses.dataclass(frozen=True)
class Original:
  """A parsed TFRecord.

  Attributes:
    features: of the example, or of the sequence example's context.
    lists: of the sequence example; empty for an example.
    stored: where it stands.
    tally: takes what is read and left out.
  """

  features: records.Features
  lists: dict[str, list[Any]]
  stored: Stored
  tally: reports.Tally


def parse(data: bytes, stored: Stored, tally: reports.Tally) -> Original:
  """Parses a TFRecord.

  Args:
    data: of an example or a sequence example; on the wire the context of one
      is the features of the other.
    stored: where it stands.
    tally: takes what is read and left out.

  Raises:
    RecordError: if it is neither, or a list holds values of another kind.
  """
  return Original(records.Features(data), _lists(data), stored, tally)


def _lists(data: bytes) -> dict[str, list[Any]]:
  """Feature lists, each entry as its values."""
  sequence = example_proto.SequenceExample.FromString(data)
  lists: dict[str, list[Any]] = {}
  for name, entries in sequence.feature_lists.feature_list.items():
    lists[name] = []
    wanted = _LIST_KINDS.get(name)
    for feature in entries.feature:
      kind = feature.WhichOneof('kind')
      if kind and wanted and kind != wanted:
        raise records.RecordError(
            f'feature list {name!r} holds a {kind}; expected a {wanted}'
        )
      lists[name].append(list(getattr(feature, kind).value) if kind else [])
  return lists


def _regions(original: Original) -> shards.Converted:
  """Visual Genome."""
  features, tally, stored = original.features, original.tally, original.stored
  image_id = features.integer('img_id')
  picture = _Embedded(features.blob('image'), f'{image_id}.jpg', stored)
  size = picture.size()
  image = visual_genome.ImageRegions(
      image_id, picture.name, str(stored), size, picture
  )
  rows = list(
      records.together(
          'ids, boxes and phrases of regions',
          features.integers('regions/id'),
          features.floats('regions/bbox', 4),
          features.blobs('regions/phrase'),
      )
  )
  tally.read['image'] += 1
  for region_id, box, phrase in rows:
    tally.read['region'] += 1
    try:
      text = words.parse(phrase.decode('utf-8', 'replace'))
    except words.WordsError as e:
      tally.reject('region', region_id, 'no_words', str(stored), str(e))
      continue
    region = visual_genome.Region(region_id, _xywh(box, size), text)
    image.regions.append(region)
  return visual_genome.convert_image(image)


def _xywh(box: np.ndarray, size: tuple[int, int]) -> list[float]:
  """Relative y0 x0 y1 x1 in float32 as x, y, width, height in pixels.

  Made relative again the box is the same, bit for bit: float64 is exact
  enough.
  """
  y0, x0, y1, x1 = (np.asarray(box, np.float64) * np.array([*size] * 2)).tolist()
  return [x0, y0, x1 - x0, y1 - y0]


def _objects(original: Original) -> shards.Converted:
  """RefCOCO."""
  features, tally, stored = original.features, original.tally, original.stored
  image_id = features.integer('image/id')
  [name, *_] = pictures.coco_names(image_id)
  picture = _Embedded(features.blob('image'), name, stored)
  size = picture.size()
  image = referred_objects.ImageRows(image_id, name, str(stored), picture)
  boxes = features.floats('objects/bbox', 4)
  has_masks = 'objects/mask' in features
  masks = features.blobs('objects/mask') if has_masks else [b''] * len(boxes)
  rows = list(
      records.together(
          'ids, areas, boxes, labels, masks and expressions of objects',
          features.integers('objects/id'),
          features.integers('objects/area'),
          boxes,
          features.integers('objects/label'),
          masks,
          _expressions(features),
      )
  )
  tally.read['image'] += 1
  for object_id, area, box, label, mask, expressions in rows:
    bbox = _xywh(box, size)
    target = referred_objects.Target(
        object_id=object_id,
        bbox=bbox,
        label=label,
        segmentation=_segmentation(mask),
        expects_mask=has_masks,
        area=area if np.all((box >= 0) & (box <= 1)) else None,
    )
    tally.read['expression'] += len(expressions)
    for expression in expressions:
      try:
        sent = words.parse(expression.sent)
        part = ' '.join(expression.sent_pos.split()) or sent
      except words.WordsError as e:
        number, detail = expression.refexp_id, str(e)
        tally.reject('expression', number, 'no_words', str(stored), detail)
        continue
      target.expressions.append(
          dataclasses.replace(expression, sent=sent, sent_pos=part)
      )
    if target.expressions:
      image.targets[(object_id, *bbox)] = target
    else:
      tally.read['object'] += 1
      tally.reject('object', object_id, 'no_expression_left', str(stored))
  return referred_objects.convert_image(image)


def _expressions(
    features: records.Features,
) -> list[list[referred_objects.Expression]]:
  """The expressions of each object."""
  columns = []
  for name in ('refexp_id', 'raw', 'sent', 'sent_pos'):
    prefix = f'objects/refexp/{name}/ragged'
    flat = f'{prefix}_flat_values'
    read = features.integers if name == 'refexp_id' else features.texts
    columns.append(
        features.in_rows(read(flat), f'{prefix}_row_lengths_0', flat)
    )
  return [
      [
          referred_objects.Expression(*fields)
          for fields in records.together('fields of expressions', *row)
      ]
      for row in records.together('expressions', *columns)
  ]


def _segmentation(png: bytes) -> dict[str, Any] | None:
  """A mask picture as run lengths; None for what is no picture."""
  try:
    with Image.open(io.BytesIO(png)) as picture:
      pixels = np.asarray(picture.convert('L')) > 0
  except (PIL.UnidentifiedImageError, OSError, SyntaxError):
    return None
  lengths = mask_lib.encode(np.asfortranarray(pixels, np.uint8))
  return {**lengths, 'counts': lengths['counts'].decode('ascii')}


def _conversation(original: Original) -> shards.Converted:
  """LLaVA."""
  features, tally, stored = original.features, original.tally, original.stored
  row_id = features.text('image/id')
  picture = _Embedded(features.blob('image/encoded'), f'{row_id}.jpg', stored)
  questions = features.texts('conversations/human')
  answers = features.texts('conversations/agent')
  turns = list(records.together('questions and answers', questions, answers))
  tally.read['row'] += 1
  name = f'row {stored.number}'
  kept = []
  for question, answer in turns:
    if answer.strip():
      kept.append((question, answer))
    else:
      detail = f'{question!r} has an empty answer'[:80]
      tally.repair('row', name, 'question_dropped', str(stored), detail)
  if not kept:
    tally.reject('row', name, 'no_conversation', str(stored))
    return shards.Converted(None, reports.Tally())
  return llava.convert_row(
      llava.Conversation(
          stored.number, row_id, str(stored), picture.name, kept, picture
      )
  )


def _narratives(original: Original) -> shards.Converted:
  """Localized Narratives."""
  features, tally, stored = original.features, original.tally, original.stored
  image_id = features.text('image/id')
  if not image_id.isdecimal():
    raise records.RecordError(f'image/id is {image_id!r}; expected a number')
  captions = features.texts('caption/string')
  dataset_id = features.text('meta/dataset_id')
  missing = [name for name in _LIST_KINDS if name not in original.lists]
  if missing:
    raise records.RecordError(f'feature lists {missing} are not there')
  columns = [original.lists[name] for name in _LIST_KINDS]
  rows = list(records.together('lists of narratives', captions, *columns))
  tally.read['image'] += 1
  tally.read['narrative'] += len(rows)
  [name, *_] = pictures.coco_names(int(image_id))
  path = _Embedded(features.blob('image/encoded'), name, stored)
  image = localized_narratives.ImageLines(int(image_id), path)
  try:
    picture = pictures.read_picture(path, name)
  except pictures.PictureError as e:
    for number in range(len(rows)):
      tally.reject('narrative', f'{stored} {number}', e.reason, str(stored))
    tally.reject('image', image_id, e.reason, str(stored), e.detail)
    return shards.Converted(None, reports.Tally())
  pictures.note_oddities(picture, path, image_id, (), tally)
  kept = []
  for number, row in enumerate(rows):
    try:
      kept.append(_narrative(dataset_id, f'{stored} {number}', tally, *row))
    except localized_narratives.NarrativeError as e:
      where = f'{stored} {number}'
      tally.reject('narrative', where, e.args[0], str(stored), e.args[1])
  tally.written['narrative'] += len(kept)
  if not kept:
    tally.reject('image', image_id, 'no_narrative_left', str(stored))
    return shards.Converted(None, reports.Tally())
  tally.written['image'] += 1
  record = localized_narratives.serialize(image, picture, kept)
  return shards.Converted(record, reports.Tally())


def _narrative(
    dataset_id: str,
    name: str,
    tally: reports.Tally,
    caption: str,
    utterances: list[bytes],
    centers: list[float],
    boxes: list[float],
    points: list[float],
) -> tuple[dict[str, Any], localized_narratives.Trace]:
  """Checks a narrative; returns its fields and its trace."""
  error = localized_narratives.NarrativeError
  count = len(utterances)
  if not any(c.isalnum() for c in caption):
    raise error('no_words', f'caption is {caption!r}'[:80])
  if not count:
    raise error('no_utterances', 'caption/utterance is empty')
  lengths = [len(centers), len(boxes), len(points)]
  if lengths != [2 * count, 4 * count, 32 * count]:
    raise error('bad_field', f'{count} utterances, {lengths} numbers')
  trace = localized_narratives.Trace(
      np.reshape(np.array(centers, np.float32), (count, 2)),
      np.reshape(np.array(boxes, np.float32), (count, 4)),
      np.reshape(np.array(points, np.float32), (count, 16, 2)),
  )
  if not all(np.isfinite(v).all() for v in vars(trace).values()):
    raise error('bad_trace', 'the trace has values that are not finite')
  outside = float(np.max(np.abs(trace.points - 0.5))) - 0.5
  if outside > _MOST_OUTSIDE:
    detail = f'{outside:.2f} of the picture outside; extrapolated, and kept'
    tally.note('narrative', name, 'trace_far_outside', name, detail)
  spoken = [u.decode('utf-8', 'replace') for u in utterances]
  narrative = {
      'caption': caption,
      'annotator_id': _UNKNOWN_ANNOTATOR,
      'timed_caption': [{'utterance': text} for text in spoken],
      'dataset_id': dataset_id,
  }
  return narrative, trace


@dataclasses.dataclass(frozen=True)
class Layout:
  """How records of one kind are converted.

  Attributes:
    convert: a parsed TFRecord to a record of ours; what it read and left out
      goes to the tally of the parsed one, the rest to the returned one.
    least_shards: as of the source's converter.
  """

  convert: Callable[[Original], shards.Converted]
  least_shards: int


# A feature that only one layout has.
_LAYOUTS = {
    'caption/string': Layout(_narratives, localized_narratives.LEAST_SHARDS),
    'regions/bbox': Layout(_regions, visual_genome.LEAST_SHARDS),
    'objects/bbox': Layout(_objects, referred_objects.LEAST_SHARDS),
    'conversations/human': Layout(_conversation, llava.LEAST_SHARDS),
}


def layout_of(data: bytes) -> Layout:
  """Tells the layout of a record by its features.

  Args:
    data: of a TFRecord.

  Raises:
    RecordError: if it has none of the original's.
  """
  features = records.Features(data)
  for mark, layout in _LAYOUTS.items():
    if mark in features:
      return layout
  raise records.RecordError(
      f'its features are {features.names()}; expected one of'
      f' {sorted(_LAYOUTS)}'
  )
