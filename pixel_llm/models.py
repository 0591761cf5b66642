"""PixelLLM as a T5X model: where the network meets the trainer (RefA).

`loss_fn` and `predict_batch_with_aux` are all that a training or evaluation
run calls. What is minimised stands in `objective`, one inference in
`inference`; this file hands them batches and names what comes back.

RefA: t5x `models.BaseModel`; RefB: Pixel Aligned Language Models (arXiv
2312.09237), Sec. 3.3 and 3.4.
"""

from collections.abc import Mapping
from typing import Any

from clu import metrics as clu_metrics
import flax.core
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pixel_llm import generation
from pixel_llm import inference
from pixel_llm import network
from pixel_llm import objective as objective_lib
from pixel_llm import rescoring
from pixel_llm import stages
from t5x import metrics as metrics_lib
from t5x import models
from t5x import optimizers

Batch = Mapping[str, Array]
Params = Mapping[str, Any]
Metrics = dict[str, clu_metrics.Metric]

# What the network reads of a batch.
NETWORK_INPUTS = (
    'image',
    'image_hw',
    'prompt_boxes',
    'context_tokens',
    'text_tokens',
)
# What it reads besides where the box decoder trains.
DETECTION_INPUTS = ('boxes', 'detection_weights', 'object_captions')


class PixelLLMModel(models.BaseModel):
  """PixelLLM for T5X.

  Attributes:
    module: the network.
    decoder: writes texts at inference; None for referring tasks, where the
      text is the given expression (RefB, Sec. 3.4).
    objective: what training minimises.
    caption_detections: at inference, whether texts go to the objects that the
      box decoder finds rather than to the given prompts: dense captioning.
    rescore_detections: whether a detection's score takes in that of its text.
  """

  def __init__(
      self,
      module: network.PixelLLM,
      optimizer_def: optimizers.OptimizerDef,
      decoder: generation.Decoder | None,
      objective: objective_lib.Objective | None = None,
      *,
      caption_detections: bool = False,
      rescore_detections: bool = False,
  ):
    """Makes the model.

    Args:
      module: the network.
      optimizer_def: optimizer; it says which parameters train.
      decoder: writes texts at inference; None takes the given text.
      objective: what training minimises; None for one of standard weights.
      caption_detections: prompt with detections at inference; needs a box
        decoder and a decoder.
      rescore_detections: see the class; needs `caption_detections`.

    Raises:
      ValueError: if no loss is left, or something that is needed is missing.
    """
    super().__init__(optimizer_def=optimizer_def)
    self.module = module
    self.decoder = decoder
    self.objective = objective or objective_lib.Objective()
    self.caption_detections = caption_detections
    self.rescore_detections = rescore_detections
    # Before anything is allocated: a run without a loss or a part is refused.
    self._loss_weights = self.objective.weights(module)
    if caption_detections and (module.box_decoder is None or decoder is None):
      raise ValueError(
          'PixelLLMModel: caption_detections=True needs network.box_decoder'
          f' (is {module.box_decoder}) and decoder (is {decoder}); set both.'
      )
    if rescore_detections and not caption_detections:
      raise ValueError(
          'PixelLLMModel: rescore_detections=True scores detections by their'
          ' captions; set caption_detections = True as well.'
      )

  @property
  def FEATURE_CONVERTER_CLS(self):  # pylint: disable=invalid-name
    """Pads what the tasks yield; with target masks if the network has masks."""
    # Here because it needs TensorFlow, which a training step does not.
    from pixel_llm import feature_converters

    if self.module.has_masks:
      return feature_converters.PixelLLMMaskFeatureConverter
    return feature_converters.PixelLLMFeatureConverter

  def get_initial_variables(
      self,
      rng: Array,
      input_shapes: Mapping[str, tuple[int, ...]],
      input_types: Mapping[str, Any] | None = None,
  ) -> flax.core.FrozenDict | Mapping[str, Any]:
    """Draws parameters and names their logical axes.

    Args:
      rng: key of the draw.
      input_shapes: shape of every batch feature, batch axis included.
      input_types: their types.

    Returns:
      Collections `params` and `params_axes`.

    Raises:
      ValueError: if a feature that the network reads is missing.
    """
    # A box decoder that does not train has parameters too.
    names: list[str] = list(NETWORK_INPUTS)
    if self.module.box_decoder is not None:
      names += DETECTION_INPUTS
    missing = [name for name in names if name not in input_shapes]
    if missing:
      raise ValueError(
          f'The batch lacks {missing}, which PixelLLM reads; it has'
          f' {sorted(input_shapes)}. Use {self.FEATURE_CONVERTER_CLS.__name__}.'
      )
    types = {name: jnp.float32 for name in names}
    types |= {name: jnp.int32 for name in ('context_tokens', 'text_tokens')}
    types |= {'object_captions': jnp.bool_}
    types |= input_types or {}
    inputs = {name: jnp.ones(input_shapes[name], types[name]) for name in names}
    return self.module.init(rng, **inputs, enable_dropout=False)

  def prepare_batch(self, batch: Batch) -> Batch:
    """Adds what the losses of a slice need to know of the whole batch."""
    return self.objective.prepare_batch(self.module, batch)

  def loss_fn(
      self, params: Params, batch: Batch, dropout_rng: Array | None
  ) -> tuple[Float[Array, ''], Metrics]:
    """Loss of a batch, or of a slice of a prepared batch.

    Args:
      params: of the network.
      batch: features; with normalisers if `prepare_batch` saw the whole batch.
      dropout_rng: None turns dropout off.

    Returns:
      The loss and its metrics.
    """
    if not self.objective.is_prepared(self.module, batch):
      batch = self.prepare_batch(batch)
    names: list[str] = list(NETWORK_INPUTS)
    if self.objective.trains_detection(self.module):
      names += DETECTION_INPUTS
    enable_dropout = dropout_rng is not None
    outputs = self.module.apply(
        {'params': params},
        **{name: batch[name] for name in names},
        enable_dropout=enable_dropout,
        rngs={'dropout': dropout_rng} if enable_dropout else None,
    )
    loss, values = self.objective.total_loss(self.module, outputs, batch)
    return loss, self._metrics(loss, values, outputs, batch)

  def _metrics(
      self,
      loss: Float[Array, ''],
      values: Mapping[str, Float[Array, '']],
      outputs: stages.Outputs,
      batch: Batch,
  ) -> Metrics:
    """Metrics that merge over microbatches, steps and hosts."""
    num_images = batch['text_tokens'].shape[0]
    found: Metrics = {
        'loss': metrics_lib.AveragePerStep(total=loss),
        'timing/seqs_per_second': metrics_lib.TimeRate.from_model_output(
            numerator=num_images
        ),
        'timing/steps_per_second': metrics_lib.StepsPerTime.from_model_output(),
        'timing/seconds': metrics_lib.Time(),
        'timing/seqs': metrics_lib.Sum(total=jnp.float32(num_images)),
    }
    for name, value in values.items():
      found[f'{name}_loss'] = metrics_lib.AveragePerStep(total=value)
    if outputs.detection is not None:
      by_proposal = jnp.any(batch['object_captions'], axis=1)
      matched = outputs.prompts.mask & by_proposal[:, None]
      found['text_proposals_per_image'] = clu_metrics.Average(
          total=jnp.sum(matched, dtype=jnp.float32),
          count=jnp.sum(by_proposal, dtype=jnp.float32),
      )
      batch = objective_lib.chosen_rows(outputs.prompts, batch)
    if 'text' in self._loss_weights:
      targets = batch['text_tokens'][:, :, 1:]
      weights = (targets > 0) * batch['caption_weights'][..., None]
      correct = jnp.argmax(outputs.text.logits[:, :, :-1], axis=-1) == targets
      found['accuracy'] = clu_metrics.Average(
          total=jnp.sum(correct * weights), count=jnp.sum(weights)
      )
    return found

  def eval_fn(
      self, params: Params, batch: Batch
  ) -> tuple[Float[Array, ''], Metrics]:
    """Loss and metrics without dropout."""
    return self.loss_fn(params, batch, dropout_rng=None)

  def predict_batch_with_aux(
      self, params: Params, batch: Batch, rng: Array | None = None
  ) -> tuple[Array, dict[str, Array]]:
    """Writes or takes texts, and points (RefB, Sec. 3.4).

    Args:
      params: of the network.
      batch: features; the given text is read, points, boxes and masks not. A
        text that joins no caption loss, as an expression to refer by, is taken
        as given; none is written for padding of the prompts either.
      rng: for decoders that draw (`sampling.Sample`).

    Returns:
      Text tokens [B, N, T], padded with 0, and by name: `scores` [B, N] of the
      texts, `boxes` [B, N, 4], `box_mask` [B, N] (False: no box); with a point
      head `points` [B, N, T, P, 2] and `point_mask` [B, N, T]; with masks
      `mask_logits` [B, N, h, w] over the padded input and `mask_iou` [B, N].
      Coordinates are pixels of the network input.

      For given prompts, boxes are around the points, or the prompts' own
      without a point head, and a point head gives `gt_text_points` too: the
      points of the given text, whatever was decoded. For detections, N is their
      number, boxes are theirs, and there are `detection_scores` [B, N] and
      with a point head `point_boxes` [B, N, 4].
    """
    if self.caption_detections:
      return self._predict_detections(params, batch, rng)
    prepared = inference.prepare(
        self.module,
        params,
        *(batch[name] for name in NETWORK_INPUTS if name != 'text_tokens'),
    )
    text_tokens, scores = batch['text_tokens'], None
    is_given = batch['prompt_mask'] & (batch['caption_weights'] <= 0)
    if self.decoder is not None:
      texts = inference.decode_text(
          self.module,
          params,
          prepared,
          text_tokens.shape[-1],
          self.decoder,
          batch['prompt_mask'] & ~is_given,
          rng,
      )
      text_tokens = jnp.where(
          is_given[..., None], text_tokens, texts.tokens[:, :, -1]
      )
      scores = texts.scores[:, :, -1]
    text_tokens = generation.zero_after_end(
        text_tokens, self.module.end_token_id
    )
    found = inference.describe(self.module, params, prepared, text_tokens)
    given = found
    read_scores = jnp.sum(
        _token_scores(found.text.logits, text_tokens), axis=-1
    )
    if scores is None:
      scores = read_scores
    else:
      scores = jnp.where(is_given, read_scores, scores)
      # What of this no caller reads, such as masks, is never computed.
      given = inference.describe(
          self.module, params, prepared, batch['text_tokens']
      )
    aux = {'scores': scores, **_located(found)}
    if found.location is None:
      aux |= {
          'boxes': batch['prompt_boxes'],
          'box_mask': jnp.any(batch['prompt_boxes'] > 0, axis=-1),
      }
    else:
      aux |= {
          'boxes': found.location.boxes,
          'box_mask': jnp.any(found.location.point_mask, axis=-1),
          'gt_text_points': given.location.points,
      }
    return text_tokens, aux

  def _predict_detections(
      self, params: Params, batch: Batch, rng: Array | None
  ) -> tuple[Array, dict[str, Array]]:
    """Finds objects and captions each, as `predict_batch_with_aux` tells."""
    prepared, detections = inference.detect(
        self.module,
        params,
        batch['image'],
        batch['image_hw'],
        batch['context_tokens'],
    )
    texts = inference.decode_text(
        self.module,
        params,
        prepared,
        batch['text_tokens'].shape[-1],
        self.decoder,
        detections.mask,
        rng,
    )
    scores, text_tokens = texts.scores[:, :, -1], texts.tokens[:, :, -1]
    if self.rescore_detections:
      captioned = rescoring.rescore(detections, texts.tokens, texts.scores)
      prepared = inference.take_prompts(prepared, captioned.slots)
      detections, text_tokens = captioned.detections, captioned.text_tokens
      scores = captioned.log_probs
    text_tokens = generation.zero_after_end(
        text_tokens, self.module.end_token_id
    )
    found = inference.describe(
        self.module, params, prepared, text_tokens, detections.boxes
    )
    aux = {
        'scores': scores,
        'boxes': detections.boxes,
        'box_mask': detections.mask,
        'detection_scores': detections.scores,
        **_located(found),
    }
    if found.location is not None:
      aux['point_boxes'] = found.location.boxes
    return text_tokens, aux

  def score_batch(
      self, params: Params, batch: Batch, return_intermediates: bool = False
  ) -> Float[Array, 'B N'] | tuple[Float[Array, 'B N'], dict[str, Any]]:
    """Log likelihood of the given text of every prompt.

    Args:
      params: of the network.
      batch: features.
      return_intermediates: whether to return the log probability of each token.

    Returns:
      Sums over the tokens behind the begin token, and on request
      `{'decoder': {'token_scores': ([B, N, T-1],)}}`.
    """
    prepared = inference.prepare(
        self.module,
        params,
        *(batch[name] for name in NETWORK_INPUTS if name != 'text_tokens'),
    )
    text = inference.describe(
        self.module, params, prepared, batch['text_tokens']
    ).text
    token_scores = _token_scores(text.logits, batch['text_tokens'])
    scores = jnp.sum(token_scores, axis=-1)
    if return_intermediates:
      return scores, {'decoder': {'token_scores': (token_scores,)}}
    return scores


def _located(found: inference.Description) -> dict[str, Array]:
  """Names points and masks, as far as the network has them."""
  aux = {}
  if found.location is not None:
    aux['points'] = found.location.points
    aux['point_mask'] = found.location.point_mask
  if found.mask is not None:
    aux['mask_logits'] = found.mask.logits[:, :, 0]
    aux['mask_iou'] = found.mask.iou[:, :, 0]
  return aux


def _token_scores(
    logits: Float[Array, 'B N T V'], text_tokens: Array
) -> Float[Array, 'B N S']:
  """Log probability of each token behind the begin token, 0 for padding."""
  targets = text_tokens[:, :, 1:]
  log_probs = jax.nn.log_softmax(logits[:, :, :-1].astype(jnp.float32))
  picked = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
  return jnp.where(targets > 0, picked, 0.0)
