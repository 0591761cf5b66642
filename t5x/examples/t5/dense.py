"""Dense parts of T5: projection, gated MLP, embedding table, RMS norm.

RefA: T5 (arXiv 1910.10683) and T5.1.1; RefB: google-research/t5x
`examples/t5/layers.py` (names of classes, keywords and parameters).

Parameters are stored in float32 whatever the compute `dtype`, and declare their
logical axes in the collection `params_axes`.
"""

from collections.abc import Callable, Iterable, Sequence
import math
import operator
from typing import Any

from flax import linen as nn
from flax.linen import partitioning
from flax.linen import spmd
import jax
from jax import lax
import jax.numpy as jnp

Array = jax.Array
DType = Any
Initializer = Callable[..., Array]

default_kernel_init = nn.initializers.variance_scaling(
    1.0, 'fan_in', 'truncated_normal'
)
default_embed_init = nn.initializers.variance_scaling(
    1.0, 'fan_in', 'normal', out_axis=0
)


def _canonicalize_tuple(x: int | Iterable[int]) -> tuple[int, ...]:
  """Turns one integer or several into a tuple of integers."""
  if isinstance(x, Iterable):
    return tuple(x)
  return (operator.index(x),)


def _normalize_axes(axes: Iterable[int], ndim: int) -> tuple[int, ...]:
  """Counts negative axes from the front: (-1,) of rank 3 becomes (2,)."""
  return tuple(axis + ndim if axis < 0 else axis for axis in axes)


class DenseGeneral(nn.Module):
  """A linear map over any input axes, without bias.

  The kernel is stored with two dimensions, (product of the input axes, product
  of the features), so that one pair of logical axes names it.

  Attributes:
    features: size or sizes of the output axes.
    axis: input axis or axes that are summed over.
    dtype: compute type.
    kernel_init: initialiser of the stored kernel.
    kernel_axes: logical axes of the stored kernel.
  """

  features: int | Iterable[int]
  axis: int | Iterable[int] = -1
  dtype: DType = jnp.float32
  kernel_init: Initializer = default_kernel_init
  kernel_axes: tuple[str, ...] = ()

  @nn.compact
  def __call__(self, inputs: Array) -> Array:
    """Maps `inputs`; the new axes come last."""
    features = _canonicalize_tuple(self.features)
    axis = _normalize_axes(_canonicalize_tuple(self.axis), inputs.ndim)
    in_shape = tuple(inputs.shape[a] for a in axis)
    kernel = partitioning.param_with_axes(
        'kernel',
        self.kernel_init,
        (math.prod(in_shape), math.prod(features)),
        jnp.float32,
        axes=self.kernel_axes,
    )
    kernel = jnp.asarray(kernel, self.dtype).reshape(in_shape + features)
    contracted = (axis, tuple(range(len(axis))))
    return lax.dot_general(
        jnp.asarray(inputs, self.dtype), kernel, (contracted, ((), ()))
    )


def _activation(name: str | Callable[[Array], Array]):
  """Finds an activation function by its flax name."""
  if callable(name):
    return name
  if name == 'linear':
    return lambda x: x
  function = getattr(nn, name, None)
  if function is None:
    raise ValueError(
        f"Unknown activation {name!r}; use 'linear' or a function of flax.linen"
        " such as 'relu', 'gelu' or 'silu'."
    )
  return function


class MlpBlock(nn.Module):
  """The position-wise MLP: a product of activations, then a projection back.

  ('relu',) is the MLP of T5 1.0, ('gelu', 'linear') the gated one of T5.1.1.

  Attributes:
    intermediate_dim: hidden width.
    activations: names of flax activations, `linear` for none.
    kernel_init: initialiser of all kernels.
    intermediate_dropout_rate: dropout rate of the hidden values.
    dtype: compute type.
  """

  intermediate_dim: int = 2048
  activations: Sequence[str | Callable[[Array], Array]] = ('relu',)
  kernel_init: Initializer = default_kernel_init
  intermediate_dropout_rate: float = 0.1
  dtype: DType = jnp.float32

  @nn.compact
  def __call__(
      self, inputs: Array, decode: bool = False, deterministic: bool = False
  ) -> Array:
    """Maps [batch, length, embed] to the same shape."""
    del decode  # The same one position at a time.
    hidden = None
    for i, name in enumerate(self.activations):
      branch = DenseGeneral(
          self.intermediate_dim,
          dtype=self.dtype,
          kernel_init=self.kernel_init,
          kernel_axes=('embed', 'mlp'),
          name='wi' if len(self.activations) == 1 else f'wi_{i}',
      )(inputs)
      branch = _activation(name)(branch)
      hidden = branch if hidden is None else hidden * branch
    hidden = nn.Dropout(
        rate=self.intermediate_dropout_rate, broadcast_dims=(-2,)
    )(hidden, deterministic=deterministic)
    hidden = spmd.with_logical_constraint(hidden, ('batch', 'length', 'mlp'))
    return DenseGeneral(
        inputs.shape[-1],
        dtype=self.dtype,
        kernel_init=self.kernel_init,
        kernel_axes=('mlp', 'embed'),
        name='wo',
    )(hidden)


class Embed(nn.Module):
  """A table of vectors, looked up by token id.

  Attributes:
    num_embeddings: number of rows.
    features: width of a row.
    cast_input_dtype: integer type to cast the ids to first.
    dtype: type of the looked-up vectors.
    attend_dtype: compute type of `attend`; `dtype` if None.
    embedding_init: initialiser of the table.
    one_hot: looks up with a matrix product, which shards better on TPU.
  """

  num_embeddings: int
  features: int
  cast_input_dtype: DType | None = None
  dtype: DType = jnp.float32
  attend_dtype: DType | None = None
  embedding_init: Initializer = default_embed_init
  one_hot: bool = False

  def setup(self):
    """Declares the table."""
    self.embedding = partitioning.param_with_axes(
        'embedding',
        self.embedding_init,
        (self.num_embeddings, self.features),
        jnp.float32,
        axes=('vocab', 'embed'),
    )

  def __call__(self, inputs: Array) -> Array:
    """Looks up integer ids of any shape; the width comes last.

    Args:
      inputs: token ids.

    Returns:
      The vectors.

    Raises:
      ValueError: if the ids are not integers.
    """
    if self.cast_input_dtype:
      inputs = inputs.astype(self.cast_input_dtype)
    if not jnp.issubdtype(inputs.dtype, jnp.integer):
      raise ValueError(
          f'Embed looks up integer ids; got dtype {inputs.dtype}. Cast the'
          ' input, or set cast_input_dtype.'
      )
    table = jnp.asarray(self.embedding, self.dtype)
    if not self.one_hot:
      return table[inputs]
    columns = jnp.arange(self.num_embeddings, dtype=inputs.dtype)
    columns = columns.reshape((1,) * inputs.ndim + (-1,))
    one_hot = jnp.asarray(inputs[..., None] == columns, self.dtype)
    if inputs.ndim == 2:
      # Else a table that is cut over the data axis makes each device hold the
      # whole batch here.
      one_hot = spmd.with_logical_constraint(
          one_hot, ('batch', 'length', 'vocab')
      )
    return jnp.dot(one_hot, table)

  def attend(self, query: Array) -> Array:
    """Scores [..., features] against every row: `query · tableᵀ`."""
    dtype = self.dtype if self.attend_dtype is None else self.attend_dtype
    return jnp.dot(query, jnp.asarray(self.embedding, dtype).T)


class LayerNorm(nn.Module):
  """Divides by the root mean square; no centring, no bias (RefA).

  Attributes:
    epsilon: added to the mean square.
    dtype: type of the result; the statistics are float32.
    scale_init: initialiser of the scale.
  """

  epsilon: float = 1e-6
  dtype: DType = jnp.float32
  scale_init: Initializer = nn.initializers.ones

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Normalises the last axis."""
    x = jnp.asarray(x, jnp.float32)
    scale = partitioning.param_with_axes(
        'scale', self.scale_init, (x.shape[-1],), jnp.float32, axes=('embed',)
    )
    mean_square = jnp.mean(lax.square(x), axis=-1, keepdims=True)
    y = jnp.asarray(x * lax.rsqrt(mean_square + self.epsilon), self.dtype)
    scale = jnp.asarray(scale, self.dtype)
    return y * scale.reshape((1,) * (x.ndim - 1) + (-1,))
