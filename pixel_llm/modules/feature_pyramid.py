"""Simple feature pyramid: several strides from one map of a plain tower.

The box decoder reads it. The map counts as stride 16 whatever its true stride,
so boxes live in a frame of 16 pixels a cell: at 384 px the fused map has 27×27
cells and the frame spans 432 px.

RefA: Exploring Plain Vision Transformer Backbones for Object Detection (arXiv
2203.16527), Sec. 3; RefB: CenterNet2 (arXiv 2103.07461), for the two coarsest
levels.

Parameter names follow the released checkpoints: `simfp_3.1` is the second step
of the level of stride 2³, counting steps without parameters.
"""

from collections.abc import Sequence
import math

from flax import linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from pixel_llm import axes
from pixel_llm.modules import layers

# log2 of the stride that the input map stands for.
INPUT_LEVEL = 4


class Upsample(nn.Module):
  """Doubles height and width: each cell becomes 2×2 cells of its own.

  Attributes:
    features: output width.
    dtype: type of the computation.
  """

  features: int
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'B h w Di']) -> Float[Array, 'B H W Do']:
    """Applies a transposed convolution of kernel 2 and stride 2."""
    kernel = layers.param(
        'kernel',
        layers.default_kernel_init,
        (2, 2, x.shape[-1], self.features),
        (axes.KERNEL_HEIGHT, axes.KERNEL_WIDTH, axes.CHANNELS, axes.EMBED),
    )
    bias = layers.param(
        'bias', layers.zeros_init, (self.features,), (axes.EMBED,)
    )
    # The released kernels are stored as for a correlation: turned by 180°.
    kernel = kernel[::-1, ::-1].astype(self.dtype)
    y = jnp.einsum('bhwi,yxio->bhywxo', x.astype(self.dtype), kernel)
    batch, height, width, _ = x.shape
    y = y.reshape(batch, 2 * height, 2 * width, self.features)
    return y + layers.align_last(bias, y.ndim).astype(self.dtype)


class StridedTop(nn.Module):
  """Two further levels by 3×3 convolutions of stride 2 (RefB).

  Attributes:
    dtype: type of the computation.
  """

  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(
      self, x: Float[Array, 'B h w D']
  ) -> list[Float[Array, 'B _h _w D']]:
    """Returns the levels, finest first."""

    def halve(y: Array, name: str) -> Array:
      # One cell of padding on each side; 'SAME' would add none before an even
      # length and so move the map by a cell.
      y = jnp.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0)))
      return layers.Conv(
          x.shape[-1], (3, 3), (2, 2), dtype=self.dtype, name=name
      )(y)

    p6 = halve(x, 'p6')
    return [p6, halve(nn.relu(p6), 'p7')]


class SubsampledTop(nn.Module):
  """One further level: every second cell of the last one."""

  def __call__(
      self, x: Float[Array, 'B h w D']
  ) -> list[Float[Array, 'B _h _w D']]:
    """Returns the level."""
    return [x[:, ::2, ::2]]


class FeaturePyramid(nn.Module):
  """The pyramid (RefA).

  Attributes:
    features: width of all levels.
    scale_factors: size of each level relative to the input map, finest first;
      4, 2, 1 and 0.5 are known.
    top_block: makes the levels behind the last of these.
    upsample_dim: finer levels are half and a quarter as wide as this before
      their convolutions, as the original has it whatever the map.
    dtype: type of the computation.
  """

  features: int = 256
  scale_factors: Sequence[float] = (2.0, 1.0, 0.5)
  top_block: nn.Module = StridedTop()
  upsample_dim: int = 768
  dtype: layers.DType = jnp.float32

  @property
  def finest_level(self) -> int:
    """Log2 of the first level's stride."""
    return _level(self.scale_factors[0])

  @nn.compact
  def __call__(
      self, x: Float[Array, 'B h w D']
  ) -> list[Float[Array, 'B _h _w Do']]:
    """Returns the levels, finest first.

    Args:
      x: map that stands for stride 16.

    Returns:
      Maps of strides 16 / scale, then those of the top block.

    Raises:
      ValueError: if a scale factor is unknown.
    """
    outputs = []
    for scale in self.scale_factors:
      name = f'simfp_{_level(scale)}'
      y, step = self._resize(x, scale, name)
      y = self._conv(y, 1, f'{name}.{step}')
      outputs.append(self._conv(y, 3, f'{name}.{step + 1}'))
    return [
        layers.constrain(
            y, axes.BATCH, axes.GRID_HEIGHT, axes.GRID_WIDTH, axes.EMBED
        )
        for y in outputs + self.top_block(outputs[-1])
    ]

  def _resize(
      self, x: Float[Array, 'B h w D'], scale: float, name: str
  ) -> tuple[Float[Array, 'B _h _w _D'], int]:
    """Resizes by that factor; also returns the number of steps taken."""
    dim = self.upsample_dim
    if scale == 4:
      y = Upsample(dim // 2, self.dtype, name=f'{name}.0')(x)
      y = layers.LayerNorm(dtype=self.dtype, name=f'{name}.1')(y)
      y = layers.exact_gelu(y)
      return Upsample(dim // 4, self.dtype, name=f'{name}.3')(y), 4
    if scale == 2:
      return Upsample(dim // 2, self.dtype, name=f'{name}.0')(x), 1
    if scale == 1:
      return x, 0
    # A row or column that fills no pair is dropped: 27 cells become 13.
    return nn.max_pool(x, (2, 2), (2, 2)), 1

  def _conv(
      self, x: Float[Array, 'B h w Di'], size: int, name: str
  ) -> Float[Array, 'B h w Do']:
    """Convolves without bias, then normalises the channels."""
    x = layers.Conv(
        self.features,
        (size, size),
        padding='SAME',
        use_bias=False,
        dtype=self.dtype,
        name=name,
    )(x)
    return layers.LayerNorm(dtype=self.dtype, name=f'{name}.norm')(x)


def _level(scale: float) -> int:
  """Log2 of the stride of a level of that size."""
  if scale not in (4, 2, 1, 0.5):
    raise ValueError(
        f'FeaturePyramid: scale_factors has {scale!r}; 4, 2, 1 and 0.5 are'
        ' known.'
    )
  return INPUT_LEVEL - int(math.log2(scale))
