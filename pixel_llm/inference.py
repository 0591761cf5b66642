"""One inference with PixelLLM, stage by stage (RefA).

The image and the prompts are encoded once: prompts that are given (`prepare`),
or objects that the box decoder finds (`detect`). A text is decoded
(`decode_text`), or given for referring tasks; then its words are located and
masked (`describe`). Everything is a pure function of parameters and arrays.

RefA: Pixel Aligned Language Models, arXiv 2312.09237, Sec. 3.4.
"""

from collections.abc import Mapping
from typing import Any

from flax import struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from pixel_llm import generation
from pixel_llm import network
from pixel_llm import sampling
from pixel_llm import stages
from pixel_llm import text_prompts
from pixel_llm.modules import roi_head
from pixel_llm.modules import text_head

Params = Mapping[str, Any]


@struct.dataclass
class Prepared:
  """What all later stages share.

  Attributes:
    features: of the images.
    visual_tokens: of each prompt.
    encoded: prompts as the text decoder reads them, B·N rows.
  """

  features: stages.ImageFeatures
  visual_tokens: Float[Array, 'B N L D']
  encoded: text_head.EncodedPrompt


@struct.dataclass
class DecodedTexts:
  """Texts of every prompt, the worst beam first and the best last.

  Attributes:
    tokens: begin, text, end tokens to the end.
    scores: as the decoder gives them.
  """

  tokens: Int[Array, 'B N K T']
  scores: Float[Array, 'B N K']


@struct.dataclass
class Description:
  """Where a text points.

  Attributes:
    text: logits and features of the text.
    location: points and boxes; None without a point head.
    mask: masks of the boxes; None without a mask decoder.
  """

  text: stages.TextOutputs
  location: stages.LocationOutputs | None
  mask: stages.MaskOutputs | None


def prepare(
    module: network.PixelLLM,
    params: Params,
    image: Num[Array, 'B H W 3'],
    image_hw: Num[Array, 'B 2'],
    prompt_boxes: Float[Array, 'B N 4'],
    context_tokens: Int[Array, 'B N C'],
) -> Prepared:
  """Encodes images and prompts.

  Args:
    module: the network.
    params: its parameters.
    image: pixel values of 0 to 255, the valid area at the top left.
    image_hw: height and width of the valid area.
    prompt_boxes: where to look.
    context_tokens: what is asked, 0 is padding.

  Returns:
    What the later stages need.
  """

  def run(net: network.PixelLLM) -> Prepared:
    features = net.encode_image(image, image_hw)
    visual_tokens = net.encode_prompt(features, prompt_boxes)
    encoded = net.encode_context(visual_tokens, context_tokens)
    return Prepared(features, visual_tokens, encoded)

  return module.apply({'params': params}, method=run)


def detect(
    module: network.PixelLLM,
    params: Params,
    image: Num[Array, 'B H W 3'],
    image_hw: Num[Array, 'B 2'],
    context_tokens: Int[Array, 'B N C'],
) -> tuple[Prepared, roi_head.Detections]:
  """Encodes images, finds objects and makes each a prompt.

  Args:
    module: the network, with a box decoder.
    params: its parameters.
    image: pixel values of 0 to 255, the valid area at the top left.
    image_hw: height and width of the valid area.
    context_tokens: what is asked; all detections get the first row's.

  Returns:
    What the later stages need, one prompt a detection, and the detections.
  """

  def run(net: network.PixelLLM) -> tuple[Prepared, roi_head.Detections]:
    features = net.encode_image(image, image_hw)
    detections = net.detect(features)
    visual_tokens = net.encode_prompt(features, detections.boxes)
    encoded = net.encode_context(
        visual_tokens,
        text_prompts.first_context(context_tokens, detections.boxes.shape[1]),
    )
    return Prepared(features, visual_tokens, encoded), detections

  return module.apply({'params': params}, method=run)


def take_prompts(prepared: Prepared, slots: Int[Array, 'B K']) -> Prepared:
  """Takes prompts by their slot, in the order of `slots`, image by image."""
  return prepared.replace(
      visual_tokens=jnp.take_along_axis(
          prepared.visual_tokens, slots[..., None, None], axis=1
      ),
      encoded=prepared.encoded.take_prompts(slots),
  )


def decode_text(
    module: network.PixelLLM,
    params: Params,
    prepared: Prepared,
    text_length: int,
    decoder: generation.Decoder,
    prompt_mask: Bool[Array, 'B N'] | None = None,
    rng: Array | None = None,
) -> DecodedTexts:
  """Writes a text for every prompt.

  Args:
    module: the network.
    params: its parameters.
    prepared: from `prepare`.
    text_length: tokens a text, begin and end included.
    decoder: such as `generation.Greedy()` or
      `beam_search.BeamSearch(4)`.
    prompt_mask: False for padding, which gets no text; None for all prompts.
    rng: for decoders that draw.

  Returns:
    The texts of all beams.
  """
  num_images, num_prompts = prepared.visual_tokens.shape[:2]
  num_rows = prepared.encoded.mask.shape[0]
  variables = {'params': params}
  cache = module.apply(
      variables,
      prepared.encoded,
      decoder.num_beams,
      text_length,
      method='start_decode',
  )
  decoded = decoder(
      generation.module_step(module, variables),
      cache,
      generation.start_tokens(
          num_rows, text_length, module.begin_token_id, module.end_token_id
      ),
      module.end_token_id,
      None if prompt_mask is None else network.fold_prompts(prompt_mask),
      None if rng is None else sampling.row_keys(rng, num_images, num_prompts),
  )
  return DecodedTexts(
      tokens=network.unfold_prompts(decoded.tokens, num_prompts),
      scores=network.unfold_prompts(decoded.scores, num_prompts),
  )


def describe(
    module: network.PixelLLM,
    params: Params,
    prepared: Prepared,
    text_tokens: Int[Array, 'B N T'],
    mask_boxes: Float[Array, 'B N 4'] | None = None,
) -> Description:
  """Locates a text, given or decoded.

  Args:
    module: the network.
    params: its parameters.
    prepared: from `prepare`.
    text_tokens: begin … end; what stands behind the first end token is taken
      for padding only if it is 0 (`generation.zero_after_end`).
    mask_boxes: where to draw masks; None: in the boxes around the points.

  Returns:
    Points, boxes and masks.
  """

  def run(net: network.PixelLLM) -> Description:
    text = net.read_text(prepared.encoded, text_tokens)
    location = mask = None
    if net.point_predictor is not None:
      location = net.locate(prepared.features, text.features, text_tokens)
    if net.has_masks:
      mask = net.segment(
          prepared.features,
          location.boxes if mask_boxes is None else mask_boxes,
          prepared.visual_tokens,
          text.features,
          text_tokens,
      )
    return Description(text, location, mask)

  return module.apply({'params': params}, method=run)
