"""Scalars as JSON lines, for scripts that read a run without TensorBoard.

One line per write: `{"step": 100, "loss": 1.25}`. JSON has no NaN; such values
are the strings `"nan"`, `"inf"`, `"-inf"`, which `float()` reads.

This module imports CLU's writers, and with them TensorFlow: import it where a
writer is made.
"""

from collections.abc import Mapping
import json
import math
from typing import Any

from etils import epath

from t5x import scalar_writer


def _json_number(value: Any) -> float | str:
  number = float(value)
  return number if math.isfinite(number) else str(number)


class JsonLinesWriter(scalar_writer.ScalarWriter):
  """Appends scalars to a file; other kinds of values are not for this format."""

  def __init__(self, path: epath.PathLike):
    """Opens the file.

    Args:
      path: a local file; it is made, with its directory, or continued.
    """
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    self._file = path.open('a', encoding='utf-8')

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Writes one line."""
    values = {name: _json_number(value) for name, value in scalars.items()}
    self._file.write(json.dumps({'step': int(step), **values}) + '\n')

  def flush(self) -> None:
    """Hands all lines to the file system."""
    self._file.flush()

  def close(self) -> None:
    """Closes the file."""
    self._file.close()
