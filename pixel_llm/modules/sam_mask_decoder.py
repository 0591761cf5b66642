"""SAM mask decoder: embeddings of a prompt become mask logits.

RefA: Kirillov et al., "Segment Anything" (arXiv 2304.02643), appendix A.
"""

from typing import NamedTuple

from flax import linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from pixel_llm import axes
from pixel_llm.modules import layers
from pixel_llm.modules import sam_two_way_transformer

WIDTH = 256


class MaskPrediction(NamedTuple):
  """Masks of each prompt, M a prompt.

  Attributes:
    logits: low-resolution logits that cover the padded network input, four
      cells a cell of the image features; above 0 is inside.
    iou: the predicted IoU of each mask with the truth.
  """

  logits: Float[Array, 'B N M Hm Wm']
  iou: Float[Array, 'B N M']


class DoublingConv(nn.Module):
  """Transposed 2×2 convolution of stride 2, which doubles each side.

  The kernel is stored as (height, width, out, in). Windows do not overlap, so
  it is one product and a reshape.

  Attributes:
    features: output width.
    dtype: type of the computation.
  """

  features: int
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, '*L h w Di']) -> Float[Array, '*L H W Do']:
    """Writes each cell into two by two cells."""
    kernel = layers.param(
        'kernel',
        nn.initializers.lecun_normal(in_axis=-1, out_axis=-2),
        (2, 2, self.features, x.shape[-1]),
        (axes.KERNEL_HEIGHT, axes.KERNEL_WIDTH, axes.OUTPUTS, axes.EMBED),
    )
    bias = layers.param(
        'bias', layers.zeros_init, (self.features,), (axes.OUTPUTS,)
    )
    y = jnp.einsum(
        '...hwi,kloi->...hkwlo',
        x.astype(self.dtype),
        kernel.astype(self.dtype),
    )
    *lead, height, width, _ = x.shape
    y = jnp.reshape(y, (*lead, 2 * height, 2 * width, self.features))
    return y + layers.align_last(bias, y.ndim).astype(self.dtype)


class Upscaling(nn.Module):
  """Two doublings with a norm and exact GELUs; the width falls to an eighth.

  Attributes:
    features: output width.
    dtype: type of the computation.
  """

  features: int
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, '*L h w Di']) -> Float[Array, '*L H W Do']:
    """Makes each side four times as long."""
    x = DoublingConv(2 * self.features, self.dtype, name='0')(x)
    x = layers.LayerNorm(dtype=self.dtype, name='1')(x)
    x = DoublingConv(self.features, self.dtype, name='3')(layers.exact_gelu(x))
    return layers.exact_gelu(x)


class SamMaskDecoder(nn.Module):
  """Mask decoder for N prompts of B images (RefA).

  Its transformer is 256 wide and has depth 2, 8 heads and MLP width 2048 in
  every variant.

  Attributes:
    num_multimask_outputs: masks besides the single one.
    iou_head_depth: linear layers of the IoU head.
    head_hidden_dim: width inside the IoU head and the heads of the masks.
    dtype: type of the computation; logits are float32.
  """

  num_multimask_outputs: int = 3
  iou_head_depth: int = 3
  head_hidden_dim: int = 256
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(
      self,
      image: Float[Array, 'B h w D'],
      image_pe: Float[Array, 'h w D'],
      sparse: Float[Array, 'B N Q D'],
      dense: Float[Array, 'D'] | Float[Array, '#B #N h w D'],
      *,
      multimask_output: bool = False,
  ) -> MaskPrediction:
    """Decodes masks.

    Args:
      image: features of the image, shared by its prompts.
      image_pe: position encoding of its cells.
      sparse: embeddings of each prompt's points or corners.
      dense: embedding of each prompt's mask, or one vector for all cells.
      multimask_output: whether to return the masks for ambiguous prompts (M =
        `num_multimask_outputs`) or the single one (M = 1).

    Returns:
      The chosen masks and their predicted IoU.

    Raises:
      ValueError: if image or prompts are not 256 wide.
    """
    if image.shape[-1] != WIDTH or sparse.shape[-1] != WIDTH:
      raise ValueError(
          f'SamMaskDecoder: the image has width {image.shape[-1]} and the'
          f' prompts {sparse.shape[-1]}; both must be {WIDTH}: set output_dim'
          ' of the image encoder and embed_dim of the prompt encoder.'
      )
    num_masks = 1 + self.num_multimask_outputs
    tokens = jnp.concatenate(
        [
            self._tokens('iou_token.weight', 1),
            self._tokens('mask_tokens.weight', num_masks),
        ]
    )
    tokens = jnp.broadcast_to(
        tokens[None, None], (*sparse.shape[:2], *tokens.shape)
    )
    dense = jnp.reshape(dense, (1,) * (5 - dense.ndim) + dense.shape)
    image_BNhwD = image[:, None] + dense
    tokens, image_BNLD = sam_two_way_transformer.SamTwoWayTransformer(
        dtype=self.dtype, name='transformer'
    )(
        jnp.concatenate([tokens, sparse], axis=2),
        sam_two_way_transformer.flatten_grid(image_BNhwD),
        sam_two_way_transformer.flatten_grid(image_pe[None, None]),
    )
    iou_token, mask_tokens = tokens[:, :, 0], tokens[:, :, 1 : 1 + num_masks]

    image_BNhwD = jnp.reshape(
        image_BNLD, (*image_BNLD.shape[:2], *image.shape[1:])
    )
    upscaled = Upscaling(WIDTH // 8, self.dtype, name='output_upscaling')(
        image_BNhwD
    )
    # All heads run, so that every mode has the same parameters; the compiler
    # removes what is not returned.
    filters = jnp.stack(
        [
            layers.Mlp(
                self.head_hidden_dim,
                WIDTH // 8,
                num_layers=3,
                dtype=self.dtype,
                name=f'output_hypernetworks_mlps.{i}',
            )(mask_tokens[:, :, i])
            for i in range(num_masks)
        ],
        axis=2,
    )
    iou = layers.Mlp(
        self.head_hidden_dim,
        num_masks,
        num_layers=self.iou_head_depth,
        dtype=self.dtype,
        name='iou_prediction_head',
    )(iou_token)
    chosen = slice(1, None) if multimask_output else slice(0, 1)
    logits = jnp.einsum(
        'bnmd,bnhwd->bnmhw',
        filters[:, :, chosen],
        upscaled,
        preferred_element_type=jnp.float32,
    )
    return MaskPrediction(logits, iou[:, :, chosen].astype(jnp.float32))

  def _tokens(self, name: str, num_tokens: int) -> Float[Array, 'M D']:
    tokens = layers.param(
        name,
        nn.initializers.normal(stddev=1.0),
        (num_tokens, WIDTH),
        (axes.QUERIES, axes.EMBED),
    )
    return tokens.astype(self.dtype)
