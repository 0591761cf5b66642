"""SAM two-way transformer: prompt tokens and image read each other.

Leading axes are free, and those of the image may have size one where all
prompts share it: the first layer's keys and values are then computed once.

RefA: Kirillov et al., "Segment Anything" (arXiv 2304.02643), appendix A.
"""

from flax import linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pixel_llm import axes
from pixel_llm.modules import layers

# Added to the attention logits of what nobody reads.
_HIDDEN = -1e10


class Attention(nn.Module):
  """Attention whose inner width may be narrower than its input.

  Attributes:
    num_heads: number of heads.
    downsample_rate: input width over inner width.
    dtype: type of the computation.
  """

  num_heads: int
  downsample_rate: int = 1
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(
      self,
      query: Float[Array, '*LQ q D'],
      key: Float[Array, '*LK k D'],
      value: Float[Array, '*LK k D'],
      key_mask: Bool[Array, '*LK k'] | None = None,
  ) -> Float[Array, '*L q D']:
    """Lets queries read values; leading axes broadcast.

    Args:
      query: who reads.
      key: by what.
      value: what is read.
      key_mask: False for values that nobody reads; None for none such.

    Returns:
      What each query read.
    """
    dim = query.shape[-1]
    inner_dim = dim // self.downsample_rate
    if inner_dim % self.num_heads:
      raise ValueError(
          f'SamTwoWayTransformer: num_heads={self.num_heads} does not divide'
          f' the inner width {inner_dim} (width {dim} over'
          f' {self.downsample_rate}); change one of them.'
      )

    def project(name: str, x: Array) -> Array:
      y = layers.Dense(
          inner_dim,
          kernel_axes=(axes.EMBED, axes.JOINED_KV),
          dtype=self.dtype,
          name=name,
      )(x)
      return layers.split_heads(y, self.num_heads)

    attended = layers.dot_product_attention(
        project('q_proj', query),
        project('k_proj', key),
        project('v_proj', value),
        None
        if key_mask is None
        else jnp.where(key_mask, 0.0, _HIDDEN)[..., None, None, :],
    )
    return layers.Dense(
        dim,
        kernel_axes=(axes.JOINED_KV, axes.EMBED),
        dtype=self.dtype,
        name='out_proj',
    )(attended)


class MlpBlock(nn.Module):
  """Two linear layers with a ReLU between them.

  Attributes:
    hidden_dim: width inside.
    dtype: type of the computation.
  """

  hidden_dim: int
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, '*L q D']) -> Float[Array, '*L q D']:
    """Applies the layers to every token."""
    y = layers.Dense(self.hidden_dim, dtype=self.dtype, name='lin1')(x)
    return layers.Dense(
        x.shape[-1],
        kernel_axes=(axes.MLP, axes.EMBED),
        dtype=self.dtype,
        name='lin2',
    )(nn.relu(y))


class Block(nn.Module):
  """Self-attention, tokens read the image, MLP, the image reads the tokens.

  Attributes:
    num_heads: number of heads.
    mlp_dim: hidden width of the MLP.
    downsample_rate: of the cross attentions.
    is_first: whether self-attention replaces the tokens, without positions and
      without a residual.
    dtype: type of the computation.
  """

  num_heads: int
  mlp_dim: int
  downsample_rate: int
  is_first: bool = False
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(
      self,
      tokens: Float[Array, '*LQ q D'],
      image: Float[Array, '*LK k D'],
      token_pe: Float[Array, '*LQ q D'],
      image_pe: Float[Array, '*LP #k D'],
      image_mask: Bool[Array, '*LK k'] | None,
  ) -> tuple[Float[Array, '*L q D'], Float[Array, '*L k D']]:
    """Returns the refined tokens and the refined image."""

    def norm(name: str) -> layers.LayerNorm:
      return layers.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)

    def cross_attention(name: str) -> Attention:
      return Attention(
          self.num_heads, self.downsample_rate, self.dtype, name=name
      )

    self_attention = Attention(
        self.num_heads, dtype=self.dtype, name='self_attn'
    )
    if self.is_first:
      tokens = self_attention(tokens, tokens, tokens)
    else:
      query = tokens + token_pe
      tokens += self_attention(query, query, tokens)
    tokens = norm('norm1')(tokens)

    key = image + image_pe
    tokens = tokens + cross_attention('cross_attn_token_to_image')(
        tokens + token_pe, key, image, image_mask
    )
    tokens = norm('norm2')(tokens)
    tokens += MlpBlock(self.mlp_dim, self.dtype, name='mlp')(tokens)
    tokens = norm('norm3')(tokens)

    # From here on the image differs between prompts.
    image = image + cross_attention('cross_attn_image_to_token')(
        key, tokens + token_pe, tokens
    )
    return tokens, norm('norm4')(image)


class SamTwoWayTransformer(nn.Module):
  """Stack of two-way blocks and a last look of the tokens at the image (RefA).

  Attributes:
    depth: number of blocks.
    num_heads: number of heads.
    mlp_dim: hidden width of the MLPs.
    downsample_rate: width over the inner width of cross attention.
    dtype: type of the computation.
  """

  depth: int = 2
  num_heads: int = 8
  mlp_dim: int = 2048
  downsample_rate: int = 2
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(
      self,
      tokens: Float[Array, '*LQ q D'],
      image: Float[Array, '*LK k D'],
      image_pe: Float[Array, '*LP #k D'],
      image_mask: Bool[Array, '*LK k'] | None = None,
  ) -> tuple[Float[Array, '*L q D'], Float[Array, '*L k D']]:
    """Lets tokens and image read each other.

    Args:
      tokens: query tokens; they are their own positions in every layer.
      image: flattened image features; leading axes of size one are shared.
      image_pe: their positions, of the same rank; it broadcasts.
      image_mask: False for image features that no token reads; None for none.

    Returns:
      The tokens after the final norm, and the image after the last block.
    """
    tokens = tokens.astype(self.dtype)
    image = image.astype(self.dtype)
    image_pe = image_pe.astype(self.dtype)
    token_pe = tokens
    for i in range(self.depth):
      tokens, image = Block(
          self.num_heads,
          self.mlp_dim,
          self.downsample_rate,
          is_first=i == 0,
          dtype=self.dtype,
          name=f'layers.{i}',
      )(tokens, image, token_pe, image_pe, image_mask)
    tokens = tokens + Attention(
        self.num_heads,
        self.downsample_rate,
        self.dtype,
        name='final_attn_token_to_image',
    )(tokens + token_pe, image + image_pe, image, image_mask)
    tokens = layers.LayerNorm(
        epsilon=1e-5, dtype=self.dtype, name='norm_final_attn'
    )(tokens)
    return tokens, image


def flatten_grid(x: Float[Array, '*L h w D']) -> Float[Array, '*L hw D']:
  """Turns a map into tokens in row-major order."""
  return jnp.reshape(x, (*x.shape[:-3], -1, x.shape[-1]))
