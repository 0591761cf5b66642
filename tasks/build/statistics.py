"""What a split holds, in numbers: texts, boxes, masks, lengths.

Every figure is a histogram of whole numbers, so shards add up exactly, in any
order, and medians are those of the whole split.
"""

import collections
import dataclasses
from typing import Any

import numpy as np

from tasks.build import records

# In the order in which they are printed.
FIGURES = (
    'picture_bytes',
    'picture_height',
    'picture_width',
    'texts_per_record',
    'words_per_text',
    'characters_per_text',
    'boxes_per_record',
    'box_area_percent',
    'masks_per_record',
    'utterances_per_trace',
)


@dataclasses.dataclass
class Statistics:
  """Histograms of a set of records.

  Attributes:
    histograms: figure to value to how often it occurs.
  """

  histograms: dict[str, collections.Counter[int]] = dataclasses.field(
      default_factory=lambda: {name: collections.Counter() for name in FIGURES}
  )

  def count(self, record: records.Record) -> None:
    """Adds a record."""
    texts = [text for place in record.places for text in place.texts]
    boxes = [place.box for place in record.places if place.box is not None]
    self._add('picture_bytes', len(record.encoded))
    self._add('picture_height', record.height)
    self._add('picture_width', record.width)
    self._add('texts_per_record', len(texts))
    for text in texts:
      self._add('words_per_text', len(text.split()))
      self._add('characters_per_text', len(text))
    if boxes:
      self._add('boxes_per_record', len(boxes))
      self._add(
          'masks_per_record', sum(bool(p.mask_png) for p in record.places)
      )
    for x0, y0, x1, y1 in boxes:
      self._add('box_area_percent', int(np.rint(100 * (x1 - x0) * (y1 - y0))))
    for place in record.places:
      if place.trace is not None:
        self._add('utterances_per_trace', len(place.trace.utterances))

  def _add(self, name: str, value: int) -> None:
    self.histograms[name][value] += 1

  def add(self, other: 'Statistics') -> None:
    """Adds those of another set."""
    for name, histogram in other.histograms.items():
      self.histograms[name].update(histogram)

  def summary(self) -> dict[str, dict[str, float]]:
    """Figure to its count, total, mean, least, median, 99th percentile, most.

    Figures that the source does not have are left out.
    """
    return {
        name: _summary(histogram)
        for name, histogram in self.histograms.items()
        if histogram
    }

  def to_json(self) -> dict[str, Any]:
    """As lists of (value, count), which JSON keeps as numbers."""
    return {name: sorted(h.items()) for name, h in self.histograms.items()}

  @classmethod
  def from_json(cls, stored: dict[str, Any]) -> 'Statistics':
    """Reads back what `to_json` made."""
    return cls({
        name: collections.Counter({value: count for value, count in pairs})
        for name, pairs in stored.items()
    })


def _summary(histogram: collections.Counter[int]) -> dict[str, float]:
  values = np.array(sorted(histogram))
  counts = np.array([histogram[value] for value in values.tolist()])
  ranks = np.cumsum(counts)
  count, total = int(ranks[-1]), int((values * counts).sum())

  def quantile(share: float) -> int:
    return int(values[np.searchsorted(ranks, share * count)])

  return {
      'count': count,
      'total': total,
      'mean': round(total / count, 3),
      'least': int(values[0]),
      'median': quantile(0.5),
      'p99': quantile(0.99),
      'most': int(values[-1]),
  }
