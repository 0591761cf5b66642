"""CenterNet as a class-agnostic proposal stage.

At each cell of each pyramid level the head says how likely an object's centre
is there, and how far its four sides are. The best cells, after suppression,
are the proposals of the RoI stage.

RefA: Objects as Points (arXiv 1904.07850); RefB: Probabilistic two-stage
detection (CenterNet2, arXiv 2103.07461).

Parameter names follow the released checkpoints: `bbox_tower/0` is a
convolution, `bbox_tower/1` its norm, 2 would be the activation.
"""

from collections.abc import Sequence
import math

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from pixel_llm import axes
from pixel_llm import suppression
from pixel_llm.modules import layers

# RefB: a fresh head calls each cell a centre with probability 0.01 and gives
# boxes of 16 strides a side.
_PRIOR_PROBABILITY = 0.01
_PRIOR_DISTANCE = 8.0
_head_init = nn.initializers.normal(stddev=0.01)


@struct.dataclass
class CentreMaps:
  """What the head says of all cells of all levels, finest level first.

  Attributes:
    logits: whether an object's centre is in the cell.
    distances: from the cell to the left, top, right and bottom side, in
      strides; not negative.
    grids: height and width of each level.
    level_strides: pixels a cell of each level.
  """

  logits: Float[Array, 'B M']
  distances: Float[Array, 'B M 4']
  grids: tuple[tuple[int, int], ...] = struct.field(pytree_node=False)
  level_strides: tuple[int, ...] = struct.field(pytree_node=False)

  @property
  def centres(self) -> Float[np.ndarray, 'M 2']:
    """(x, y) of each cell in pixels, the same for all images."""
    return np.concatenate(
        [_cell_centres(g, s) for g, s in zip(self.grids, self.level_strides)]
    )

  @property
  def strides(self) -> Float[np.ndarray, 'M']:
    """Pixels of each cell."""
    return np.asarray(self.level_strides, np.float32)[self.levels]

  @property
  def levels(self) -> Int[np.ndarray, 'M']:
    """Index of each cell's level."""
    sizes = [height * width for height, width in self.grids]
    return np.repeat(np.arange(len(sizes)), sizes)

  def boxes(self) -> Float[Array, 'B M 4']:
    """Returns the box of each cell, in pixels, not clipped."""
    pixels = self.distances * self.strides[None, :, None]
    centres = self.centres[None]
    return jnp.concatenate(
        [centres - pixels[..., :2], centres + pixels[..., 2:]], axis=-1
    )


@struct.dataclass
class Proposals:
  """Boxes where something may be, best first.

  Attributes:
    boxes: pixels, not clipped.
    scores: 0 to 1.
    mask: False in slots for which suppression left nothing; these hold copies
      of the worst candidate, with score 0.
  """

  boxes: Float[Array, 'B K 4']
  scores: Float[Array, 'B K']
  mask: Bool[Array, 'B K']


class HeadConv(nn.Module):
  """3×3 convolution that starts small around a constant (RefB).

  Attributes:
    features: output width.
    bias: value that the bias starts from.
    channel_axes: logical axes of the input and the output width.
    dtype: type of the computation.
  """

  features: int
  bias: float = 0.0
  channel_axes: tuple[str, str] = (axes.CHANNELS, axes.EMBED)
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'B h w Di']) -> Float[Array, 'B h w Do']:
    """Convolves on the same grid."""
    kernel = layers.param(
        'kernel',
        _head_init,
        (3, 3, x.shape[-1], self.features),
        (axes.KERNEL_HEIGHT, axes.KERNEL_WIDTH, *self.channel_axes),
    )
    bias = layers.param(
        'bias',
        nn.initializers.constant(self.bias),
        (self.features,),
        self.channel_axes[1:],
    )
    y = jax.lax.conv_general_dilated(
        x.astype(self.dtype),
        kernel.astype(self.dtype),
        window_strides=(1, 1),
        padding='SAME',
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    return y + layers.align_last(bias, y.ndim).astype(self.dtype)


class GroupNorm(nn.Module):
  """Norm over the grid and each group of channels, computed in float32.

  Attributes:
    num_groups: groups that the channels are cut into.
    epsilon: added to the variance.
    dtype: type of the output.
  """

  num_groups: int = 32
  epsilon: float = 1e-6
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'B h w D']) -> Float[Array, 'B h w D']:
    """Normalises with the biased variance, then scales and shifts."""
    dim = x.shape[-1]
    if dim % self.num_groups:
      raise ValueError(
          f'GroupNorm: num_groups={self.num_groups} does not divide the width'
          f' {dim}.'
      )
    scale = layers.param('scale', layers.ones_init, (dim,), (axes.EMBED,))
    bias = layers.param('bias', layers.zeros_init, (dim,), (axes.EMBED,))
    groups = x.astype(jnp.float32).reshape(*x.shape[:3], self.num_groups, -1)
    centred = groups - jnp.mean(groups, axis=(1, 2, 4), keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=(1, 2, 4), keepdims=True)
    y = (centred * jax.lax.rsqrt(variance + self.epsilon)).reshape(x.shape)
    y = y * layers.align_last(scale, y.ndim) + layers.align_last(bias, y.ndim)
    return y.astype(self.dtype)


class Tower(nn.Module):
  """Convolutions with norm and activation, the same for all levels.

  Attributes:
    features: width.
    num_layers: convolutions.
    num_groups: of the norms.
    dtype: type of the computation.
  """

  features: int
  num_layers: int
  num_groups: int
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(
      self, levels: Sequence[Float[Array, 'B _h _w D']]
  ) -> list[Float[Array, 'B _h _w Do']]:
    """Applies the tower to each level."""
    steps = []
    for i in range(self.num_layers):
      steps += [
          HeadConv(self.features, dtype=self.dtype, name=f'{3 * i}'),
          GroupNorm(self.num_groups, dtype=self.dtype, name=f'{3 * i + 1}'),
          nn.relu,
      ]
    outputs = []
    for x in levels:
      for step in steps:
        x = step(x)
      outputs.append(x)
    return outputs


class Scale(nn.Module):
  """One learned factor."""

  @nn.compact
  def __call__(self, x: Float[Array, '*L']) -> Float[Array, '*L']:
    """Multiplies."""
    scale = layers.param('scale', layers.ones_init, (1,), (axes.UNIT,))
    return x * layers.align_last(scale, x.ndim).astype(x.dtype)


class CenterNet(nn.Module):
  """The proposal stage (RefB).

  Attributes:
    strides: pixels a cell of each level, finest first.
    features: width of the tower.
    num_layers: convolutions of the tower.
    num_groups: of its norms.
    score_threshold: cells of a lower score make no proposal.
    iou_threshold: proposals that overlap a better one this much are dropped.
    num_candidates_train: best cells that enter suppression in training.
    num_proposals_train: proposals in training.
    num_candidates_test: best cells that enter suppression at inference.
    num_proposals_test: proposals at inference.
    dtype: type of the computation; boxes and scores are float32.
  """

  strides: Sequence[int] = (8, 16, 32, 64, 128)
  features: int = 256
  num_layers: int = 4
  num_groups: int = 32
  score_threshold: float = 1e-4
  iou_threshold: float = 0.9
  num_candidates_train: int = 2000
  num_proposals_train: int = 1000
  num_candidates_test: int = 1000
  num_proposals_test: int = 256
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(self, levels: Sequence[Float[Array, 'B _h _w D']]) -> CentreMaps:
    """Looks at each cell of each level.

    Args:
      levels: the pyramid, finest first.

    Returns:
      Logits and distances of all cells.

    Raises:
      ValueError: if there is not one stride for each level.
    """
    if len(levels) != len(self.strides):
      raise ValueError(
          f'CenterNet: strides={tuple(self.strides)} are {len(self.strides)},'
          f' but the pyramid has {len(levels)} levels; give one for each.'
      )
    towers = Tower(
        self.features,
        self.num_layers,
        self.num_groups,
        self.dtype,
        name='bbox_tower',
    )(levels)
    heat = HeadConv(
        1,
        -math.log(1 / _PRIOR_PROBABILITY - 1),
        (axes.EMBED, axes.OUTPUTS),
        self.dtype,
        name='agn_hm',
    )
    distance = HeadConv(
        4,
        _PRIOR_DISTANCE,
        (axes.EMBED, axes.OUTPUTS),
        self.dtype,
        name='bbox_pred',
    )
    logits, distances = [], []
    for i, x in enumerate(towers):
      scaled = Scale(name=f'scales.{i}')(distance(x))
      logits.append(heat(x).reshape(x.shape[0], -1))
      distances.append(nn.relu(scaled).reshape(x.shape[0], -1, 4))
    return CentreMaps(
        logits=jnp.concatenate(logits, axis=1).astype(jnp.float32),
        distances=jnp.concatenate(distances, axis=1).astype(jnp.float32),
        grids=tuple(level.shape[1:3] for level in levels),
        level_strides=tuple(self.strides),
    )

  def propose(self, maps: CentreMaps, *, is_training: bool) -> Proposals:
    """Takes the best cells' boxes and suppresses; needs no parameters.

    Nothing learns through a proposal.

    Args:
      maps: what the head said.
      is_training: chooses between the numbers for training and for inference.

    Returns:
      The proposals.
    """
    if is_training:
      num_candidates = self.num_candidates_train
      num_proposals = self.num_proposals_train
    else:
      num_candidates = self.num_candidates_test
      num_proposals = self.num_proposals_test
    maps = jax.lax.stop_gradient(maps)
    scores, cells = jax.lax.top_k(
        nn.sigmoid(maps.logits), min(num_candidates, maps.logits.shape[1])
    )
    boxes = jnp.take_along_axis(maps.boxes(), cells[..., None], axis=1)
    kept = jax.vmap(
        lambda b, s: suppression.non_max_suppression(
            b,
            s,
            threshold=self.iou_threshold,
            num_kept=num_proposals,
            candidates=s > self.score_threshold,
        )
    )(boxes, scores)
    scores = jnp.take_along_axis(scores, kept.index, axis=1)
    return Proposals(
        boxes=jnp.take_along_axis(boxes, kept.index[..., None], axis=1),
        scores=jnp.where(kept.mask, scores, 0.0),
        mask=kept.mask,
    )


def _cell_centres(
    grid_hw: tuple[int, int], stride: int
) -> Float[np.ndarray, 'M 2']:
  """Returns (x, y) of the cells of a grid, row by row."""
  rows, columns = np.indices(grid_hw)
  cells = np.stack([columns, rows], axis=-1).reshape(-1, 2)
  return (cells * stride + stride // 2).astype(np.float32)
