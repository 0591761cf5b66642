"""Arrays of a checkpoint that are read only when someone asks for them."""

from collections.abc import Callable, Sequence
import copy
from typing import Any

import numpy as np


class LazyArray:
  """Knows shape and dtype of a stored array and reads it on `get()`."""

  def __init__(
      self,
      shape: tuple[int, ...],
      dtype: Any,
      get_fn: Callable[[], np.ndarray],
      sources: Sequence[str] = (),
  ):
    """Describes an array without reading it.

    Args:
      shape: its shape.
      dtype: the dtype `get()` returns.
      get_fn: reads it, in any dtype.
      sources: the names, in the checkpoint, of the arrays it is read from.
    """
    self.shape = tuple(shape)
    self.dtype = np.dtype(dtype)
    self.sources = tuple(sources)
    self._get_fn = get_fn

  @property
  def ndim(self) -> int:
    """The number of dimensions."""
    return len(self.shape)

  @property
  def size(self) -> int:
    """The number of elements."""
    return int(np.prod(self.shape))

  @property
  def nbytes(self) -> int:
    """The bytes it takes in memory once read."""
    return self.size * self.dtype.itemsize

  def get(self) -> np.ndarray:
    """Reads the array.

    Raises:
      ValueError: if what is stored has another shape.
    """
    value = np.asarray(self._get_fn())
    if value.shape != self.shape:
      raise ValueError(
          f'Expected an array of shape {self.shape}, read {value.shape}.'
      )
    return value.astype(self.dtype, copy=False)

  def read(self, index: Any) -> np.ndarray:
    """Reads a part; here by reading all, where the storage allows no less.

    Args:
      index: what to read, as numpy would index the array.
    """
    return self.get()[index]

  def astype(self, dtype: Any) -> 'LazyArray':
    """Returns the same array, to be cast when read."""
    other = copy.copy(self)
    other.dtype = np.dtype(dtype)
    return other

  def __array__(self, dtype: Any = None, copy: bool | None = None):
    value = self.get()
    return value if dtype is None else value.astype(dtype)

  def __repr__(self) -> str:
    return f'{type(self).__name__}(shape={self.shape}, dtype={self.dtype})'
