"""What a restored train state is made of: from the checkpoint, fresh, unused.

`describe` compares names before and after the transformation functions;
`write` puts the table beside the run as `restored.txt`.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import math
import os
from typing import Any

from absl import logging
from etils import epath
import jax

from t5x import stored_state

FILENAME = 'restored.txt'


@dataclasses.dataclass(frozen=True)
class Row:
  """One array.

  Attributes:
    name: its name in the model, or in the checkpoint if nothing uses it.
    shape: its shape.
    source: its name (or names) in the checkpoint where that differs, else
      empty.
  """

  name: str
  shape: tuple[int, ...]
  source: str = ''

  @property
  def size(self) -> int:
    """The number of elements."""
    return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class RestoreReport:
  """The arrays of one restored state by where they came from.

  Attributes:
    path: the checkpoint.
    restored: read from the checkpoint.
    computed: made by transformation functions.
    fresh: initialized, as the checkpoint lacks them.
    unused: in the checkpoint only.
  """

  path: str
  restored: Sequence[Row]
  computed: Sequence[Row]
  fresh: Sequence[Row]
  unused: Sequence[Row]

  def summary(self) -> str:
    """Returns the counts in one line."""
    parts = [f'{_counted(self.restored)} restored']
    if self.computed:
      parts.append(f'{_counted(self.computed)} made by transformations')
    parts.append(f'{_counted(self.fresh)} started fresh')
    parts.append(f'{_counted(self.unused)} of the checkpoint unused')
    return f'{self.path}: {", ".join(parts)}.'

  def lines(self) -> Iterator[str]:
    """Yields the summary and a table of each kind."""
    yield self.summary()
    tables = (
        ('Restored', self.restored),
        ('Made by transformation functions', self.computed),
        ('Started fresh', self.fresh),
        ('In the checkpoint, unused', self.unused),
    )
    width = max(
        (len(row.name) for _, rows in tables for row in rows), default=0
    )
    for title, rows in tables:
      if not rows:
        continue
      yield ''
      yield f'{title} ({len(rows)}):'
      for row in rows:
        source = f'  from {row.source}' if row.source else ''
        yield f'  {row.name:{width}}  {row.shape}{source}'


def describe(
    path: str,
    original: Mapping[str, Any],
    transformed: Mapping[str, Any],
    target: Mapping[str, Any],
) -> RestoreReport:
  """Tells which array of a state comes from where.

  Args:
    path: the checkpoint.
    original: its tree of `LazyArray`s.
    transformed: that tree after the transformation functions.
    target: the state dict of the train state.
  """
  have = stored_state.flatten(transformed)
  restored, computed, fresh, used = [], [], [], set()
  for key, leaf in stored_state.flatten(target).items():
    name, shape = '/'.join(key), tuple(leaf.shape)
    if key not in have:
      fresh.append(Row(name, shape))
      continue
    sources = getattr(have[key], 'sources', ())
    used.update(sources)
    if sources:
      restored.append(Row(name, shape, _origin(name, sources)))
    else:
      computed.append(Row(name, shape))
  unused = [
      Row(name, tuple(leaf.shape))
      for name, leaf in (
          ('/'.join(key), leaf)
          for key, leaf in stored_state.flatten(original).items()
      )
      if name not in used
  ]
  return RestoreReport(path, restored, computed, fresh, unused)


def write(report: RestoreReport, directory: str) -> None:
  """Writes the summary to the log and, on process 0, all to `restored.txt`."""
  file = epath.Path(os.path.join(directory, FILENAME))
  # A large model's table has thousands of lines.
  logging.info('%s %s lists them.', report.summary(), file)
  if jax.process_index() == 0:
    file.write_text('\n'.join(report.lines()) + '\n')


def _origin(name: str, sources: Sequence[str]) -> str:
  """Names what an array was read from, empty for its own name."""
  if list(sources) == [name]:
    return ''
  if len(sources) <= 2:
    return ', '.join(sources)
  return f'{sources[0]} … {sources[-1]} ({len(sources)} arrays)'


def _counted(rows: Sequence[Row]) -> str:
  noun = 'array' if len(rows) == 1 else 'arrays'
  return f'{len(rows)} {noun} ({sum(row.size for row in rows):,} numbers)'
