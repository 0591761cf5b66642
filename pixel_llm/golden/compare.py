"""Comparison of computed arrays with a golden case (tolerances: RefA).

RefA: "How close to come" in the README of the golden folder.
"""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any

import numpy as np

# RefA: module outputs relative 1e-4 plus absolute 1e-4. The latter is meant for
# numbers about one: it shrinks with an array whose largest number is less, or
# scores of 1e-5 would pass whatever they are.
RELATIVE = 1e-4
ABSOLUTE = 1e-4
# Learning rates, and updates of about 1e-7, are compared by digits; this only
# forgives what rounding leaves of a zero.
STEP = 1e-12
_STEP_NAME = re.compile(r'out/(lr|[^/]+/update\d+/.*)')
# RefA: box coordinates in pixels.
BOX_PIXELS = 1e-2
# RefA: gradients, relative to the norm of the array.
GRADIENT = 1e-3
# RefA: metrics in the json files, and METEOR, which a Java program computes.
METRIC = 1e-6
METEOR = 1e-4
_METEOR_FIELDS = ('metric/meteor_pairs/', 'metric/meteor_per_image')


@dataclasses.dataclass(frozen=True)
class ArrayReport:
  """How one array compares.

  Attributes:
    name: full name of the array, such as `out/features`.
    error: the largest error as a fraction of its tolerance; at most 1 passes.
      An exact array has error 0 or infinity.
    message: why it fails, or empty.
  """

  name: str
  error: float
  message: str

  @property
  def passed(self) -> bool:
    """Whether the array is within its tolerance."""
    return not self.message


def compare_array(name: str, actual, expected: np.ndarray) -> ArrayReport:
  """Compares one computed array with its golden twin.

  Integers, booleans and texts must be equal. Floats follow RefA by their
  name: metrics absolute, gradients relative to the array's norm, boxes in
  pixels, rates and updates relative, the rest relative plus absolute.

  Args:
    name: full name of the array.
    actual: the computed array.
    expected: the golden array.

  Returns:
    The report.
  """
  actual = np.asarray(actual)
  if actual.shape != expected.shape:
    return ArrayReport(
        name, np.inf, f'shape {actual.shape}, expected {expected.shape}'
    )
  if (actual.dtype.kind == 'U') != (expected.dtype.kind == 'U'):
    return ArrayReport(
        name, np.inf, f'type {actual.dtype}, expected {expected.dtype}'
    )
  if expected.dtype.kind in 'buiU':
    wrong = int(np.sum(actual != expected))
    message = f'{wrong} of {expected.size} entries differ' if wrong else ''
    return ArrayReport(name, np.inf if wrong else 0.0, message)
  leaf = name.rsplit('/', 1)[-1]
  expected = expected.astype(np.float64)
  difference = np.abs(actual.astype(np.float64) - expected)
  if name.startswith('grad/'):
    # A gradient that vanishes in theory is rounding noise in practice.
    tolerance = GRADIENT * max(float(np.linalg.norm(expected)), ABSOLUTE)
    difference = np.asarray(np.linalg.norm(difference))
  elif 'boxes' in name or leaf == 'bbox':
    tolerance = BOX_PIXELS
  elif name.startswith('metric/'):
    is_meteor = leaf.lower() == 'meteor' or name.startswith(_METEOR_FIELDS)
    tolerance = METEOR if is_meteor else METRIC
  else:
    tolerance = _absolute(name, expected) + RELATIVE * np.abs(expected)
  ratio = difference / tolerance
  error = float(np.max(ratio, initial=0.0))
  # Written so that a NaN fails.
  if error <= 1:
    return ArrayReport(name, error, '')
  return ArrayReport(
      name,
      error,
      f'error is {error:.3g} times the tolerance (largest difference'
      f' {float(np.max(difference, initial=0.0)):.3g})',
  )


def _absolute(name: str, expected: np.ndarray) -> float:
  """Absolute tolerance of an array without one of its own."""
  if _STEP_NAME.fullmatch(name):
    return STEP
  largest = float(np.max(np.abs(expected), initial=0.0))
  return ABSOLUTE * largest if 0 < largest < 1 else ABSOLUTE


def compare_case(
    actual: Mapping[str, Any], expected: Mapping[str, np.ndarray]
) -> list[ArrayReport]:
  """Compares all arrays of a case; an array nobody computed fails.

  Args:
    actual: computed arrays by full name, `out/…` and `grad/…`.
    expected: golden arrays by full name.

  Returns:
    One report an expected array, and one for each computed array that the
    case does not know (a misspelt name must not pass unseen).
  """
  reports = []
  for name, array in expected.items():
    if name in actual:
      reports.append(compare_array(name, actual[name], array))
    else:
      reports.append(ArrayReport(name, np.inf, 'was not checked'))
  for name in sorted(set(actual) - set(expected)):
    reports.append(ArrayReport(name, np.inf, 'is not in the golden case'))
  return reports
