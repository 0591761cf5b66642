"""Prompt adapter: learned tokens that read the image under a location prompt.

RefA: Xu et al., "Pixel Aligned Language Models" (arXiv 2312.09237), section
3.1, "prompt feature extractor".
"""

from typing import NamedTuple

from flax import linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from pixel_llm import axes
from pixel_llm.modules import layers
from pixel_llm.modules import sam_two_way_transformer


class PromptFeatures(NamedTuple):
  """What a prompt's features are made of, in two forms.

  Attributes:
    sparse: one vector for each learned output token.
    dense: the image map as the prompt sees it.
  """

  sparse: Float[Array, 'B N Q Do']
  dense: Float[Array, 'B N h w Do']


class PromptAdapter(nn.Module):
  """Two-way transformer over output tokens, prompt tokens and the image (RefA).

  The original calls its projections MLPs; each is a single linear layer.

  Attributes:
    depth: blocks of the transformer.
    transformer_dim: width of the transformer.
    num_outputs: learned output tokens Q, each with its own output layer.
    output_dim: width of the features.
    num_heads: heads of the transformer.
    mlp_dim: hidden width of its MLPs.
    downsample_rate: width over the inner width of its cross attentions.
    dtype: type of the computation.
  """

  depth: int = 6
  transformer_dim: int = 512
  num_outputs: int = 32
  output_dim: int = 1024
  num_heads: int = 8
  mlp_dim: int = 2048
  downsample_rate: int = 2
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(
      self,
      image: Float[Array, 'B h w Dv'],
      image_pe: Float[Array, 'h w Dp'],
      sparse: Float[Array, 'B N P Dp'],
      dense: Float[Array, 'Dp'],
  ) -> PromptFeatures:
    """Reads the image once for each prompt.

    Args:
      image: visual features of any width.
      image_pe: position encoding of their cells.
      sparse: embeddings of each prompt's points or corners.
      dense: the no-mask vector, added to every cell.

    Returns:
      Sparse and dense features; what is not used costs nothing once compiled.
    """
    dim = self.transformer_dim
    if sparse.shape[-1] != dim:
      # One layer serves the sparse embeddings and the dense vector.
      project = self._linear('prompt_embedding_projection_mlp', dim)
      sparse, dense = project(sparse), project(dense)
      image_pe = self._linear('image_pe_projection_mlp', dim)(image_pe)
    image_BhwD = self._linear('image_projection_mlp', dim)(image)
    image_BhwD += layers.align_last(dense, 4).astype(self.dtype)

    outputs = layers.param(
        'output_tokens.weight',
        nn.initializers.normal(stddev=1.0),
        (self.num_outputs, dim),
        (axes.QUERIES, axes.EMBED),
    ).astype(self.dtype)
    outputs = jnp.broadcast_to(
        outputs[None, None], (*sparse.shape[:2], *outputs.shape)
    )
    tokens, image_BNLD = sam_two_way_transformer.SamTwoWayTransformer(
        depth=self.depth,
        num_heads=self.num_heads,
        mlp_dim=self.mlp_dim,
        downsample_rate=self.downsample_rate,
        dtype=self.dtype,
        name='transformer',
    )(
        jnp.concatenate([outputs, sparse.astype(self.dtype)], axis=2),
        # One image for all its prompts, broadcast and not repeated.
        sam_two_way_transformer.flatten_grid(image_BhwD)[:, None],
        sam_two_way_transformer.flatten_grid(image_pe)[None, None],
    )
    sparse_outputs = [
        self._linear(f'output_hypernetworks_mlps.{i}', self.output_dim)(
            tokens[:, :, i]
        )
        for i in range(self.num_outputs)
    ]
    dense_output = self._linear('dense_output_mlp', self.output_dim)(image_BNLD)
    return PromptFeatures(
        sparse=jnp.stack(sparse_outputs, axis=2),
        dense=jnp.reshape(
            dense_output,
            (*dense_output.shape[:2], *image.shape[1:3], self.output_dim),
        ),
    )

  def _linear(self, name: str, features: int) -> layers.Mlp:
    return layers.Mlp(
        features, features, num_layers=1, dtype=self.dtype, name=name
    )
