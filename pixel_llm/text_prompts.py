"""Which prompts a training step gives text to, and which text (RefA).

An example brings prompts with their texts, or objects whose captions go to the
boxes that the box decoder proposes. Both become `stages.Prompts`, so that a
batch may mix them and the stages behind never ask where a prompt came from.

RefA: Pixel Aligned Language Models (arXiv 2312.09237), Sec. 3.4 and 4.4.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pixel_llm import stages
from pixel_llm.modules import roi_head


def given_prompts(
    prompt_boxes: Float[Array, 'B N 4'],
    context_tokens: Int[Array, 'B N C'],
    text_tokens: Int[Array, 'B N T'],
) -> stages.Prompts:
  """Takes the prompts of the batch as they are.

  Args:
    prompt_boxes: where to look.
    context_tokens: what is asked.
    text_tokens: what to say.

  Returns:
    One prompt a row of the batch.
  """
  rows = jnp.broadcast_to(
      jnp.arange(text_tokens.shape[1]), text_tokens.shape[:2]
  )
  return stages.Prompts(
      boxes=prompt_boxes,
      context_tokens=context_tokens,
      text_tokens=text_tokens,
      rows=rows,
      mask=jnp.ones(rows.shape, bool),
  )


def proposal_prompts(
    sample: roi_head.RoiSample,
    given: stages.Prompts,
    num_prompts: int,
) -> stages.Prompts:
  """Takes the first boxes of a sample, each with context and text of its target.

  Args:
    sample: of the RoI stage, boxes with a target first.
    given: the prompts of the batch, one for each target box.
    num_prompts: how many to take.

  Returns:
    Prompts at the proposed boxes; `mask` is False where a box overlaps no
    target enough to say its text.

  Raises:
    ValueError: if the sample is smaller than that.
  """
  if num_prompts > sample.boxes.shape[1]:
    raise ValueError(
        f'PixelLLM: num_text_proposals={num_prompts}, but the RoI stage samples'
        f' {sample.boxes.shape[1]} boxes an image; lower the first or raise'
        ' RoiHead.num_samples.'
    )
  rows = sample.match_index[:, :num_prompts]

  def take(tokens: Int[Array, 'B N X']) -> Int[Array, 'B K X']:
    return jnp.take_along_axis(tokens, rows[..., None], axis=1)

  return stages.Prompts(
      boxes=jax.lax.stop_gradient(sample.boxes[:, :num_prompts]),
      context_tokens=take(given.context_tokens),
      text_tokens=take(given.text_tokens),
      rows=rows,
      mask=sample.match_classes[:, :num_prompts] > 0,
  )


def choose_prompts(
    proposed: stages.Prompts,
    given: stages.Prompts,
    object_captions: Bool[Array, 'B N'] | None,
) -> stages.Prompts:
  """Chooses between both kinds, image by image.

  Where both are equally many, an image without object captions keeps its own
  prompts. Where not, the run is one of dense captions, and such an image has
  no text to learn.

  Args:
    proposed: prompts at proposals.
    given: prompts of the batch.
    object_captions: an image with any True gives its texts to proposals; None
      if all images do.

  Returns:
    As many prompts as proposed ones.
  """
  if object_captions is None:
    return proposed
  by_proposal = jnp.any(object_captions, axis=1)
  if proposed.rows.shape != given.rows.shape:
    return proposed.replace(mask=proposed.mask & by_proposal[:, None])

  def choose(x: Array, y: Array) -> Array:
    return jnp.where(by_proposal.reshape(-1, *[1] * (x.ndim - 1)), x, y)

  return jax.tree.map(choose, proposed, given)


def first_context(
    context_tokens: Int[Array, 'B N C'], num_prompts: int
) -> Int[Array, 'B K C']:
  """Repeats the context of the first row, as inference does for detections."""
  first = context_tokens[:, :1]
  return jnp.broadcast_to(first, (first.shape[0], num_prompts, first.shape[2]))
