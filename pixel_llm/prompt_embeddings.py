"""A location prompt as tokens: two corners, or a grid of points (RefA, RefB).

RefA: Segment Anything (arXiv 2304.02643), Sec. 3: the prompt encoder; RefB:
Pixel Aligned Language Models (arXiv 2312.09237), Sec. 3.2.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pixel_llm import geometry
from pixel_llm.modules import sam_prompt_encoder


def embed_prompt_boxes(
    prompt_encoder: sam_prompt_encoder.SamPromptEncoder,
    boxes: Float[Array, 'B N 4'],
    by_box: Bool[Array, 'B N'],
    input_hw: tuple[int, int],
    *,
    points_per_side: int,
) -> Float[Array, 'B N Q D']:
  """Embeds boxes by their corners, or by a grid of points inside them.

  Both have the length of the points and one not-a-point; behind a box's two
  corners the no-mask vector fills up.

  Args:
    prompt_encoder: SAM's, bound to its parameters.
    boxes: pixels of the network input.
    by_box: True for a prompt that goes by its corners.
    input_hw: height and width of the network input, padding included.
    points_per_side: points a side of the grid.

  Returns:
    Tokens of each prompt.
  """
  points = geometry.boxes_to_points(boxes, points_per_side, cell_centres=False)
  labels = jnp.ones(points.shape[:-1], jnp.int32)
  by_points = prompt_encoder.points(points, labels, input_hw, pad=True)
  corners = prompt_encoder.boxes(boxes, input_hw)
  filler = jnp.broadcast_to(
      prompt_encoder.no_mask()[None, None, None],
      (
          *corners.shape[:2],
          by_points.shape[2] - corners.shape[2],
          corners.shape[3],
      ),
  )
  corners = jnp.concatenate([corners, filler], axis=2)
  return jnp.where(by_box[..., None, None], corners, by_points)
