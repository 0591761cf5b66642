"""Target masks on their way to the device: a bit a pixel.

Bit k of byte j of a row, the lowest bit first, is pixel 8j + k.
"""

import jax
import jax.numpy as jnp
import numpy as np


def pack(masks: np.ndarray) -> np.ndarray:
  """Packs masks [..., h, w] of 0 and 1 to [..., h, ceil(w / 8)] uint8."""
  return np.packbits(masks, axis=-1, bitorder='little')


def unpack(bits: jax.Array, width: int) -> jax.Array:
  """Unpacks [..., h, ceil(width / 8)] uint8 to [..., h, width], 0 and 1."""
  return jnp.unpackbits(bits, axis=-1, count=width, bitorder='little')
