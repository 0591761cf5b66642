"""Names of another project's parameters and ours, as one table for both ways.

A row says what one parameter is called on both sides, `{i}` standing for the
number of a layer, and how its axes are ordered:

    Rule('encoder/layers_{i}/mlp/wo/kernel',
         'encoder.block.{i}.layer.1.DenseReluDense.wo.weight', LINEAR)

Nothing is lost in silence: what no row knows is returned by name.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import re
from typing import Any

import numpy as np

from t5x import checkpoint_importer

LazyArray = checkpoint_importer.LazyArray

# Which of their axes each of ours is. PyTorch keeps a linear layer as
# (out, in) and a convolution as (out, in, height, width).
LINEAR = (1, 0)
CONVOLUTION = (2, 3, 1, 0)


@dataclasses.dataclass(frozen=True)
class Rule:
  """One parameter, or one of every layer.

  Attributes:
    ours: its name here, parts joined by '/'; `{i}` is a number.
    theirs: its name there, with the same numbers.
    axes: which of their axes each of ours is; None if they are the same.
  """

  ours: str
  theirs: str
  axes: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class LeftOut:
  """Parameters that the other side has and this one does not want.

  Attributes:
    pattern: regular expression that matches the whole name.
    reason: why, for the report.
  """

  pattern: str
  reason: str


@dataclasses.dataclass(frozen=True)
class Renamed:
  """A parameter under its new name.

  Attributes:
    name: the new name.
    source: the old one.
    array: the value in the new order of axes, read on demand.
  """

  name: str
  source: str
  array: LazyArray


@dataclasses.dataclass
class Result:
  """What became of the parameters of a source.

  Attributes:
    renamed: those that a rule knows.
    left_out: reason by name for those that are not wanted.
    unknown: names that no rule knows.
    misshapen: what is wrong, by name, where a rule expects another rank.
  """

  renamed: list[Renamed] = dataclasses.field(default_factory=list)
  left_out: dict[str, str] = dataclasses.field(default_factory=dict)
  unknown: list[str] = dataclasses.field(default_factory=list)
  misshapen: dict[str, str] = dataclasses.field(default_factory=dict)

  def arrays(self) -> dict[str, LazyArray]:
    """Returns the renamed parameters by their new names."""
    return {one.name: one.array for one in self.renamed}

  def with_sources(self, sources: Mapping[str, str]) -> 'Result':
    """Returns the result for names that were changed before renaming.

    Args:
      sources: the original name for each changed one.
    """
    return Result(
        [
            dataclasses.replace(one, source=sources[one.source])
            for one in self.renamed
        ],
        {sources[name]: why for name, why in self.left_out.items()},
        [sources[name] for name in self.unknown],
        {sources[name]: what for name, what in self.misshapen.items()},
    )

  def with_names(self, rename: Callable[[str], str]) -> 'Result':
    """Returns the result with the new names changed once more."""
    renamed = [
        dataclasses.replace(one, name=rename(one.name)) for one in self.renamed
    ]
    return dataclasses.replace(self, renamed=renamed)


@dataclasses.dataclass(frozen=True)
class Table:
  """The names of one format.

  Attributes:
    rules: a row a parameter; the first that matches counts.
    left_out: what is not wanted.
  """

  rules: Sequence[Rule]
  left_out: Sequence[LeftOut] = ()

  def to_ours(self, theirs: Mapping[str, Any]) -> Result:
    """Gives their parameters our names and order of axes."""
    rows = [(r.theirs, r.ours, r.axes) for r in self.rules]
    return _rename(theirs, rows, self.left_out)

  def to_theirs(self, ours: Mapping[str, Any]) -> Result:
    """Gives our parameters their names and order of axes."""
    rows = [
        (r.ours, r.theirs, r.axes and tuple(np.argsort(r.axes).tolist()))
        for r in self.rules
    ]
    return _rename(ours, rows, ())


def _rename(
    arrays: Mapping[str, Any],
    rows: Sequence[tuple[str, str, tuple[int, ...] | None]],
    left_out: Sequence[LeftOut],
) -> Result:
  result = Result()
  for name, array in arrays.items():
    for source, target, axes in rows:
      match = _pattern(source).fullmatch(name)
      if not match:
        continue
      new = target.format(**match.groupdict())
      if axes and len(axes) != len(array.shape):
        result.misshapen[name] = (
            f'{tuple(array.shape)} cannot become {new}: {len(axes)} axes wanted'
        )
      else:
        result.renamed.append(Renamed(new, name, transposed(array, axes)))
      break
    else:
      reasons = [x.reason for x in left_out if re.fullmatch(x.pattern, name)]
      if reasons:
        result.left_out[name] = reasons[0]
      else:
        result.unknown.append(name)
  return result


@functools.cache
def _pattern(name: str) -> re.Pattern[str]:
  """Turns a name with `{i}` into an expression with a group of digits."""
  parts = re.split(r'\{(\w+)\}', name)
  return re.compile(
      ''.join(
          rf'(?P<{part}>\d+)' if number % 2 else re.escape(part)
          for number, part in enumerate(parts)
      )
  )


def transposed(array: Any, axes: tuple[int, ...] | None) -> LazyArray:
  """Returns an array, lazy or not, with other axes, still to be read."""
  shape = tuple(array.shape)
  axes = tuple(range(len(shape))) if axes is None else axes
  return LazyArray(
      tuple(shape[axis] for axis in axes),
      array.dtype,
      lambda: np.asarray(array).transpose(axes),
  )
