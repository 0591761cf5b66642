"""Masks as bits: NumPy, JAX and TensorFlow agree on any width."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import tensorflow as tf

from pixel_llm import mask_bits
from tasks import run_lengths

MASKS = hnp.arrays(
    np.uint8,
    st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 20)),
    elements=st.integers(0, 1),
)


@hypothesis.given(MASKS)
@hypothesis.settings(max_examples=30, deadline=None)
def test_bits_invert_and_are_those_of_the_tasks(masks):
  bits = mask_bits.pack(masks)
  assert bits.shape == (*masks.shape[:2], -(-masks.shape[2] // 8))
  unpacked = mask_bits.unpack(bits, masks.shape[2])
  np.testing.assert_array_equal(unpacked, masks)
  np.testing.assert_array_equal(run_lengths.bits(tf.constant(masks)), bits)
