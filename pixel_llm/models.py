"""PixelLLM as a T5X model: where the network meets the trainer (RefA).

`loss_fn` and `predict_batch_with_aux` are all that a training or evaluation
run calls. Losses are means over everything in the global batch that takes
part. Their normalisers depend on the batch alone, so they are worked out
before a batch is cut into microbatches (`prepare_batch`), and the sum over
microbatches is the loss of the whole batch.

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
from pixel_llm import geometry
from pixel_llm import inference
from pixel_llm import losses
from pixel_llm import network
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
_NORMALIZER = '{}_normalizer'


class PixelLLMModel(models.BaseModel):
  """PixelLLM for T5X.

  Attributes:
    module: the network.
    decoder: writes texts at inference; None for referring tasks, where the
      text is the given expression (RefB, Sec. 3.4).
  """

  def __init__(
      self,
      module: network.PixelLLM,
      optimizer_def: optimizers.OptimizerDef,
      decoder: generation.Decoder | None,
      *,
      text_loss_weight: float = 1.0,
      point_loss_weight: float = 0.1,
      mask_loss_weight: float = 1.0,
      label_smoothing: float = 0.1,
      point_loss_kind: str = 'l1_nonzero',
  ):
    """Makes the model.

    Args:
      module: the network.
      optimizer_def: optimizer; it says which parameters train.
      decoder: writes texts at inference; None takes the given text.
      text_loss_weight: weight of the caption loss; with 0, as for any of the
        three, that loss is neither computed nor reported.
      point_loss_weight: weight of the point loss, which is in pixels.
      mask_loss_weight: weight of the mask loss.
      label_smoothing: of the caption loss.
      point_loss_kind: one of `losses.POINT_LOSSES`.
    """
    super().__init__(optimizer_def=optimizer_def)
    self.module = module
    self.decoder = decoder
    weights = {'text': text_loss_weight, 'point': point_loss_weight}
    if module.has_masks:
      weights['mask'] = mask_loss_weight
    self._loss_weights = {name: w for name, w in weights.items() if w}
    if not self._loss_weights:
      raise ValueError(f'All losses have weight 0: {weights}; nothing trains.')
    self._label_smoothing = label_smoothing
    self._point_loss_kind = point_loss_kind

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
    missing = [name for name in NETWORK_INPUTS if name not in input_shapes]
    if missing:
      raise ValueError(
          f'The batch lacks {missing}, which PixelLLM reads; it has'
          f' {sorted(input_shapes)}. Use {self.FEATURE_CONVERTER_CLS.__name__}.'
      )
    types = {name: jnp.float32 for name in NETWORK_INPUTS}
    types |= {name: jnp.int32 for name in ('context_tokens', 'text_tokens')}
    types |= input_types or {}
    inputs = {
        name: jnp.ones(input_shapes[name], types[name])
        for name in NETWORK_INPUTS
    }
    return self.module.init(rng, **inputs, enable_dropout=False)

  def prepare_batch(self, batch: Batch) -> Batch:
    """Adds the normaliser of every loss, the same for all examples.

    Args:
      batch: the whole global batch.

    Returns:
      The batch with features `<loss>_normalizer` of shape (B,).
    """
    num_images = batch['text_tokens'].shape[0]
    added = {
        _NORMALIZER.format(name): jnp.full((num_images,), count, jnp.float32)
        for name, count in self._loss_counts(batch).items()
    }
    return {**batch, **added}

  def _loss_counts(self, batch: Batch) -> dict[str, Float[Array, '']]:
    """How much takes part in each loss: tokens, tokens, prompts."""
    weights = {}
    if 'text' in self._loss_weights:
      weights['text'] = losses.text_token_weights(
          batch['text_tokens'],
          batch['caption_weights'],
          end_id=self.module.end_token_id,
      )
    if 'point' in self._loss_weights:
      weights['point'] = losses.point_token_weights(
          *self._point_targets(batch), self._point_loss_kind
      )
    if 'mask' in self._loss_weights:
      weights['mask'] = batch['mask_weights']
    return {name: jnp.sum(weight) for name, weight in weights.items()}

  def _point_targets(
      self, batch: Batch
  ) -> tuple[Float[Array, 'B N T P 2'], Float[Array, 'B N T']]:
    """Target points and the weight of each token."""
    targets = self.module.point_targets(
        batch['text_tokens'], batch['points'], batch['boxes']
    )
    return targets.points, targets.mask * batch['point_weights'][..., None]

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
    if _NORMALIZER.format(next(iter(self._loss_weights))) not in batch:
      batch = self.prepare_batch(batch)
    enable_dropout = dropout_rng is not None
    outputs = self.module.apply(
        {'params': params},
        **{name: batch[name] for name in NETWORK_INPUTS},
        enable_dropout=enable_dropout,
        rngs={'dropout': dropout_rng} if enable_dropout else None,
    )
    terms = self._loss_terms(outputs, batch)
    # An empty loss has total 0; it must not divide by 0.
    values = {
        name: term.total / jnp.maximum(batch[_NORMALIZER.format(name)][0], 1.0)
        for name, term in terms.items()
    }
    loss = sum(
        weight * values[name] for name, weight in self._loss_weights.items()
    )
    return loss, self._metrics(loss, values, outputs, batch)

  def _loss_terms(
      self, outputs: stages.Outputs, batch: Batch
  ) -> dict[str, losses.LossTerm]:
    """Summed losses by name, before normalisation and weights."""
    terms = {}
    if 'text' in self._loss_weights:
      terms['text'] = losses.text_loss(
          outputs.text.logits,
          batch['text_tokens'],
          batch['caption_weights'],
          label_smoothing=self._label_smoothing,
          end_id=self.module.end_token_id,
      )
    if 'point' in self._loss_weights:
      points, point_weights = self._point_targets(batch)
      terms['point'] = losses.point_loss(
          outputs.location.points,
          points,
          point_weights,
          kind=self._point_loss_kind,
      )
    if 'mask' in self._loss_weights:
      height, width = batch['image'].shape[1:3]
      terms['mask'] = losses.mask_loss(
          outputs.mask.logits,
          outputs.mask.iou,
          batch['masks'],
          geometry.valid_mask(batch['image_hw'], height, width),
          batch['mask_weights'],
      ).sum()
    return terms

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
    if 'text' in self._loss_weights:
      targets = batch['text_tokens'][:, :, 1:]
      weights = (targets > 0) * batch['caption_weights'][..., None]
      correct = jnp.argmax(outputs.text.logits[:, :, :-1], axis=-1) == targets
      found['accuracy'] = clu_metrics.Average(
          total=jnp.sum(correct * weights), count=jnp.sum(weights)
      )
    for name, value in values.items():
      found[f'{name}_loss'] = metrics_lib.AveragePerStep(total=value)
    return found

  def eval_fn(
      self, params: Params, batch: Batch
  ) -> tuple[Float[Array, ''], Metrics]:
    """Loss and metrics without dropout."""
    return self.loss_fn(params, batch, dropout_rng=None)

  def predict_batch_with_aux(
      self, params: Params, batch: Batch, rng: Array | None = None
  ) -> tuple[Array, dict[str, Array]]:
    """Writes or takes the text of every prompt, and points (RefB, Sec. 3.4).

    Args:
      params: of the network.
      batch: features; the given text is read, points, boxes and masks not. No
        text is written for padding of the prompts.
      rng: for decoders that draw (`sampling.Sample`).

    Returns:
      Text tokens [B, N, T], padded with 0, and by name: `scores` [B, N],
      `points` [B, N, T, P, 2], `point_mask` [B, N, T], `gt_text_points` (the
      points of the given text, whatever was decoded), `boxes` [B, N, 4],
      `box_mask` [B, N] (False: no box), and with masks `mask_logits`
      [B, N, h, w] over the padded input and `mask_iou` [B, N]. Coordinates are
      pixels of the network input.
    """
    prepared = inference.prepare(
        self.module,
        params,
        *(batch[name] for name in NETWORK_INPUTS if name != 'text_tokens'),
    )
    scores = None
    text_tokens = batch['text_tokens']
    if self.decoder is not None:
      texts = inference.decode_text(
          self.module,
          params,
          prepared,
          text_tokens.shape[-1],
          self.decoder,
          batch['prompt_mask'],
          rng,
      )
      text_tokens, scores = texts.tokens[:, :, -1], texts.scores[:, :, -1]
    text_tokens = generation.zero_after_end(
        text_tokens, self.module.end_token_id
    )
    found = inference.describe(self.module, params, prepared, text_tokens)
    given = found
    if scores is None:
      scores = jnp.sum(_token_scores(found.text.logits, text_tokens), axis=-1)
    else:
      # What of this no caller reads, such as masks, is never computed.
      given = inference.describe(
          self.module, params, prepared, batch['text_tokens']
      )
    location = found.location
    aux = {
        'scores': scores,
        'points': location.points,
        'point_mask': location.point_mask,
        'gt_text_points': given.location.points,
        'boxes': location.boxes,
        'box_mask': jnp.any(location.point_mask, axis=-1),
    }
    if found.mask is not None:
      aux['mask_logits'] = found.mask.logits[:, :, 0]
      aux['mask_iou'] = found.mask.iou[:, :, 0]
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


def _token_scores(
    logits: Float[Array, 'B N T V'], text_tokens: Array
) -> Float[Array, 'B N S']:
  """Log probability of each token behind the begin token, 0 for padding."""
  targets = text_tokens[:, :, 1:]
  log_probs = jax.nn.log_softmax(logits[:, :, :-1].astype(jnp.float32))
  picked = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
  return jnp.where(targets > 0, picked, 0.0)
