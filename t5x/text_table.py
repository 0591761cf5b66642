"""Rows of text as aligned lines, for reports that people read."""

from collections.abc import Collection, Sequence


def lines(
    rows: Sequence[Sequence[str]], right: Collection[int] = ()
) -> list[str]:
  """Aligns the columns, two spaces apart.

  Args:
    rows: the cells; a row may end early.
    right: numbers of the columns that are aligned right, as numbers are.

  Returns:
    A line a row.
  """
  columns = max(map(len, rows))
  full = [(*row, *[''] * (columns - len(row))) for row in rows]
  widths = [max(map(len, column)) for column in zip(*full)]
  return [
      '  '.join(
          cell.rjust(width) if i in right else cell.ljust(width)
          for i, (cell, width) in enumerate(zip(row, widths))
      ).rstrip()
      for row in full
  ]
