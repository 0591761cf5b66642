"""Mask adapter: what was said about a box refines its corner embeddings.

RefA: Xu et al., "Pixel Aligned Language Models" (arXiv 2312.09237), on
referring segmentation. RefB: Alayrac et al., "Flamingo" (arXiv 2204.14198),
section 2.2, for the gate.
"""

from flax import linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pixel_llm import axes
from pixel_llm.modules import layers
from pixel_llm.modules import sam_two_way_transformer


class MaskAdapter(nn.Module):
  """Adds a correction, read from visual and text features, to sparse prompts.

  Learned tokens read the two sequences with a two-way transformer. The tanh
  gate starts at 0, so training starts from SAM as it was.

  Attributes:
    depth: blocks of the transformer.
    transformer_dim: its width; that of the corner embeddings.
    num_outputs: learned tokens, one for each sparse embedding.
    input_projection: whether a norm and a linear layer bring both sequences to
      `transformer_dim`; without it they must have that width.
    gating: whether the correction is gated.
    num_heads: heads of the transformer.
    mlp_dim: hidden width of its MLPs.
    downsample_rate: width over the inner width of its cross attentions.
    reads_padding: whether text features of padding take part, as in the
      original. Then masks depend on how long texts are padded; parameters that
      were trained so need it.
    dtype: type of the computation.
  """

  depth: int = 2
  transformer_dim: int = 256
  num_outputs: int = 2
  input_projection: bool = True
  gating: bool = True
  num_heads: int = 8
  mlp_dim: int = 2048
  downsample_rate: int = 2
  reads_padding: bool = False
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(
      self,
      sparse: Float[Array, 'B N Q D'],
      visual: Float[Array, 'B N L Dv'],
      text: Float[Array, 'B N T Dt'],
      text_mask: Bool[Array, 'B N T'],
  ) -> Float[Array, 'B N Q D']:
    """Corrects the embeddings.

    Args:
      sparse: corner embeddings of each prompt's box.
      visual: visual tokens of each prompt.
      text: text features of each prompt.
      text_mask: False for features of padding.

    Returns:
      The corrected embeddings.

    Raises:
      ValueError: if `sparse` does not have `num_outputs` rows of
        `transformer_dim`.
    """
    wanted = (self.num_outputs, self.transformer_dim)
    if sparse.shape[2:] != wanted:
      raise ValueError(
          'MaskAdapter: sparse embeddings of a prompt have shape'
          f' {sparse.shape[2:]}, but num_outputs and transformer_dim are'
          f' {wanted}; set them to the same.'
      )
    if self.input_projection:
      visual = self._project('visual_projection_mlp')(visual)
      text = self._project('textual_projection_mlp')(text)
    sequence = jnp.concatenate(
        [visual.astype(self.dtype), text.astype(self.dtype)], axis=2
    )
    mask = jnp.concatenate(
        [jnp.ones(visual.shape[:3], bool), text_mask], axis=2
    )
    tokens = self._table(
        'output_tokens.weight', nn.initializers.normal(stddev=1.0)
    ).astype(self.dtype)
    tokens = jnp.broadcast_to(tokens, sparse.shape)
    correction, _ = sam_two_way_transformer.SamTwoWayTransformer(
        depth=self.depth,
        num_heads=self.num_heads,
        mlp_dim=self.mlp_dim,
        downsample_rate=self.downsample_rate,
        dtype=self.dtype,
        name='transformer',
    )(
        tokens,
        sequence,
        # The sequence has no positions of its own.
        jnp.zeros((1, 1, 1, self.transformer_dim), self.dtype),
        None if self.reads_padding else mask,
    )
    if self.gating:
      alpha = self._table('alpha_output.weight', layers.zeros_init)
      correction *= jnp.tanh(alpha).astype(self.dtype)
    return sparse + correction.astype(sparse.dtype)

  def _project(self, name: str) -> layers.Mlp:
    return layers.Mlp(
        self.transformer_dim,
        self.transformer_dim,
        num_layers=1,
        pre_norm=True,
        dtype=self.dtype,
        name=name,
    )

  def _table(
      self, name: str, init: layers.Initializer
  ) -> Float[Array, '1 1 Q D']:
    table = layers.param(
        name,
        init,
        (self.num_outputs, self.transformer_dim),
        (axes.QUERIES, axes.EMBED),
    )
    return table[None, None]
