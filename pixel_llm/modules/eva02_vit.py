"""EVA02 vision tower: the language-aligned features ("git_backbone").

Pre-norm blocks of attention with 2-D rotary positions and a SwiGLU with a norm
inside, over a class token and the patches of the image.

RefA: Fang et al., "EVA-02: A Visual Representation for Neon Genesis"
(arXiv 2303.11331). RefB: Su et al., "RoFormer" (arXiv 2104.09864).
"""

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pixel_llm import axes
from pixel_llm.modules import layers
from t5x import layer_stack

# RefB section 3.3.
ROTARY_BASE = 10000.0


def rotary_angles(
    height: int, width: int, head_dim: int
) -> Float[Array, 'hw E']:
  """Angles by which each pair of channels of each patch is turned (RefA).

  The first half of a head turns with the row of the patch, the second half with
  the column. Positions are whole numbers from 0 whatever the image size: they
  are not rescaled to the grid of the pretraining. Both channels of a pair hold
  the same angle, such as for width 8: f0 f0 f1 f1 (row), f0 f0 f1 f1 (column).

  Args:
    height: rows of the grid.
    width: columns of the grid.
    head_dim: width of a head, a multiple of four.

  Returns:
    Angles in radians, patches in row-major order.
  """
  half = head_dim // 2
  frequencies = ROTARY_BASE ** (-jnp.arange(0, half, 2) / half)
  frequencies = jnp.repeat(frequencies, 2)
  rows = jnp.arange(height)[:, None] * frequencies[None, :]
  columns = jnp.arange(width)[:, None] * frequencies[None, :]
  angles = jnp.concatenate(
      [
          jnp.broadcast_to(rows[:, None, :], (height, width, half)),
          jnp.broadcast_to(columns[None, :, :], (height, width, half)),
      ],
      axis=-1,
  )
  return jnp.reshape(angles, (height * width, head_dim))


def rotate(
    x: Float[Array, 'B S A E'], angles: Float[Array, 'hw E']
) -> Float[Array, 'B S A E']:
  """Turns neighbouring channels by `angles`, leaving the class token alone.

  Args:
    x: queries or keys; the first of the S = 1 + hw tokens is the class token.
    angles: as `rotary_angles` returns them.

  Returns:
    The turned queries or keys, in the type of `x`.
  """
  class_token, patches = x[:, :1], x[:, 1:].astype(jnp.float32)
  pairs = jnp.reshape(patches, (*patches.shape[:-1], -1, 2))
  turned = jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1)
  turned = jnp.reshape(turned, patches.shape)
  angles = angles[None, :, None, :]
  patches = patches * jnp.cos(angles) + turned * jnp.sin(angles)
  return jnp.concatenate([class_token, patches.astype(x.dtype)], axis=1)


class Attention(nn.Module):
  """Self-attention with rotary positions; the keys have no bias (RefA).

  Attributes:
    num_heads: number of heads.
    inner_norm: whether a layer norm precedes the output layer.
    dtype: type of the computation.
  """

  num_heads: int
  inner_norm: bool = False
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(
      self, x: Float[Array, 'B S D'], angles: Float[Array, 'hw E']
  ) -> Float[Array, 'B S D']:
    """Lets every token see every token."""
    dim = x.shape[-1]

    def project(name: str, bias_name: str | None) -> Array:
      y = layers.Dense(
          dim,
          use_bias=False,
          kernel_axes=(axes.EMBED, axes.JOINED_KV),
          dtype=self.dtype,
          name=name,
      )(x)
      if bias_name is not None:
        bias = layers.param(
            bias_name, layers.zeros_init, (dim,), (axes.JOINED_KV,)
        )
        y += layers.align_last(bias, y.ndim).astype(self.dtype)
      return layers.constrain(
          layers.split_heads(y, self.num_heads),
          axes.BATCH,
          axes.LENGTH,
          axes.HEADS,
          axes.KV,
      )

    query = rotate(project('q_proj', 'q_bias'), angles)
    key = rotate(project('k_proj', None), angles)
    value = project('v_proj', 'v_bias')
    attended = layers.dot_product_attention(query, key, value)
    if self.inner_norm:
      attended = layers.LayerNorm(dtype=self.dtype, name='inner_attn_ln')(
          attended
      )
    return layers.Dense(
        dim,
        kernel_axes=(axes.JOINED_KV, axes.EMBED),
        dtype=self.dtype,
        name='proj',
    )(attended)


class SwiGlu(nn.Module):
  """Gated MLP with a layer norm (1e-5) before its output layer (RefA).

  Attributes:
    hidden_dim: width inside.
    dtype: type of the computation.
  """

  hidden_dim: int
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'B S D']) -> Float[Array, 'B S D']:
    """Returns w3(norm(silu(w1 x) · w2 x))."""

    def project(name: str) -> Array:
      return layers.Dense(self.hidden_dim, dtype=self.dtype, name=name)(x)

    hidden = nn.silu(project('w1')) * project('w2')
    hidden = layers.constrain(hidden, axes.BATCH, axes.LENGTH, axes.MLP)
    hidden = layers.LayerNorm(
        epsilon=1e-5, axis=axes.MLP, dtype=self.dtype, name='ffn_ln'
    )(hidden)
    return layers.Dense(
        x.shape[-1],
        kernel_axes=(axes.MLP, axes.EMBED),
        dtype=self.dtype,
        name='w3',
    )(hidden)


class Block(nn.Module):
  """One block: attention, then SwiGLU, each after a norm and with a residual.

  Attributes:
    num_heads: number of attention heads.
    mlp_dim: hidden width of the SwiGLU.
    attention_norm: whether attention has an inner norm.
    dtype: type of the computation.
  """

  num_heads: int
  mlp_dim: int
  attention_norm: bool = False
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(
      self,
      x: Float[Array, 'B S D'],
      angles: Float[Array, 'hw E'],
      drop_path_rate: float | Float[Array, ''] = 0.0,
      enable_dropout: bool = False,
  ) -> Float[Array, 'B S D']:
    """Refines the tokens.

    Args:
      x: class token and patches.
      angles: as `rotary_angles` returns them.
      drop_path_rate: probability of skipping a branch.
      enable_dropout: whether branches may drop at all.

    Returns:
      The refined tokens.
    """
    x = layers.constrain(x, axes.BATCH, axes.LENGTH, axes.EMBED)
    y = layers.LayerNorm(dtype=self.dtype, name='norm1')(x)
    y = Attention(self.num_heads, self.attention_norm, self.dtype, name='attn')(
        y, angles
    )
    x += layers.DropPath(drop_path_rate)(y, enable_dropout)
    y = layers.LayerNorm(dtype=self.dtype, name='norm2')(x)
    y = SwiGlu(self.mlp_dim, self.dtype, name='mlp')(y)
    return x + layers.DropPath(drop_path_rate)(y, enable_dropout)


class Eva02Vit(nn.Module):
  """EVA02 tower; the defaults are EVA02-L/14 (RefA table 2).

  Attributes:
    patch_size: side of a patch in pixels. A rest of the image that fills no
      patch is not seen: 384 pixels make 27 patches of 14.
    embed_dim: width.
    depth: number of blocks.
    num_heads: attention heads; the width of a head is a multiple of four.
    mlp_ratio: hidden width of the SwiGLU over `embed_dim`, rounded down.
    pretrain_image_size: side in pixels that the position table was made for.
    use_final_norm: whether a layer norm follows the last block.
    drop_path_rate: rate of the last block; it grows linearly from 0.
    attention_norm: whether attention has a layer norm before its output layer,
      as EVA02-CLIP has and the original PixelLLM has not.
    scan_layers: whether one block is compiled for all, and `blocks` holds their
      parameters.
    remat_policy: what the backward pass recomputes; see `t5x.layer_stack`.
    dtype: type of the computation.
  """

  patch_size: int = 14
  embed_dim: int = 1024
  depth: int = 24
  num_heads: int = 16
  mlp_ratio: float = 4 * 2 / 3
  pretrain_image_size: int = 224
  use_final_norm: bool = True
  drop_path_rate: float = 0.1
  attention_norm: bool = False
  scan_layers: bool = False
  remat_policy: str = layer_stack.NO_REMAT
  dtype: layers.DType = jnp.float32

  def grid_size(self, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the feature map of an image in pixels."""
    return height // self.patch_size, width // self.patch_size

  def __call__(
      self, images: Float[Array, 'B H W 3'], *, enable_dropout: bool = False
  ) -> Float[Array, 'B h w D']:
    """Returns the feature map, without the class token.

    Args:
      images: normalised images, padding 0.
      enable_dropout: whether branches may drop (needs a `dropout` stream).
    """
    tokens = self.tokens(images, enable_dropout=enable_dropout)
    grid = self.grid_size(*images.shape[1:3])
    return jnp.reshape(tokens[:, 1:], (tokens.shape[0], *grid, -1))

  @nn.compact
  def tokens(
      self, images: Float[Array, 'B H W 3'], *, enable_dropout: bool = False
  ) -> Float[Array, 'B S D']:
    """Returns the class token, then the patches in row-major order.

    Args:
      images: normalised images, padding 0.
      enable_dropout: whether branches may drop (needs a `dropout` stream).

    Returns:
      S = 1 + hw tokens.

    Raises:
      ValueError: if the heads do not divide the width into fours.
    """
    head_dim, rest = divmod(self.embed_dim, self.num_heads)
    if rest or head_dim % 4:
      raise ValueError(
          f'Eva02Vit: embed_dim={self.embed_dim} over num_heads='
          f'{self.num_heads} must be a multiple of 4, because rotary positions'
          ' turn pairs in each half of a head; change one of the two.'
      )
    patches = layers.Conv(
        self.embed_dim,
        (self.patch_size, self.patch_size),
        (self.patch_size, self.patch_size),
        dtype=self.dtype,
        name='patch_embed.proj',
    )(images)
    batch, height, width, _ = patches.shape
    class_token = layers.param(
        'cls_token',
        layers.table_init,
        (1, 1, self.embed_dim),
        (axes.UNIT, axes.LENGTH, axes.EMBED),
    )
    x = jnp.concatenate(
        [
            jnp.broadcast_to(class_token, (batch, 1, self.embed_dim)).astype(
                self.dtype
            ),
            jnp.reshape(patches, (batch, height * width, -1)),
        ],
        axis=1,
    )
    x += self._position_table(height, width).astype(self.dtype)
    x = self._blocks(x, rotary_angles(height, width, head_dim), enable_dropout)
    if self.use_final_norm:
      x = layers.LayerNorm(dtype=self.dtype, name='ln_post')(x)
    return x

  def _blocks(
      self,
      x: Float[Array, 'B S D'],
      angles: Float[Array, 'hw E'],
      enable_dropout: bool,
  ) -> Float[Array, 'B S D']:
    """Passes the tokens through all blocks."""
    rates = layers.drop_path_rates(self.drop_path_rate, self.depth)
    may_drop = enable_dropout and any(rates)

    def make_block(name):
      mlp_dim = int(self.embed_dim * self.mlp_ratio)
      return Block(
          self.num_heads, mlp_dim, self.attention_norm, self.dtype, name=name
      )

    def refine(block, x, rate):
      return block(x, angles, rate, may_drop), None

    if self.scan_layers:
      blocks, rates = make_block('blocks'), jnp.asarray(rates)
    else:
      blocks = [make_block(f'blocks.{i}') for i in range(self.depth)]
    x, _ = layer_stack.run(
        refine,
        blocks,
        x,
        rates,
        num_layers=self.depth,
        remat_policy=self.remat_policy,
    )
    return x

  def _position_table(self, height: int, width: int) -> Float[Array, '1 S D']:
    """The learned table at this grid; the class token's row is not resized."""
    side = self.pretrain_image_size // self.patch_size
    table = layers.param(
        'pos_embed',
        layers.table_init,
        (1, 1 + side * side, self.embed_dim),
        (axes.UNIT, axes.ABSPOS_BUCKETS, axes.EMBED),
    )
    if (height, width) == (side, side):
      return table
    grid = jnp.reshape(table[:, 1:], (1, side, side, -1))
    grid = jax.image.resize(
        grid, (1, height, width, self.embed_dim), method='bicubic'
    )
    grid = jnp.reshape(grid, (1, height * width, -1))
    return jnp.concatenate([table[:, :1], grid], axis=1)
