"""Training goes on without a record that cannot be used.

Such a record keeps its place: in its stead comes a blank picture without
prompts, which joins no loss, as does a crop that shows nothing. So no place
after it moves, on any number of hosts, and a restart meets the same blank.
"""

from collections.abc import Callable, Mapping
import re
from typing import Any

import numpy as np
import tensorflow as tf

from tasks import records

Example = Mapping[str, tf.Tensor]

# Fields of a source that tell which record it is; the first one is there only in
# streams by places that skip.
RECORDS = 'records'
INDEX = 'index'


Step = Callable[[Example], dict[str, tf.Tensor]]


def or_blank(step: Step, size: int) -> Step:
  """Makes a step that takes any record.

  The catch costs time by the operation, so the step should have few.

  Args:
    step: a record of a `sources.ArrayRecordSource` to what it shows: a
      picture, its view and rows.
    size: side of the network input.

  Returns:
    What `step` does; or for a record that fails there, a blank picture that
    fills the network input, without rows.
  """

  def good_or_blank(record: Example) -> dict[str, tf.Tensor]:
    alone = tf.data.Dataset.from_tensors(record)
    good = alone.map(step)

    def blank(record: Example) -> dict[str, tf.Tensor]:
      names = list(record)
      zero = tf.numpy_function(
          lambda *values: _skip(step, dict(zip(names, values))),
          list(record.values()),
          tf.int64,
      )
      return _blank_like(good.element_spec, size, zero)

    # The only way to catch an error of TensorFlow's in a graph.
    one = good.ignore_errors().concatenate(alone.map(blank)).take(1)
    return one.get_single_element()

  return good_or_blank


def _skip(step: Step, record: Mapping[str, Any]) -> np.int64:
  """Finds out what is wrong with a record, and counts it; returns 0."""
  opened = records.opened(record[RECORDS].decode('utf-8'))
  index = int(record[INDEX])
  reason = 'it failed once, and not again'
  try:
    data = opened.read(index)
    tf.train.Example.FromString(data)  # Says why, where TensorFlow shows bytes.
    again = {name: tf.constant(value) for name, value in record.items()}
    step({**again, 'record': tf.constant(data)})
  except tf.errors.OpError as error:
    reason = ' '.join(re.sub(r'{{.*?}}|\[Op:.*', '', error.message).split())
  # Whatever keeps the file from being read.
  except Exception as error:
    reason = f'{type(error).__name__}: {error}'
  opened.skip(index, reason)
  return np.int64(0)


def _blank_like(spec: Any, size: int, zero: tf.Tensor) -> dict[str, tf.Tensor]:
  """A black picture at its own size, without rows.

  Args:
    spec: of an example, by name.
    size: the sides of all that have a height and a width.
    zero: what it is filled with.

  Returns:
    Fields of this kind; an unknown number of rows is 0.
  """
  blank = {}
  for name, field in spec.items():
    shape = field.shape.as_list()
    if name == 'image':
      shape[:2] = size, size
    shape = [side or 0 for side in shape]
    if field.dtype == tf.string:
      blank[name] = tf.fill(shape, '')
      continue
    blank[name] = tf.fill(shape, tf.cast(zero, field.dtype))
    if name.endswith('hw'):
      blank[name] += size
  return blank
