"""SAM image encoder: the localisation-aligned features ("sam_backbone").

A vision transformer whose blocks attend inside windows, but for a few global
ones, with decomposed relative positions; a neck of two convolutions follows.

RefA: Kirillov et al., "Segment Anything" (arXiv 2304.02643), appendix A.
RefB: Li et al., "Exploring Plain Vision Transformer Backbones for Object
Detection" (arXiv 2203.16527).
RefC: Li et al., "MViTv2" (arXiv 2112.01526), section 4.1.
"""

from collections.abc import Callable, Sequence

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pixel_llm import axes
from pixel_llm.modules import layers
from t5x import layer_stack


def partition_windows(
    x: Float[Array, 'B h w D'], window: int
) -> Float[Array, 'M s s D']:
  """Cuts a map into windows, padding with zeros at the bottom and the right.

  The original pads the height by the amount meant for the width and the
  reverse, which fails on most oblong maps; here each side gets its own. Equal
  on square maps.

  Args:
    x: the map.
    window: side s of a window in cells.

  Returns:
    The windows of the first map in row-major order, then the next map's.
  """
  batch, height, width, dim = x.shape
  x = jnp.pad(x, ((0, 0), (0, -height % window), (0, -width % window), (0, 0)))
  rows, columns = x.shape[1] // window, x.shape[2] // window
  x = jnp.reshape(x, (batch, rows, window, columns, window, dim))
  x = jnp.swapaxes(x, 2, 3)
  return jnp.reshape(x, (batch * rows * columns, window, window, dim))


def merge_windows(
    windows: Float[Array, 'M s s D'], height: int, width: int
) -> Float[Array, 'B h w D']:
  """Joins the windows of maps of that size again and drops the padding."""
  side, dim = windows.shape[1], windows.shape[-1]
  rows, columns = -(-height // side), -(-width // side)
  x = jnp.reshape(windows, (-1, rows, columns, side, side, dim))
  x = jnp.swapaxes(x, 2, 3)
  x = jnp.reshape(x, (-1, rows * side, columns * side, dim))
  return x[:, :height, :width]


def relative_rows(
    table: Float[Array, 'R E'], size: int
) -> Float[Array, 'size size E']:
  """Looks up the row of a relative table for each query and key position.

  Args:
    table: one row for each distance, from -(n - 1) to n - 1.
    size: positions along the axis; if it is not n the table is resized
      (linear, with antialias when it shrinks).

  Returns:
    Rows by query position, then key position.
  """
  num_rows = 2 * size - 1
  if table.shape[0] != num_rows:
    table = jax.image.resize(table, (num_rows, table.shape[1]), method='linear')
  position = jnp.arange(size)
  return table[position[:, None] - position[None, :] + size - 1]


class Attention(nn.Module):
  """Attention over a map with relative positions along each axis (RefC).

  Attributes:
    num_heads: number of heads.
    table_size: side of the map in cells that the relative tables are made for.
    dtype: type of the computation.
  """

  num_heads: int
  table_size: int
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'M h w D']) -> Float[Array, 'M h w D']:
    """Lets every cell see every cell of its map."""
    batch, height, width, dim = x.shape
    qkv = layers.Dense(
        3 * dim,
        kernel_axes=(axes.EMBED, axes.JOINED_KV),
        dtype=self.dtype,
        name='qkv',
    )(jnp.reshape(x, (batch, height * width, dim)))
    query, key, value = (
        layers.constrain(
            layers.split_heads(y, self.num_heads),
            axes.BATCH,
            axes.LENGTH,
            axes.HEADS,
            axes.KV,
        )
        for y in jnp.split(qkv, 3, axis=-1)
    )
    bias = self._relative_bias(
        jnp.reshape(query, (batch, height, width, self.num_heads, -1))
    )
    y = layers.dot_product_attention(query, key, value, bias)
    y = layers.Dense(
        dim,
        kernel_axes=(axes.JOINED_KV, axes.EMBED),
        dtype=self.dtype,
        name='proj',
    )(y)
    return jnp.reshape(y, x.shape)

  def _relative_bias(
      self, query: Float[Array, 'M h w A E']
  ) -> Float[Array, 'M A hw hw']:
    """Scores from the unscaled query and the distance along each axis."""
    batch, height, width, heads, head_dim = query.shape

    def rows(name: str, size: int) -> Array:
      table = layers.param(
          name,
          layers.zeros_init,
          (2 * self.table_size - 1, head_dim),
          (axes.RELPOS_BUCKETS, axes.KV),
      )
      return relative_rows(table, size).astype(self.dtype)

    row_scores = jnp.einsum(
        'mhwae,hke->mahwk', query, rows('rel_pos_h', height)
    )
    column_scores = jnp.einsum(
        'mhwae,wke->mahwk', query, rows('rel_pos_w', width)
    )
    bias = row_scores[..., :, None] + column_scores[..., None, :]
    return jnp.reshape(
        bias, (batch, heads, height * width, height * width)
    ).astype(jnp.float32)


class MlpBlock(nn.Module):
  """Two linear layers with an exact GELU between them.

  Attributes:
    hidden_dim: width inside.
    dtype: type of the computation.
  """

  hidden_dim: int
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'B h w D']) -> Float[Array, 'B h w D']:
    """Applies the layers to every cell."""
    y = layers.Dense(self.hidden_dim, dtype=self.dtype, name='lin1')(x)
    y = layers.exact_gelu(y)
    y = layers.constrain(
        y, axes.BATCH, axes.GRID_HEIGHT, axes.GRID_WIDTH, axes.MLP
    )
    return layers.Dense(
        x.shape[-1],
        kernel_axes=(axes.MLP, axes.EMBED),
        dtype=self.dtype,
        name='lin2',
    )(y)


class Block(nn.Module):
  """One block: attention inside windows or over the whole map, then an MLP.

  Attributes:
    num_heads: number of attention heads.
    mlp_dim: hidden width of the MLP.
    table_size: side of the relative tables in cells.
    window_size: side of a window in cells; 0 for a global block.
    dtype: type of the computation.
  """

  num_heads: int
  mlp_dim: int
  table_size: int
  window_size: int = 0
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(
      self,
      x: Float[Array, 'B h w D'],
      drop_path_rate: float | Float[Array, ''] = 0.0,
      enable_dropout: bool = False,
  ) -> Float[Array, 'B h w D']:
    """Refines the map.

    Args:
      x: the map.
      drop_path_rate: probability of skipping a branch.
      enable_dropout: whether branches may drop at all.

    Returns:
      The refined map.
    """
    x = layers.constrain(
        x, axes.BATCH, axes.GRID_HEIGHT, axes.GRID_WIDTH, axes.EMBED
    )
    attention = Attention(
        self.num_heads, self.table_size, self.dtype, name='attn'
    )
    y = layers.LayerNorm(dtype=self.dtype, name='norm1')(x)
    if self.window_size:
      # Padding comes after the norm: padded cells are zeros that are attended.
      y = attention(partition_windows(y, self.window_size))
      y = merge_windows(y, *x.shape[1:3])
    else:
      y = attention(y)
    x += layers.DropPath(drop_path_rate)(y, enable_dropout)
    y = layers.LayerNorm(dtype=self.dtype, name='norm2')(x)
    y = MlpBlock(self.mlp_dim, self.dtype, name='mlp')(y)
    return x + layers.DropPath(drop_path_rate)(y, enable_dropout)


class Blocks(nn.Module):
  """Blocks `blocks.0`, `blocks.1` … in a row.

  Attributes:
    num_blocks: how many.
    make_block: makes one, from its number.
    remat_policy: what the backward pass recomputes; see `t5x.layer_stack`.
  """

  num_blocks: int
  make_block: Callable[[int], Block]
  remat_policy: str = layer_stack.NO_REMAT

  @nn.compact
  def __call__(
      self,
      x: Float[Array, 'B h w D'],
      drop_path_rates: Sequence[float] | Float[Array, 'n'],
      enable_dropout: bool,
  ) -> Float[Array, 'B h w D']:
    """Refines the map; each block drops branches at its own rate."""

    def refine(block, x, rate):
      return block(x, rate, enable_dropout), None

    x, _ = layer_stack.run(
        refine,
        [self.make_block(i) for i in range(self.num_blocks)],
        x,
        drop_path_rates,
        num_layers=self.num_blocks,
        remat_policy=self.remat_policy,
    )
    return x


class Neck(nn.Module):
  """1×1 and 3×3 convolution, each followed by a norm over the channels.

  Attributes:
    features: output width.
    dtype: type of the computation.
  """

  features: int
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'B h w D']) -> Float[Array, 'B h w Do']:
    """Narrows the map."""
    x = layers.Conv(
        self.features,
        (1, 1),
        use_bias=False,
        channel_axes=(axes.EMBED, axes.OUTPUTS),
        dtype=self.dtype,
        name='0',
    )(x)
    x = layers.LayerNorm(dtype=self.dtype, name='1')(x)
    x = layers.Conv(
        self.features,
        (3, 3),
        padding='SAME',
        use_bias=False,
        dtype=self.dtype,
        name='2',
    )(x)
    return layers.LayerNorm(dtype=self.dtype, name='3')(x)


class SamImageEncoder(nn.Module):
  """SAM image encoder; the defaults are ViT-H/16 (RefA).

  Attributes:
    image_size: side in pixels that the position tables are made for.
    patch_size: side of a patch in pixels.
    embed_dim: width.
    depth: number of blocks.
    num_heads: attention heads.
    mlp_ratio: hidden width of an MLP over `embed_dim`.
    output_dim: width after the neck.
    window_size: side of a window in cells.
    global_block_indexes: blocks that attend over the whole map (RefB).
    drop_path_rate: rate of the last block; it grows linearly from 0. Every
      recipe freezes this tower, so it is 0.
    scan_layers: whether one group of blocks is compiled for all, from one
      global block to the next, and `blocks` holds their parameters.
    remat_policy: what the backward pass recomputes; see `t5x.layer_stack`.
    dtype: type of the computation.
  """

  image_size: int = 1024
  patch_size: int = 16
  embed_dim: int = 1280
  depth: int = 32
  num_heads: int = 16
  mlp_ratio: float = 4.0
  output_dim: int = 256
  window_size: int = 14
  global_block_indexes: Sequence[int] = (7, 15, 23, 31)
  drop_path_rate: float = 0.0
  scan_layers: bool = False
  remat_policy: str = layer_stack.NO_REMAT
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(
      self, images: Float[Array, 'B H W 3'], *, enable_dropout: bool = False
  ) -> Float[Array, 'B h w Do']:
    """Returns the map after the neck.

    Args:
      images: normalised images of any size, padding 0.
      enable_dropout: whether branches may drop (needs a `dropout` stream).

    Raises:
      ValueError: if `num_heads` does not divide `embed_dim`.
    """
    if self.embed_dim % self.num_heads:
      raise ValueError(
          f'SamImageEncoder: num_heads={self.num_heads} does not divide'
          f' embed_dim={self.embed_dim}; change one of the two.'
      )
    x = layers.Conv(
        self.embed_dim,
        (self.patch_size, self.patch_size),
        (self.patch_size, self.patch_size),
        dtype=self.dtype,
        name='patch_embed.proj',
    )(images)
    grid_size = self.image_size // self.patch_size
    x += self._position_table(grid_size, *x.shape[1:3]).astype(self.dtype)
    x = self._blocks(x, grid_size, enable_dropout)
    return Neck(self.output_dim, self.dtype, name='neck')(x)

  def _period(self) -> int:
    """How many blocks the scanned form repeats: the fewest that it can.

    With global blocks 7, 15, 23 and 31 of 32 it is 8.

    Raises:
      ValueError: if the blocks do not repeat.
    """
    is_global = [i in self.global_block_indexes for i in range(self.depth)]
    for period in range(1, self.depth):
      repeats = self.depth // period
      if is_global[:period] * repeats == is_global:
        return period
    raise ValueError(
        'SamImageEncoder.scan_layers needs blocks that repeat, but with'
        f' global_block_indexes={tuple(self.global_block_indexes)} no group of'
        f' them gives the depth={self.depth} of the tower when repeated. Set'
        ' scan_layers to False, or space the global blocks evenly up to the'
        ' last.'
    )

  def _blocks(
      self, x: Float[Array, 'B h w D'], grid_size: int, enable_dropout: bool
  ) -> Float[Array, 'B h w D']:
    """Passes the map through all blocks."""
    rates = layers.drop_path_rates(self.drop_path_rate, self.depth)
    may_drop = enable_dropout and any(rates)

    def make_block(i):
      is_global = i in self.global_block_indexes
      return Block(
          self.num_heads,
          int(self.embed_dim * self.mlp_ratio),
          table_size=grid_size if is_global else self.window_size,
          window_size=0 if is_global else self.window_size,
          dtype=self.dtype,
          name=f'blocks.{i}',
      )

    if not self.scan_layers:
      blocks = Blocks(self.depth, make_block, self.remat_policy)
      nn.share_scope(self, blocks)
      return blocks(x, rates, may_drop)
    period = self._period()
    x, _ = layer_stack.run(
        lambda group, x, rates: (group(x, rates, may_drop), None),
        Blocks(period, make_block, self.remat_policy, name='blocks'),
        x,
        jnp.reshape(jnp.asarray(rates), (-1, period)),
        num_layers=self.depth // period,
    )
    return x

  def _position_table(
      self, grid_size: int, height: int, width: int
  ) -> Float[Array, '1 h w D']:
    """The learned table, resized unless both sides fit.

    The original looks at the height only.
    """
    table = layers.param(
        'pos_embed',
        layers.table_init,
        (1, grid_size, grid_size, self.embed_dim),
        (axes.UNIT, axes.GRID_HEIGHT, axes.GRID_WIDTH, axes.EMBED),
    )
    if (height, width) == (grid_size, grid_size):
      return table
    return jax.image.resize(
        table, (1, height, width, self.embed_dim), method='bicubic'
    )
