"""Point head: each text token says where in the image it looks.

RefA: Xu et al., "Pixel Aligned Language Models" (arXiv 2312.09237), section
3.2, "localization".
"""

from typing import NamedTuple

from flax import linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from pixel_llm.modules import layers

_ACTIVATIONS: dict[str, layers.Activation] = {
    'gelu': layers.exact_gelu,
    'relu': nn.relu,
}


class PointPrediction(NamedTuple):
  """Points of each token.

  Attributes:
    points_rel: (x, y), 0 to 1 over the valid image but not clipped.
    logits: background and class scores, which no loss uses.
  """

  points_rel: Float[Array, '*L P 2']
  logits: Float[Array, '*L P K']


class PointPredictor(nn.Module):
  """MLP on text features (RefA).

  Attributes:
    hidden_dim: width inside.
    depth: linear layers.
    num_points: points P of a token.
    num_classes: classes besides the background, K = num_classes + 1.
    pre_norm: whether a layer norm (1e-6) comes first.
    activation: `gelu` (exact) or `relu`.
    dtype: type of the computation; the prediction is float32.
  """

  hidden_dim: int = 512
  depth: int = 4
  num_points: int = 2
  num_classes: int = 1
  pre_norm: bool = True
  activation: str = 'gelu'
  dtype: layers.DType = jnp.float32

  @nn.compact
  def __call__(self, text: Float[Array, '*L D']) -> PointPrediction:
    """Predicts points and logits from text features.

    Raises:
      ValueError: if the activation is unknown.
    """
    if self.activation not in _ACTIVATIONS:
      raise ValueError(
          f'PointPredictor: unknown activation {self.activation!r}; expected'
          f' one of {sorted(_ACTIVATIONS)}.'
      )
    if self.pre_norm:
      text = layers.LayerNorm(dtype=self.dtype, name='LayerNorm_0')(text)
    channels = 3 + self.num_classes
    raw = layers.Mlp(
        self.hidden_dim,
        self.num_points * channels,
        num_layers=self.depth,
        activation=_ACTIVATIONS[self.activation],
        dtype=self.dtype,
        name='mlp',
    )(text).astype(jnp.float32)
    raw = jnp.reshape(raw, (*raw.shape[:-1], self.num_points, channels))
    return PointPrediction(
        points_rel=(raw[..., :2] + 1) / 2, logits=raw[..., 2:]
    )
