"""Projection of visual tokens to the width of the language model."""

from flax import linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from pixel_llm import axes
from pixel_llm.modules import layers


class VisualProjection(nn.Module):
  """Linear layer and, by default, a layer norm (1e-5).

  Attributes:
    features: width of the language model; the default is T5-XL's.
    use_norm: whether the norm follows.
    dtype: type of the computation.
  """

  features: int = 2048
  use_norm: bool = True
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, '*L Dv']) -> Float[Array, '*L Dt']:
    """Projects each token."""
    x = layers.Dense(
        self.features,
        kernel_axes=(axes.CHANNELS, axes.EMBED),
        dtype=self.dtype,
        name='visual_projection.0',
    )(x)
    if self.use_norm:
      x = layers.LayerNorm(
          epsilon=1e-5, dtype=self.dtype, name='visual_projection.1'
      )(x)
    return x
