"""Dense, convolution, norm, MLP and attention that all modules share.

Every parameter starts in float32 and carries logical axis names. `dtype` is the
type of the computation: inputs and parameters are cast to it. Norms and softmax
are computed in float32 whatever the type.

Parameter names follow the released checkpoints: `kernel`, `bias`, `scale`.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

from flax import linen as nn
from flax.linen import partitioning
from flax.linen import spmd
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pixel_llm import axes

# Anything jnp.dtype takes; gin files write 'bfloat16'.
DType = Any
Initializer = jax.nn.initializers.Initializer
Activation = Callable[[Array], Array]

exact_gelu: Activation = functools.partial(nn.gelu, approximate=False)

default_kernel_init = nn.initializers.lecun_normal()
# Tables and tokens of vision transformers start from N(0, 0.02²).
table_init = nn.initializers.normal(stddev=0.02)
zeros_init = nn.initializers.zeros_init()
ones_init = nn.initializers.ones_init()


def param(
    name: str,
    init: Initializer,
    shape: Sequence[int],
    logical_axes: Sequence[str],
) -> Array:
  """Creates a float32 parameter of the calling module with its axis names.

  A train state may keep what is frozen in bfloat16; it is computed with in the
  module's type all the same (the compiler folds two casts into one).
  """
  value = partitioning.param_with_axes(
      name, init, tuple(shape), jnp.float32, axes=tuple(logical_axes)
  )
  return value.astype(jnp.float32)


def constrain(x: Array, *logical_axes: str | None) -> Array:
  """Names the axes of an activation for the partitioner; harmless without."""
  return spmd.with_logical_constraint(x, logical_axes)


def align_last(vector: Array, ndim: int) -> Array:
  """Reshapes (D,) to `ndim` axes with D last, so that ranks match."""
  return jnp.reshape(vector, (1,) * (ndim - 1) + (-1,))


class Dense(nn.Module):
  """Linear layer over the last axis.

  Attributes:
    features: output width.
    use_bias: whether a bias is added.
    kernel_axes: logical axes of the kernel; the bias has the second one.
    kernel_init: initialiser of the kernel.
    dtype: type of the computation.
  """

  features: int
  use_bias: bool = True
  kernel_axes: tuple[str, str] = (axes.EMBED, axes.MLP)
  kernel_init: Initializer = default_kernel_init
  dtype: DType = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, '*L Di']) -> Float[Array, '*L Do']:
    """Multiplies by the kernel and adds the bias."""
    kernel = param(
        'kernel',
        self.kernel_init,
        (x.shape[-1], self.features),
        self.kernel_axes,
    )
    y = jnp.einsum(
        '...i,io->...o', x.astype(self.dtype), kernel.astype(self.dtype)
    )
    if self.use_bias:
      bias = param('bias', zeros_init, (self.features,), self.kernel_axes[1:])
      y += align_last(bias, y.ndim).astype(self.dtype)
    return y


class Conv(nn.Module):
  """Two-dimensional convolution over the last three axes (height, width, D).

  Attributes:
    features: output width.
    kernel_size: height and width of the kernel.
    strides: step in height and width.
    padding: `VALID` (a rest that fills no step is dropped) or `SAME`.
    use_bias: whether a bias is added.
    channel_axes: logical axes of the input and the output width.
    dtype: type of the computation.
  """

  features: int
  kernel_size: tuple[int, int]
  strides: tuple[int, int] = (1, 1)
  padding: str = 'VALID'
  use_bias: bool = True
  channel_axes: tuple[str, str] = (axes.CHANNELS, axes.EMBED)
  dtype: DType = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, '*L H W Di']) -> Float[Array, '*L h w Do']:
    """Convolves; leading axes of any number are folded into one."""
    kernel = param(
        'kernel',
        default_kernel_init,
        (*self.kernel_size, x.shape[-1], self.features),
        (axes.KERNEL_HEIGHT, axes.KERNEL_WIDTH, *self.channel_axes),
    )
    y = jax.lax.conv_general_dilated(
        jnp.reshape(x, (-1, *x.shape[-3:])).astype(self.dtype),
        kernel.astype(self.dtype),
        window_strides=self.strides,
        padding=self.padding,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    if self.use_bias:
      bias = param('bias', zeros_init, (self.features,), self.channel_axes[1:])
      y += align_last(bias, y.ndim).astype(self.dtype)
    return jnp.reshape(y, (*x.shape[:-3], *y.shape[1:]))


class LayerNorm(nn.Module):
  """Layer norm over the last axis, computed in float32.

  Attributes:
    epsilon: added to the variance; it differs between modules.
    dtype: type of the output.
    axis: logical name of the axis that is normalised.
  """

  epsilon: float = 1e-6
  dtype: DType = jnp.float32
  axis: str = axes.EMBED

  @nn.compact
  def __call__(self, x: Float[Array, '*L D']) -> Float[Array, '*L D']:
    """Normalises with the biased variance, then scales and shifts."""
    scale = param('scale', ones_init, (x.shape[-1],), (self.axis,))
    bias = param('bias', zeros_init, (x.shape[-1],), (self.axis,))
    x = x.astype(jnp.float32)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    y = centred * jax.lax.rsqrt(variance + self.epsilon)
    y = y * align_last(scale, y.ndim) + align_last(bias, y.ndim)
    return y.astype(self.dtype)


class Mlp(nn.Module):
  """Linear layers `layers.0`, `layers.1` … with an activation between them.

  Attributes:
    hidden_dim: width between the layers; unused if there is one layer.
    output_dim: width after the last layer.
    num_layers: number of linear layers.
    activation: applied after each layer but the last.
    pre_norm: whether a layer norm (1e-6) comes first.
    dtype: type of the computation.
  """

  hidden_dim: int
  output_dim: int
  num_layers: int
  activation: Activation = nn.relu
  pre_norm: bool = False
  dtype: DType = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, '*L Di']) -> Float[Array, '*L Do']:
    """Applies norm, layers and activations in turn."""
    if self.pre_norm:
      x = LayerNorm(dtype=self.dtype, name='LayerNorm_0')(x)
    in_axis, out_axis = axes.EMBED, axes.MLP
    for i in range(self.num_layers):
      is_last = i == self.num_layers - 1
      x = Dense(
          self.output_dim if is_last else self.hidden_dim,
          # The hidden width is split once over the devices, then summed.
          kernel_axes=(in_axis, axes.OUTPUTS if is_last else out_axis),
          dtype=self.dtype,
          name=f'layers.{i}',
      )(x)
      if not is_last:
        x = self.activation(x)
      in_axis, out_axis = out_axis, in_axis
    return x


class DropPath(nn.Module):
  """Drops a residual branch of whole examples (stochastic depth).

  Attributes:
    rate: probability of dropping; kept branches are divided by its complement.
  """

  rate: float | Float[Array, '']

  @nn.compact
  def __call__(
      self, x: Float[Array, 'B *L'], enable_dropout: bool
  ) -> Float[Array, 'B *L']:
    """Needs the `dropout` random stream only when something can drop."""
    # In a scanned stack the rate is an array.
    if not enable_dropout or (isinstance(self.rate, float) and not self.rate):
      return x
    keep_rate = 1.0 - self.rate
    keep = jax.random.bernoulli(
        self.make_rng('dropout'),
        keep_rate,
        (x.shape[0],) + (1,) * (x.ndim - 1),
    )
    return jnp.where(keep, x / jnp.asarray(keep_rate, x.dtype), 0)


def drop_path_rates(rate: float, depth: int) -> list[float]:
  """Rates that grow linearly over the blocks, from 0 to `rate`.

  The original divides by zero for one block; here that block never drops.
  """
  return [rate * i / max(depth - 1, 1) for i in range(depth)]


def split_heads(
    x: Float[Array, '*L X'], num_heads: int
) -> Float[Array, '*L A E']:
  """Cuts the last axis into heads and the width of a head."""
  return jnp.reshape(x, (*x.shape[:-1], num_heads, -1))


def dot_product_attention(
    query: Float[Array, '*#LQ q A E'],
    key: Float[Array, '*#LK k A E'],
    value: Float[Array, '*#LK k A E'],
    bias: Float[Array, '*#LB A q k'] | None = None,
) -> Float[Array, '*L q X']:
  """Softmax attention; a leading axis of size one is shared, never copied.

  Args:
    query: queries, not yet scaled.
    key: keys; leading axes broadcast against those of the queries.
    value: values.
    bias: added to the scaled scores.

  Returns:
    The attended values with the heads joined again (X = A·E).
  """
  logits = jnp.einsum(
      '...qae,...kae->...aqk', query, key, preferred_element_type=jnp.float32
  )
  logits *= query.shape[-1] ** -0.5
  if bias is not None:
    logits += bias
  weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
  attended = jnp.einsum('...aqk,...kae->...qae', weights, value)
  return jnp.reshape(attended, (*attended.shape[:-2], -1))
