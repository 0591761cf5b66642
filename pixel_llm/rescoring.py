"""Scores of detections that have got a text.

RefA: Pixel Aligned Language Models (arXiv 2312.09237), Sec. 4.4; RefB: GRiT
(arXiv 2212.00280), for the product of object and caption scores.
"""

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pixel_llm.modules import roi_head


@struct.dataclass
class CaptionedDetections:
  """Detections with one text each.

  Attributes:
    detections: with scores of box and text together.
    text_tokens: of each detection.
    log_probs: of each text.
    slots: which detection of the input each one is.
  """

  detections: roi_head.Detections
  text_tokens: Int[Array, 'B K T']
  log_probs: Float[Array, 'B K']
  slots: Int[Array, 'B K']


def rescore(
    detections: roi_head.Detections,
    text_tokens: Int[Array, 'B K Q T'],
    log_probs: Float[Array, 'B K Q'],
) -> CaptionedDetections:
  """Multiplies box and text scores, sqrt(score · exp(log_prob)) (RefB).

  With one text a detection the order stays. With several, all pairs of
  detection and text compete for the same number of slots, best first, so one
  box may come back with another text.

  Args:
    detections: of the box decoder.
    text_tokens: Q texts of each detection.
    log_probs: of each text, normalised by its length.

  Returns:
    As many detections as before; empty slots stay empty.
  """
  scores = jnp.sqrt(detections.scores[..., None] * jnp.exp(log_probs))
  batch, num_slots, num_texts = scores.shape
  scores = scores.reshape(batch, -1)
  if num_texts == 1:
    pairs = jnp.broadcast_to(jnp.arange(num_slots)[None], scores.shape)
  else:
    scores, pairs = jax.lax.top_k(scores, num_slots)
  slots = pairs // num_texts

  def take(x: Array) -> Array:
    index = slots.reshape(*slots.shape, *[1] * (x.ndim - 2))
    return jnp.take_along_axis(x, index, axis=1)

  texts = text_tokens.reshape(batch, -1, text_tokens.shape[-1])
  return CaptionedDetections(
      detections=jax.tree.map(take, detections).replace(scores=scores),
      text_tokens=jnp.take_along_axis(texts, pairs[..., None], axis=1),
      log_probs=jnp.take_along_axis(
          log_probs.reshape(batch, -1), pairs, axis=1
      ),
      slots=slots,
  )
