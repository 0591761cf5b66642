"""The training objective: which losses, their weights and their means (RefA).

A loss is a mean over everything in the global batch that takes part. Its
normaliser mostly depends on the batch alone, so it is worked out before a batch
is cut into microbatches (`Objective.prepare_batch`), and the sum over
microbatches is the loss of the whole batch.

Where the box decoder trains, the network's own proposals decide which captions
count, so no normaliser is known beforehand: there a loss is the mean over a
microbatch, times its share of the images that take part. Without microbatches
both are the same.

Pure functions of arrays: nothing here knows the trainer.

RefA: Pixel Aligned Language Models (arXiv 2312.09237), Sec. 3.3 and 4.
"""

from collections.abc import Mapping, Sequence
import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pixel_llm import detection_losses
from pixel_llm import geometry
from pixel_llm import losses
from pixel_llm import mask_bits
from pixel_llm import network
from pixel_llm import stages

Batch = Mapping[str, Array]

# What the batch gains: the summed weights of a loss, or its images.
_COUNT = '{}_count'
_IMAGES = '{}_images'
# Who takes part in a loss.
_WEIGHTS = {
    'text': 'caption_weights',
    'point': 'point_weights',
    'mask': 'mask_weights',
    'detection': 'detection_weights',
}
# Features with one row a prompt that the losses of a text read.
_ROW_FEATURES = (
    'prompt_mask',
    'text_tokens',
    'boxes',
    'points',
    'caption_weights',
    'point_weights',
    'masks',
    'mask_weights',
)


@dataclasses.dataclass(frozen=True)
class Objective:
  """What a run minimises.

  A loss of weight 0, or of a part that the network lacks, is neither computed
  nor reported.

  Attributes:
    text_weight: of the caption loss.
    point_weight: of the point loss, which is in pixels.
    mask_weight: of the mask loss.
    detection_weight: of the detection loss; with 0 the box decoder does not
      run in training, and every image keeps its own prompts.
    label_smoothing: of the caption loss.
    point_loss: one of `losses.POINT_LOSSES`.
    heatmap_weight: of the proposal stage's heat map in the detection loss.
    box_weight: of the proposal stage's boxes there.
    size_ranges: as `detection_losses.centre_targets` takes them.
  """

  text_weight: float = 1.0
  point_weight: float = 0.1
  mask_weight: float = 1.0
  detection_weight: float = 1.0
  label_smoothing: float = 0.1
  point_loss: str = 'l1_nonzero'
  heatmap_weight: float = 0.5
  box_weight: float = 1.0
  size_ranges: Sequence[tuple[float, float]] = detection_losses.SIZE_RANGES

  def weights(self, module: network.PixelLLM) -> dict[str, float]:
    """Returns the weight of each loss of that network, by name.

    Raises:
      ValueError: if no loss is left.
    """
    found = {'text': self.text_weight}
    if module.point_predictor is not None:
      found['point'] = self.point_weight
    if module.has_masks:
      found['mask'] = self.mask_weight
    if module.box_decoder is not None:
      found['detection'] = self.detection_weight
    kept = {name: weight for name, weight in found.items() if weight}
    if not kept:
      raise ValueError(f'All losses have weight 0: {found}; nothing trains.')
    return kept

  def trains_detection(self, module: network.PixelLLM) -> bool:
    """Whether the box decoder runs in training."""
    return 'detection' in self.weights(module)

  def prepare_batch(self, module: network.PixelLLM, batch: Batch) -> Batch:
    """Adds what the mean of every loss needs to know of the whole batch.

    Args:
      module: the network; its parameters are not needed.
      batch: the whole global batch.

    Returns:
      The batch with further features of shape (B,), equal for all images.
    """
    num_images = batch['text_tokens'].shape[0]
    if self.trains_detection(module):
      taking_part = self._image_weights(module, batch)
      added = {
          _IMAGES.format(name): jnp.sum(weights)
          for name, weights in taking_part.items()
      }
    else:
      added = {
          _COUNT.format(name): count
          for name, count in self._counts(module, batch).items()
      }
    return {
        **batch,
        **{
            k: jnp.full((num_images,), v, jnp.float32) for k, v in added.items()
        },
    }

  def is_prepared(self, module: network.PixelLLM, batch: Batch) -> bool:
    """Whether `prepare_batch` has seen the batch."""
    name = next(iter(self.weights(module)))
    return _COUNT.format(name) in batch or _IMAGES.format(name) in batch

  def total_loss(
      self, module: network.PixelLLM, outputs: stages.Outputs, batch: Batch
  ) -> tuple[Float[Array, ''], dict[str, Float[Array, '']]]:
    """Computes the weighted sum of all losses, and each without its weight.

    Args:
      module: the network.
      outputs: of the network on that batch.
      batch: a prepared batch, or a slice of one.

    Returns:
      The loss, and by name what it is made of.
    """
    if outputs.detection is None:
      # An empty loss has total 0; it must not divide by 0.
      values = {
          name: term.total / jnp.maximum(batch[_COUNT.format(name)][0], 1.0)
          for name, term in self._terms(module, outputs, batch).items()
      }
    else:
      values = self._shares(module, outputs, batch)
    weights = self.weights(module)
    return sum(weights[name] * values[name] for name in weights), values

  def _shares(
      self, module: network.PixelLLM, outputs: stages.Outputs, batch: Batch
  ) -> dict[str, Float[Array, '']]:
    """Means over a slice, times its share of the images that take part."""
    chosen = chosen_rows(outputs.prompts, batch)
    means = {
        name: term.mean()
        for name, term in self._terms(module, outputs, chosen).items()
    }
    image_weights = self._image_weights(module, batch)
    is_object = batch['detection_weights'] > 0
    detection = detection_losses.detection_losses(
        outputs.detection,
        jnp.where(is_object[..., None], batch['boxes'], 0.0),
        image_weights['detection'],
        size_ranges=self.size_ranges,
    )
    means['detection'] = detection.mean(
        heatmap_weight=self.heatmap_weight, box_weight=self.box_weight
    )
    shares = {
        name: jnp.sum(weights)
        / jnp.maximum(batch[_IMAGES.format(name)][0], 1.0)
        for name, weights in image_weights.items()
    }
    return {name: means[name] * shares[name] for name in means}

  def _image_weights(
      self, module: network.PixelLLM, batch: Batch
  ) -> dict[str, Float[Array, 'B']]:
    """1 for an image that takes part in a loss."""
    return {
        name: jnp.any(batch[_WEIGHTS[name]] > 0, axis=1).astype(jnp.float32)
        for name in self.weights(module)
    }

  def _counts(
      self, module: network.PixelLLM, batch: Batch
  ) -> dict[str, Float[Array, '']]:
    """How much takes part in each loss: tokens, tokens, prompts."""
    weights = self.weights(module)
    found = {}
    if 'text' in weights:
      found['text'] = losses.text_token_weights(
          batch['text_tokens'],
          batch['caption_weights'],
          end_id=module.end_token_id,
      )
    if 'point' in weights:
      found['point'] = losses.point_token_weights(
          *_point_targets(module, batch), self.point_loss
      )
    if 'mask' in weights:
      found['mask'] = batch['mask_weights']
    return {name: jnp.sum(weight) for name, weight in found.items()}

  def _terms(
      self, module: network.PixelLLM, outputs: stages.Outputs, batch: Batch
  ) -> dict[str, losses.LossTerm]:
    """Summed losses of text, points and masks by name, before weights."""
    weights = self.weights(module)
    terms = {}
    if 'text' in weights:
      terms['text'] = losses.text_loss(
          outputs.text.logits,
          batch['text_tokens'],
          batch['caption_weights'],
          label_smoothing=self.label_smoothing,
          end_id=module.end_token_id,
      )
    if 'point' in weights:
      points, point_weights = _point_targets(module, batch)
      terms['point'] = losses.point_loss(
          outputs.location.points, points, point_weights, kind=self.point_loss
      )
    if 'mask' in weights:
      height, width = batch['image'].shape[1:3]
      terms['mask'] = losses.mask_loss(
          outputs.mask.logits,
          outputs.mask.iou,
          mask_bits.unpack(batch['masks'], width),
          geometry.valid_mask(batch['image_hw'], height, width),
          batch['mask_weights'],
      ).sum()
    return terms


def chosen_rows(prompts: stages.Prompts, batch: Batch) -> Batch:
  """Gives every prompt the targets and weights of the row it got its text from.

  Args:
    prompts: the prompts that got text.
    batch: features.

  Returns:
    The batch with a row for each prompt in the features of losses; a prompt
    whose text does not belong to it weighs 0.
  """
  chosen = {
      name: prompts.take(batch[name]) for name in _ROW_FEATURES if name in batch
  }
  for name in chosen:
    if name.endswith('_weights'):
      chosen[name] *= prompts.mask
  return {**batch, **chosen}


def point_targets(
    module: network.PixelLLM,
    text_tokens: Int[Array, 'B N T'],
    points: Float[Array, 'B N T P 2'],
    boxes: Float[Array, 'B N 4'],
) -> stages.PointTargets:
  """Targets of the point loss: a trace where there is one, else the box.

  An image with any positive target point has a trace: its captions point at
  every word. In others the tokens that count point at the corners of their
  prompt's target box.

  Args:
    module: the network; it says which tokens count.
    text_tokens: the text.
    points: targets per token, all zero in an image without a trace.
    boxes: target boxes.

  Returns:
    Targets and which of them count.
  """
  has_trace = jnp.any(points > 0, axis=(1, 2, 3, 4))[:, None, None]
  corners = boxes.reshape(*boxes.shape[:2], 1, 2, 2)
  return stages.PointTargets(
      points=jnp.where(has_trace[..., None, None], points, corners),
      mask=jnp.where(
          has_trace,
          module.token_mask(text_tokens, module.trace_point_output_ignore),
          module.token_mask(text_tokens, module.point_output_ignore),
      ),
  )


def _point_targets(
    module: network.PixelLLM, batch: Batch
) -> tuple[Float[Array, 'B N T P 2'], Float[Array, 'B N T']]:
  """Target points and the weight of each token."""
  # A slot without a prompt does not make its image one with a trace.
  in_use = batch['prompt_mask'][..., None, None, None]
  targets = point_targets(
      module,
      batch['text_tokens'],
      jnp.where(in_use, batch['points'], 0.0),
      batch['boxes'],
  )
  return targets.points, targets.mask * batch['point_weights'][..., None]
