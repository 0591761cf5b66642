"""Examples made without TensorFlow are TensorFlow's, byte for byte."""

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tasks.build import example_proto

_VALUES = st.one_of(
    st.lists(st.binary(max_size=8), max_size=4),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=4),
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=6), _VALUES, max_size=5))
def test_bytes_are_those_of_tensorflow(values):
  encoded = example_proto.serialize(values)
  example = tf.train.Example.FromString(encoded)
  assert example.SerializeToString(deterministic=True) == encoded
  assert set(example.features.feature) == set(values)
  for name, value in values.items():
    feature = example.features.feature[name]
    kind = feature.WhichOneof('kind')
    assert list(getattr(feature, kind).value if kind else []) == value


def test_arrays_are_stored_row_by_row():
  encoded = example_proto.serialize(
      {'box': np.array([[1.5, 2.0], [3.0, 4.0]]), 'ids': np.arange(3)}
  )
  feature = tf.train.Example.FromString(encoded).features.feature
  assert list(feature['box'].float_list.value) == [1.5, 2.0, 3.0, 4.0]
  assert list(feature['ids'].int64_list.value) == [0, 1, 2]


def test_other_values_are_named_in_the_error():
  with pytest.raises(TypeError, match="'flag' holds bool"):
    example_proto.serialize({'flag': np.array([True])})
