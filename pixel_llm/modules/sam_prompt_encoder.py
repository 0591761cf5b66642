"""SAM prompt encoder: points, boxes and masks become embeddings.

A location is a random-Fourier encoding of its position plus a learned vector
that says what kind of location it is.

RefA: Kirillov et al., "Segment Anything" (arXiv 2304.02643), appendix A.
RefB: Tancik et al., "Fourier Features Let Networks Learn High Frequency
Functions" (arXiv 2006.10739).
"""

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pixel_llm import axes
from pixel_llm.modules import layers

# Rows of the type embeddings: a negative point, a positive point, the top left
# and the bottom right corner of a box.
_NEGATIVE, _POSITIVE, _TOP_LEFT, _BOTTOM_RIGHT = range(4)


class RandomPositionEncoding(nn.Module):
  """Sine and cosine of a fixed random projection of a position (RefB).

  The matrix is stored with the parameters and never receives a gradient.

  Attributes:
    num_features: width of the projection, half of the encoding's.
  """

  num_features: int

  def setup(self):
    """Creates the matrix."""
    self.matrix = layers.param(
        'positional_encoding_gaussian_matrix',
        nn.initializers.normal(stddev=1.0),
        (2, self.num_features),
        (axes.COORDINATES, axes.EMBED),
    )

  def __call__(self, points_rel: Float[Array, '*L 2']) -> Float[Array, '*L D']:
    """Encodes relative (x, y), 0 to 1 over the image, in float32."""
    matrix = jax.lax.stop_gradient(self.matrix)
    projected = (
        2 * jnp.pi * jnp.einsum('...c,cf->...f', 2 * points_rel - 1, matrix)
    )
    return jnp.concatenate([jnp.sin(projected), jnp.cos(projected)], axis=-1)


class MaskDownscaling(nn.Module):
  """Convolutions that bring mask logits to the grid of the image features.

  Attributes:
    embed_dim: output width.
    hidden_dim: width before the last layer; a quarter of it before that.
    dtype: type of the computation.
  """

  embed_dim: int
  hidden_dim: int
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(
      self, masks: Float[Array, '*L H W 1']
  ) -> Float[Array, '*L h w D']:
    """Shrinks each side by four."""
    x = masks
    for first, features in ((0, self.hidden_dim // 4), (3, self.hidden_dim)):
      x = layers.Conv(
          features, (2, 2), (2, 2), dtype=self.dtype, name=str(first)
      )(x)
      x = layers.LayerNorm(dtype=self.dtype, name=str(first + 1))(x)
      x = layers.exact_gelu(x)
    return layers.Conv(self.embed_dim, (1, 1), dtype=self.dtype, name='6')(x)


class SamPromptEncoder(nn.Module):
  """Prompt encoder; leading axes of prompts are free (RefA).

  The mask branch has parameters only in a tree that was initialised with masks:
  PixelLLM never prompts with a mask.

  Attributes:
    embed_dim: width of the embeddings, even.
    mask_dim: width inside the mask branch.
    dtype: type of the embeddings.
  """

  embed_dim: int = 256
  mask_dim: int = 16
  dtype: layers.DType = jnp.float32

  def setup(self):
    """Creates all vectors, so that trees do not depend on the first call."""
    if self.embed_dim % 2:
      raise ValueError(
          f'SamPromptEncoder: embed_dim={self.embed_dim} must be even, half'
          ' sines and half cosines.'
      )
    self.pe_layer = RandomPositionEncoding(self.embed_dim // 2)
    self.point_embeddings = [
        self._vector(f'point_embeddings.{i}.weight') for i in range(4)
    ]
    self.not_a_point = self._vector('not_a_point_embed.weight')
    self.no_mask_embedding = self._vector('no_mask_embed.weight')
    self.mask_downscaling = MaskDownscaling(
        self.embed_dim, self.mask_dim, self.dtype
    )

  def _vector(self, name: str) -> Array:
    vector = layers.param(
        name,
        nn.initializers.normal(stddev=1.0),
        (1, self.embed_dim),
        (axes.QUERIES, axes.EMBED),
    )
    return jnp.reshape(vector, (self.embed_dim,))

  def points(
      self,
      points: Float[Array, '*L P 2'],
      labels: Int[Array, '*L P'],
      image_hw: tuple[int, int] | Array,
      *,
      pad: bool = False,
  ) -> Float[Array, '*L Q D']:
    """Embeds points.

    Args:
      points: (x, y) in pixels.
      labels: 1 positive, 0 negative, -1 ignored.
      image_hw: height and width in pixels that the points are relative to.
      pad: whether an ignored point is appended (Q = P + 1, else Q = P). SAM
        does so where no box follows.

    Returns:
      One embedding a point.
    """
    if pad:
      lead = ((0, 0),) * (points.ndim - 2)
      points = jnp.pad(points, (*lead, (0, 1), (0, 0)))
      labels = jnp.pad(labels, (*lead, (0, 1)), constant_values=-1)
    encoding = self._encode(points, image_hw)
    labels = labels[..., None]

    def row(vector: Array) -> Array:
      return layers.align_last(vector, encoding.ndim)

    typed = encoding + jnp.where(
        labels == 1,
        row(self.point_embeddings[_POSITIVE]),
        row(self.point_embeddings[_NEGATIVE]),
    )
    return jnp.where(labels == -1, row(self.not_a_point), typed).astype(
        self.dtype
    )

  def boxes(
      self,
      boxes: Float[Array, '*L 4'],
      image_hw: tuple[int, int] | Array,
  ) -> Float[Array, '*L 2 D']:
    """Embeds the top left and the bottom right corner of each box.

    Args:
      boxes: x0, y0, x1, y1 in pixels.
      image_hw: height and width in pixels that the boxes are relative to.

    Returns:
      Two embeddings a box.
    """
    corners = jnp.reshape(boxes, (*boxes.shape[:-1], 2, 2))
    encoding = self._encode(corners, image_hw)
    types = jnp.stack(
        [
            self.point_embeddings[_TOP_LEFT],
            self.point_embeddings[_BOTTOM_RIGHT],
        ]
    )
    types = jnp.reshape(types, (1,) * (encoding.ndim - 2) + types.shape)
    return (encoding + types).astype(self.dtype)

  def masks(self, masks: Float[Array, '*L H W 1']) -> Float[Array, '*L h w D']:
    """Embeds mask logits at four times the grid of the image features."""
    return self.mask_downscaling(masks)

  def no_mask(self) -> Float[Array, 'D']:
    """The vector that stands for a prompt without a mask, at every cell."""
    return self.no_mask_embedding.astype(self.dtype)

  def dense_pe(self, height: int, width: int) -> Float[Array, 'h w D']:
    """Position encoding of the cell centres of a grid of that many cells."""
    rows = (jnp.arange(height) + 0.5) / height
    columns = (jnp.arange(width) + 0.5) / width
    x, y = jnp.meshgrid(columns, rows, indexing='xy')
    return self.pe_layer(jnp.stack([x, y], axis=-1)).astype(self.dtype)

  def __call__(
      self,
      *,
      image_hw: tuple[int, int] | Array,
      grid_hw: tuple[int, int],
      points: Float[Array, '*L P 2'] | None = None,
      labels: Int[Array, '*L P'] | None = None,
      boxes: Float[Array, '*L 4'] | None = None,
      masks: Float[Array, '*L H W 1'] | None = None,
  ) -> tuple[Float[Array, '*L Q D'], Float[Array, '*L h w D']]:
    """Embeds all kinds of prompts at once, as SAM calls its encoder.

    Args:
      image_hw: height and width in pixels that the prompts are relative to.
      grid_hw: rows and columns of the image features.
      points: (x, y) in pixels.
      labels: 1 positive, 0 negative, -1 ignored; given with `points`.
      boxes: x0, y0, x1, y1 in pixels.
      masks: mask logits at four times the grid.

    Returns:
      The sparse embeddings (points, then corners) and the dense ones: those of
      the masks, or the no-mask vector at every cell.

    Raises:
      ValueError: if neither points nor boxes are given, or points lack labels.
    """
    if (points is None) != (labels is None):
      raise ValueError(
          'SamPromptEncoder: points and labels come together; got'
          f' {"labels" if points is None else "points"} alone.'
      )
    sparse = []
    if points is not None:
      sparse.append(self.points(points, labels, image_hw, pad=boxes is None))
    if boxes is not None:
      sparse.append(self.boxes(boxes, image_hw))
    if not sparse:
      raise ValueError('SamPromptEncoder: give points, boxes or both.')
    embeddings = jnp.concatenate(sparse, axis=-2)
    if masks is not None:
      return embeddings, self.masks(masks)
    shape = (*embeddings.shape[:-2], *grid_hw, self.embed_dim)
    dense = layers.align_last(self.no_mask(), len(shape))
    return embeddings, jnp.broadcast_to(dense, shape)

  def _encode(
      self,
      points: Float[Array, '*L 2'],
      image_hw: tuple[int, int] | Array,
  ) -> Float[Array, '*L D']:
    """Encodes pixel positions; half a pixel moves them to pixel centres."""
    image_wh = jnp.asarray(image_hw, jnp.float32)[::-1]
    return self.pe_layer(
        (points.astype(jnp.float32) + 0.5)
        / layers.align_last(image_wh, points.ndim)
    )
