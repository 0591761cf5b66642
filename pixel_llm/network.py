"""PixelLLM: image and prompt in, text, points, boxes and masks out (RefA).

The network of the paper's Fig. 3 as stages that take and return named fields:

    encode_image   pixels             -> features of both towers
    propose        features, targets  -> boxes where something may be
    encode_prompt  features, boxes    -> visual tokens for the language model
    read_text      tokens, text       -> next-token logits, text features
    locate         text features      -> points per token, boxes from points
    segment        features, boxes    -> mask logits

Training runs them in a row on the given text (`__call__`). Inference encodes
once, decodes, and goes on with the decoded text; for dense captions it looks
for objects first (`detect`) and prompts with their boxes.

Coordinates are pixels of the network input: x to the right, y down. Prompts
are folded into the batch for the language model and unfolded after it, both
here and nowhere else.

RefA: Pixel Aligned Language Models, arXiv 2312.09237, Sec. 3.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from pixel_llm import geometry
from pixel_llm import prompt_embeddings
from pixel_llm import stages
from pixel_llm import text_prompts
from pixel_llm.modules import box_decoder as box_decoder_lib
from pixel_llm.modules import decode_cache
from pixel_llm.modules import image_features
from pixel_llm.modules import roi_head
from pixel_llm.modules import text_head


def fold_prompts(x: Array) -> Array:
  """Moves prompts into the batch: (B, N, ...) becomes (B·N, ...)."""
  return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def unfold_prompts(x: Array, num_prompts: int) -> Array:
  """Takes prompts out of the batch: (B·N, ...) becomes (B, N, ...)."""
  return x.reshape(x.shape[0] // num_prompts, num_prompts, *x.shape[1:])


class PixelLLM(nn.Module):
  """The whole network; its children come from gin.

  Children keep the original's names, so that released parameters load by name.

  Attributes:
    git_backbone: language-aligned tower (EVA02).
    sam_backbone: localisation-aligned tower (SAM).
    prompt_encoder: turns boxes and points into tokens.
    prompt_adapter: learned tokens that read the image under a prompt.
    visual_project_layers: to the language model's width; None for a language
      model that projects visual tokens itself.
    textual: the language model.
    point_predictor: points per text token; None for dense captions alone.
    box_decoder: finds objects (CenterNet2); None for runs without detection.
    mask_adapter: adds text to a box prompt; None for runs without masks.
    mask_decoder: SAM's; None for runs without masks.
    git_normalizer: colours and size of the EVA02 tower's input.
    sam_normalizer: the same for SAM's tower.
    feature_fusion: which maps the prompts read, and on whose grid, as
      `image_features.fuse_feature_maps` takes it.
    prompt_fusion: which of the prompt adapter's features the language model
      reads: 'sparse', its learned tokens, or 'dense', the cells of the map as
      the prompt sees it, row by row.
    begin_token_id: first token of every text.
    end_token_id: last token of every text.
    point_output_ignore: tokens whose points make no box and join no loss, as
      `geometry.token_mask` takes it.
    trace_point_output_ignore: the same for the loss of captions with a trace.
    prompt_points_per_side: points a side of the grid in a box prompt.
    prompt_use_box_rate: in training, how often a box prompt is given by its
      corners rather than by the grid of points.
    num_text_proposals: in training with the box decoder, proposals of an image
      that get text; as many as an image has prompts lets a batch mix images
      with object captions and others.
  """

  git_backbone: nn.Module
  sam_backbone: nn.Module
  prompt_encoder: nn.Module
  prompt_adapter: nn.Module
  visual_project_layers: nn.Module | None
  textual: text_head.TextHead
  point_predictor: nn.Module | None
  box_decoder: nn.Module | None = None
  mask_adapter: nn.Module | None = None
  mask_decoder: nn.Module | None = None
  git_normalizer: image_features.ImageNormalizer = (
      image_features.ImageNormalizer()
  )
  sam_normalizer: image_features.ImageNormalizer = (
      image_features.SamImageNormalizer()
  )
  feature_fusion: str = 'git+sam'
  prompt_fusion: str = 'sparse'
  begin_token_id: int = 0
  end_token_id: int = 1
  point_output_ignore: str = 'begin,end,pad'
  trace_point_output_ignore: str = 'begin,end,pad'
  prompt_points_per_side: int = 2
  prompt_use_box_rate: float = 1.0
  num_text_proposals: int = 32

  @property
  def has_masks(self) -> bool:
    """Whether the network predicts masks.

    Raises:
      ValueError: if only one of mask adapter and mask decoder is there, or if
        they lack the point head, whose boxes they take.
    """
    if (self.mask_adapter is None) != (self.mask_decoder is None):
      raise ValueError(
          'PixelLLM: mask_adapter and mask_decoder go together; got'
          f' mask_adapter={self.mask_adapter} and'
          f' mask_decoder={self.mask_decoder}. Give both, or neither for a run'
          ' without masks.'
      )
    if self.mask_decoder is not None and self.point_predictor is None:
      raise ValueError(
          'PixelLLM: mask_decoder draws in boxes around points, but'
          ' point_predictor is None; give one.'
      )
    return self.mask_decoder is not None

  def __call__(
      self,
      image: Num[Array, 'B H W 3'],
      image_hw: Num[Array, 'B 2'],
      prompt_boxes: Float[Array, 'B N 4'],
      context_tokens: Int[Array, 'B N C'],
      text_tokens: Int[Array, 'B N T'],
      boxes: Float[Array, 'B N 4'] | None = None,
      detection_weights: Float[Array, 'B N'] | None = None,
      object_captions: Bool[Array, 'B N'] | None = None,
      *,
      enable_dropout: bool = False,
  ) -> stages.Outputs:
    """Runs all stages on the given text, as in training.

    Args:
      image: pixel values of 0 to 255, the valid area at the top left.
      image_hw: height and width of the valid area.
      prompt_boxes: where to look, for each prompt.
      context_tokens: what is asked, 0 is padding.
      text_tokens: begin … end, 0 is padding.
      boxes: target boxes, zeros are padding. With them the box decoder runs.
      detection_weights: 0 for a box that the box decoder must not see; None if
        it sees all.
      object_captions: whether a text captions its box, so that it goes to
        proposals; all of an image do if one does, and with None all of all.
      enable_dropout: needs the `dropout` rng.

    Returns:
      The outputs of all stages but the first.
    """
    features = self.encode_image(image, image_hw, enable_dropout=enable_dropout)
    prompts = text_prompts.given_prompts(
        prompt_boxes, context_tokens, text_tokens
    )
    detection = None
    if boxes is not None:
      detection = self.propose(
          features, boxes, detection_weights, enable_dropout=enable_dropout
      )
      prompts = text_prompts.choose_prompts(
          text_prompts.proposal_prompts(
              detection.sample, prompts, self.num_text_proposals
          ),
          prompts,
          object_captions,
      )
    visual_tokens = self.encode_prompt(
        features, prompts.boxes, enable_dropout=enable_dropout
    )
    encoded = self.encode_context(
        visual_tokens, prompts.context_tokens, enable_dropout=enable_dropout
    )
    text = self.read_text(
        encoded, prompts.text_tokens, enable_dropout=enable_dropout
    )
    location = mask = None
    if self.point_predictor is not None:
      location = self.locate(features, text.features, prompts.text_tokens)
    if self.has_masks:
      mask = self.segment(
          features,
          location.boxes,
          visual_tokens,
          text.features,
          prompts.text_tokens,
      )
    return stages.Outputs(
        prompts=prompts,
        visual_tokens=visual_tokens,
        text=text,
        location=location,
        mask=mask,
        detection=detection,
    )

  def encode_image(
      self,
      image: Num[Array, 'B H W 3'],
      image_hw: Num[Array, 'B 2'],
      *,
      enable_dropout: bool = False,
  ) -> stages.ImageFeatures:
    """Runs both towers and fuses their maps (RefA, Sec. 3.2).

    Args:
      image: pixel values of 0 to 255, the valid area at the top left.
      image_hw: height and width of the valid area.
      enable_dropout: whether tower branches may drop.

    Returns:
      Features of the images.
    """
    height, width = image.shape[1:3]
    inside = geometry.valid_mask(image_hw, height, width)
    git = self.git_backbone(
        self.git_normalizer(image, inside), enable_dropout=enable_dropout
    )
    sam = self.sam_backbone(
        self.sam_normalizer(image, inside), enable_dropout=enable_dropout
    )
    return stages.ImageFeatures(
        fused=image_features.fuse_feature_maps(
            self.feature_fusion, {'git': git, 'sam': sam}
        ),
        sam=sam,
        valid_hw=image_hw.astype(jnp.float32),
        input_hw=(height, width),
    )

  def propose(
      self,
      features: stages.ImageFeatures,
      boxes: Float[Array, 'B N 4'],
      detection_weights: Float[Array, 'B N'] | None = None,
      *,
      enable_dropout: bool = False,
  ) -> box_decoder_lib.BoxOutputs:
    """Proposes boxes and samples some for the RoI stage, as in training.

    Args:
      features: of the images.
      boxes: target boxes, zeros are padding.
      detection_weights: 0 hides a box; None shows all.
      enable_dropout: draw the sample; False takes the best scored proposals.

    Returns:
      What both stages of the box decoder say.
    """
    if detection_weights is not None:
      boxes = jnp.where(detection_weights[..., None] > 0, boxes, 0.0)
    return self.box_decoder(
        features.fused,
        boxes,
        input_hw=features.input_hw,
        enable_dropout=enable_dropout,
    )

  def detect(self, features: stages.ImageFeatures) -> roi_head.Detections:
    """Finds objects, as at inference.

    Args:
      features: of the images.

    Returns:
      Boxes, clipped to the padded input as the original does, best first.
    """
    return self.box_decoder.detect(features.fused, input_hw=features.input_hw)

  def encode_prompt(
      self,
      features: stages.ImageFeatures,
      prompt_boxes: Float[Array, 'B N 4'],
      *,
      enable_dropout: bool = False,
  ) -> Float[Array, 'B N L D']:
    """Reads the image under each prompt (RefA, Sec. 3.2).

    Args:
      features: of the images.
      prompt_boxes: where to look; a global prompt is the whole valid area.
      enable_dropout: whether a prompt may be given as points.

    Returns:
      Visual tokens as the language model takes them.
    """
    by_box = jnp.any(prompt_boxes > 0, axis=-1)
    if enable_dropout and self.prompt_use_box_rate < 1:
      by_box &= jax.random.bernoulli(
          self.make_rng('dropout'), self.prompt_use_box_rate, by_box.shape
      )
    adapted = self.prompt_adapter(
        features.fused,
        self.prompt_encoder.dense_pe(*features.fused.shape[1:3]),
        prompt_embeddings.embed_prompt_boxes(
            self.prompt_encoder,
            prompt_boxes,
            by_box,
            features.input_hw,
            points_per_side=self.prompt_points_per_side,
        ),
        self.prompt_encoder.no_mask(),
    )
    if self.prompt_fusion == 'sparse':
      visual_tokens = adapted.sparse
    elif self.prompt_fusion == 'dense':
      visual_tokens = adapted.dense.reshape(
          *adapted.dense.shape[:2], -1, adapted.dense.shape[-1]
      )
    else:
      raise ValueError(
          f"PixelLLM: prompt_fusion={self.prompt_fusion!r}; 'sparse' and"
          " 'dense' are known."
      )
    if self.visual_project_layers is None:
      return visual_tokens
    return self.visual_project_layers(visual_tokens)

  def encode_context(
      self,
      visual_tokens: Float[Array, 'B N L D'],
      context_tokens: Int[Array, 'B N C'],
      *,
      enable_dropout: bool = False,
  ) -> text_head.EncodedPrompt:
    """Folds prompts into the batch and encodes what the text depends on.

    Args:
      visual_tokens: of each prompt.
      context_tokens: of each prompt, 0 is padding.
      enable_dropout: whether the language model drops.

    Returns:
      The encoded prompts, B·N rows.
    """
    return self.textual.encode(
        fold_prompts(visual_tokens),
        fold_prompts(context_tokens),
        deterministic=not enable_dropout,
    )

  def read_text(
      self,
      encoded: text_head.EncodedPrompt,
      text_tokens: Int[Array, 'B N T'],
      *,
      enable_dropout: bool = False,
  ) -> stages.TextOutputs:
    """Reads a text that is already there, and unfolds the prompts.

    Args:
      encoded: the encoded prompts.
      text_tokens: begin … end, 0 is padding.
      enable_dropout: whether the language model drops.

    Returns:
      Logits and features at all positions.
    """
    output = self.textual.decode(
        encoded, fold_prompts(text_tokens), deterministic=not enable_dropout
    )
    num_prompts = text_tokens.shape[1]
    return stages.TextOutputs(
        logits=unfold_prompts(output.logits, num_prompts),
        features=unfold_prompts(output.features, num_prompts),
    )

  def start_decode(
      self, encoded: text_head.EncodedPrompt, num_beams: int, length: int
  ) -> decode_cache.DecodeCache:
    """Prepares decoding; see `TextHead.start_decode`."""
    return self.textual.start_decode(encoded, num_beams, length)

  def decode_step(
      self,
      cache: decode_cache.DecodeCache,
      sequences: Int[Array, 'M K T'],
      index: Int[Array, ''],
  ) -> tuple[Float[Array, 'M K V'], decode_cache.DecodeCache]:
    """Scores the token behind `index`; see `TextHead.decode_step`."""
    return self.textual.decode_step(cache, sequences, index)

  def locate(
      self,
      features: stages.ImageFeatures,
      text_features: Float[Array, 'B N T D'],
      text_tokens: Int[Array, 'B N T'],
  ) -> stages.LocationOutputs:
    """Points at every token, and boxes the points that count (RefA, Sec. 3.3).

    Args:
      features: of the images; their valid area scales the points.
      text_features: of the text.
      text_tokens: the text, which says whose points count.

    Returns:
      Points and boxes.
    """
    prediction = self.point_predictor(text_features)
    points = geometry.points_to_absolute(
        prediction.points_rel, features.valid_hw
    )
    point_mask = self.token_mask(text_tokens, self.point_output_ignore)
    num_points = points.shape[3]
    flat_points = points.reshape(*points.shape[:2], -1, 2)
    boxes = geometry.points_to_boxes(
        flat_points, jnp.repeat(point_mask, num_points, axis=2)
    )
    return stages.LocationOutputs(
        points=points,
        point_logits=prediction.logits,
        point_mask=point_mask,
        # The mask loss must not move the box: the original stops here.
        boxes=jax.lax.stop_gradient(boxes),
    )

  def token_mask(
      self, text_tokens: Int[Array, 'B N T'], ignore: str
  ) -> Bool[Array, 'B N T']:
    """Tokens that count, in the ids of this network's texts."""
    return geometry.token_mask(
        text_tokens,
        ignore,
        begin_id=self.begin_token_id,
        end_id=self.end_token_id,
    )

  def segment(
      self,
      features: stages.ImageFeatures,
      boxes: Float[Array, 'B N 4'],
      visual_tokens: Float[Array, 'B N L D'],
      text_features: Float[Array, 'B N T D'],
      text_tokens: Int[Array, 'B N T'],
  ) -> stages.MaskOutputs:
    """Draws the mask of each box, helped by what the text says.

    Args:
      features: of the images.
      boxes: prompts of the mask decoder.
      visual_tokens: of each prompt.
      text_features: of each prompt's text.
      text_tokens: that text, which says what is padding.

    Returns:
      One mask a prompt.
    """
    corners = self.prompt_encoder.boxes(boxes, features.input_hw)
    prediction = self.mask_decoder(
        features.sam,
        self.prompt_encoder.dense_pe(*features.sam.shape[1:3]),
        self.mask_adapter(
            corners,
            visual_tokens,
            text_features,
            text_head.next_token_mask(text_tokens),
        ),
        self.prompt_encoder.no_mask(),
    )
    return stages.MaskOutputs(logits=prediction.logits, iou=prediction.iou)
