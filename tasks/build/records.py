"""A built record of any source, read back: picture, texts, places.

`statistics`, `verification` and `contact_sheet` look at records through this,
so that none of them knows the feature names of a source.
"""

from collections.abc import Iterator
import dataclasses
from typing import Any

import numpy as np

from tasks.build import example_proto


class RecordError(Exception):
  """A record that is not what a converter writes; its argument tells why."""


@dataclasses.dataclass(frozen=True)
class Trace:
  """Where a narrator pointed; relative (x, y), may lie outside the picture.

  Attributes:
    utterances: what was spoken, U parts.
    centers: [U, 2].
    points: [U, 16, 2].
  """

  utterances: list[str]
  centers: np.ndarray
  points: np.ndarray


@dataclasses.dataclass(frozen=True)
class Place:
  """What was said of a picture or of a place in it.

  Attributes:
    texts: at least one.
    box: x0, y0, x1, y1 relative to the picture; None for all of it.
    mask_png: gray picture of 0 and 255, b'' for none.
    mask_rle: the same as COCO's compressed run lengths.
    trace: of the only text, or None.
  """

  texts: list[str]
  box: np.ndarray | None = None
  mask_png: bytes = b''
  mask_rle: bytes = b''
  trace: Trace | None = None


@dataclasses.dataclass(frozen=True)
class Record:
  """A picture and its places.

  Attributes:
    name: its id as text.
    encoded: bytes of the picture.
    height: rows.
    width: columns.
    places: in the order of the record.
  """

  name: str
  encoded: bytes
  height: int
  width: int
  places: list[Place]


class Features:
  """The features of a record by name and kind."""

  def __init__(self, record: bytes):
    """Parses.

    Args:
      record: bytes of an Example.

    Raises:
      RecordError: if they are none.
    """
    try:
      self._features = example_proto.Example.FromString(record).features.feature
    except example_proto.DecodeError as e:
      raise RecordError(f'it is no tf.train.Example: {e}') from e

  def __contains__(self, name: str) -> bool:
    return name in self._features

  def names(self) -> list[str]:
    """The names of all features, sorted."""
    return sorted(self._features)

  def values(self, name: str) -> list[Any]:
    """The values of a feature of any kind."""
    kind = self._features[name].WhichOneof('kind')
    return list(getattr(self._features[name], kind).value) if kind else []

  def _values(self, name: str, kind: str) -> Any:
    if name not in self._features:
      raise RecordError(
          f'feature {name!r} is not there; found {self.names()}'
      )
    found = self._features[name].WhichOneof('kind')
    if found not in (None, kind):
      raise RecordError(f'feature {name!r} is a {found}; expected a {kind}')
    return getattr(self._features[name], kind).value

  def blobs(self, name: str) -> list[bytes]:
    """The values of a feature of bytes."""
    return list(self._values(name, 'bytes_list'))

  def texts(self, name: str) -> list[str]:
    """The values of a feature of texts."""
    try:
      return [value.decode('utf-8') for value in self.blobs(name)]
    except UnicodeDecodeError as e:
      raise RecordError(f'feature {name!r} is no UTF-8: {e}') from e

  def integers(self, name: str) -> list[int]:
    """The values of a feature of integers."""
    return list(self._values(name, 'int64_list'))

  def floats(self, name: str, *shape: int) -> np.ndarray:
    """The values of a feature of floats, as rows of a shape."""
    values = np.array(self._values(name, 'float_list'), np.float32)
    if values.size % np.prod(shape, dtype=int):
      raise RecordError(
          f'feature {name!r} has {values.size} numbers; expected rows of'
          f' {shape}'
      )
    return values.reshape(-1, *shape)

  def blob(self, name: str) -> bytes:
    """The only value of a feature of bytes."""
    return self._only(name, self.blobs(name))

  def text(self, name: str) -> str:
    """The only value of a feature of texts."""
    return self._only(name, self.texts(name))

  def integer(self, name: str) -> int:
    """The only value of a feature of integers."""
    return self._only(name, self.integers(name))

  def _only(self, name: str, values: list[Any]) -> Any:
    if len(values) != 1:
      raise RecordError(
          f'feature {name!r} has {len(values)} values; expected one'
      )
    return values[0]

  def ragged_texts(self, name: str, lengths_name: str) -> list[list[str]]:
    """Texts in rows, whose lengths are another feature."""
    return self.in_rows(self.texts(name), lengths_name, name)

  def in_rows(self, values: Any, lengths_name: str, name: str) -> list[Any]:
    """Cuts values into rows, whose lengths are a feature."""
    lengths = self.integers(lengths_name)
    if min(lengths, default=0) < 0 or sum(lengths) != len(values):
      raise RecordError(
          f'{lengths_name!r} {lengths} does not sum to the {len(values)}'
          f' entries of {name!r}'
      )
    ends = np.cumsum(lengths)
    return [values[end - n : end] for end, n in zip(ends, lengths)]


def parse(record: bytes) -> Record:
  """Reads a record of any source.

  Args:
    record: bytes of an Example that a converter wrote.

  Returns:
    What it holds; lists that belong together are equally long.

  Raises:
    RecordError: if it is none, lacks a feature, or its lists do not fit.
  """
  features = Features(record)
  for mark, (image, name, places) in _LAYOUTS.items():
    if mark in features:
      return Record(
          name=_name(features, name),
          encoded=features.blob(image),
          height=features.integer('image/height'),
          width=features.integer('image/width'),
          places=list(places(features)),
      )
  raise RecordError(f'none of the features {sorted(_LAYOUTS)} is there')


def _name(features: Features, name: str) -> str:
  try:
    return features.text(name)
  except RecordError:
    return str(features.integer(name))


def together(names: str, *lists: Any) -> Iterator[tuple[Any, ...]]:
  """Zips lists that must be equally long.

  Args:
    names: of the lists, for the message.
    *lists: what belongs together.

  Raises:
    RecordError: if they are not.
  """
  lengths = [len(values) for values in lists]
  if len(set(lengths)) != 1:
    raise RecordError(f'{names} are not equally long: {lengths}')
  return zip(*lists)


def _narratives(features: Features) -> Iterator[Place]:
  lengths = 'caption/ragged_row_lengths_0'
  names = ('utterance/ragged_flat_values', 'center', 'point')
  utterances, centers, points = (
      features.in_rows(values, lengths, name)
      for name, values in zip(
          names,
          (
              features.texts('caption/utterance/ragged_flat_values'),
              features.floats('caption/center', 2),
              features.floats('caption/point', 16, 2),
          ),
      )
  )
  features.in_rows(features.floats('caption/bbox', 4), lengths, 'bbox')
  for caption, *trace, _ in together(
      'captions, utterances, centers, points and annotators',
      features.texts('caption/string'),
      utterances,
      centers,
      points,
      features.integers('caption/annotator_id'),
  ):
    yield Place([caption], trace=Trace(*trace))


def _boxes(features: Features, name: str) -> np.ndarray:
  """Boxes stored as y0 x0 y1 x1, as x0 y0 x1 y1."""
  return features.floats(name, 4)[:, [1, 0, 3, 2]]


def _regions(features: Features) -> Iterator[Place]:
  for box, phrase, _ in together(
      'boxes, phrases and ids of regions',
      _boxes(features, 'regions/bbox'),
      features.texts('regions/phrase'),
      features.integers('regions/id'),
  ):
    yield Place([phrase], box)


def _objects(features: Features) -> Iterator[Place]:
  prefix = 'objects/refexp'
  lengths = f'{prefix}/sent/ragged_row_lengths_0'
  for name in ('refexp_id', 'raw', 'sent_pos'):
    flat = f'{prefix}/{name}/ragged_flat_values'
    values = (features.integers if name == 'refexp_id' else features.texts)(
        flat
    )
    features.in_rows(values, f'{prefix}/{name}/ragged_row_lengths_0', flat)
    features.in_rows(values, lengths, flat)
  for sents, box, png, rle, *_ in together(
      'expressions, boxes, masks, run lengths, ids, areas and labels',
      features.ragged_texts(f'{prefix}/sent/ragged_flat_values', lengths),
      _boxes(features, 'objects/bbox'),
      features.blobs('objects/mask'),
      features.blobs('objects/mask_rle'),
      features.integers('objects/id'),
      features.integers('objects/area'),
      features.integers('objects/label'),
  ):
    yield Place(sents, box, png, rle)


def _turns(features: Features) -> Iterator[Place]:
  for question, answer in together(
      'questions and answers',
      features.texts('conversations/human'),
      features.texts('conversations/agent'),
  ):
    yield Place([question, answer])


def _captions(features: Features) -> Iterator[Place]:
  for caption, _ in together(
      'captions and their ids',
      features.texts('caption/string'),
      features.integers('caption/id'),
  ):
    yield Place([caption])


# A feature that only one layout has: names of the picture and of the id, and
# what reads the places.
_LAYOUTS = {
    'caption/point': ('image/encoded', 'image/id', _narratives),
    'regions/bbox': ('image', 'img_id', _regions),
    'objects/bbox': ('image', 'image/id', _objects),
    'conversations/human': ('image/encoded', 'image/id', _turns),
    'caption/id': ('image', 'image/id', _captions),
}
