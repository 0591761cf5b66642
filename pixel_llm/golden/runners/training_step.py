"""A training step of a whole-model case: losses, gradients, predictions.

The original scales a loss by the batch mean of its task's flag; the product
weighs per example instead (QUIRKS, mend 6). Both agree on batches of one task,
which `tests/pixel_llm/test_models.py` shows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pixel_llm import detection_losses
from pixel_llm import geometry
from pixel_llm import losses
from pixel_llm import mask_bits
from pixel_llm import network
from pixel_llm import objective
from pixel_llm import stages
from pixel_llm.golden import case as case_lib
from pixel_llm.golden.runners import detection

Arrays = dict[str, Any]
# The same for all cases.
_LABEL_SMOOTHING = 0.1


def read_batch(inputs: Mapping[str, np.ndarray], variant: str = '') -> Arrays:
  """Names a case's inputs as the product does; a variant replaces some."""
  arrays = {k: v for k, v in inputs.items() if '/' not in k}
  if variant:
    prefix = f'{variant}/'
    arrays |= {
        k[len(prefix) :]: v for k, v in inputs.items() if k.startswith(prefix)
    }
  text_tokens = arrays['text_tokens']
  rows = text_tokens.shape[:2]
  boxes = arrays.get('boxes', np.zeros((*rows, 4), np.float32))
  weights = (arrays['labels'] > 0).astype(np.float32)
  batch = {
      'image': arrays['inputs'],
      'image_hw': geometry.image_hw_from_mask(arrays['padding_mask']),
      # Without location prompts only the boxes are left to look at.
      'prompt_boxes': arrays.get('prompt_boxes', boxes),
      'context_tokens': arrays['context_tokens'],
      'text_tokens': text_tokens,
      'boxes': boxes,
      'labels': arrays['labels'],
      'caption_weights': weights,
      'point_weights': weights,
      'mask_weights': weights,
      'valid_mask': arrays['padding_mask'],
  }
  # Only cases of several tasks have flags.
  for ours, theirs in (
      ('caption_flag', 'cap'),
      ('point_flag', 'point'),
      ('detection_flag', 'proposal'),
      ('object_flag', 'objcap'),
  ):
    name = f'{theirs}_loss_valid_mask'
    if name in arrays:
      batch[ours] = arrays[name].astype(np.float32)
  if 'points' in arrays:
    batch['points'] = arrays['points']
  if 'masks' in arrays:
    batch['masks'] = mask_bits.pack(arrays['masks'][..., 0] > 0)
  return batch


def _forward(
    net: network.PixelLLM, params: Mapping[str, Any], batch: Arrays
) -> stages.Outputs:
  detection_inputs = {}
  if net.box_decoder is not None:
    detection_inputs = {'boxes': batch['boxes']}
    if 'detection_flag' in batch:
      rows = jnp.ones(batch['boxes'].shape[:2])
      detection_inputs |= {
          'detection_weights': rows * batch['detection_flag'][:, None],
          'object_captions': rows * batch['object_flag'][:, None] > 0,
      }
  return net.apply(
      {'params': params},
      batch['image'],
      batch['image_hw'],
      batch['prompt_boxes'],
      batch['context_tokens'],
      batch['text_tokens'],
      **detection_inputs,
  )


def _original_losses(
    net: network.PixelLLM,
    settings: Mapping[str, Any],
    outputs: stages.Outputs,
    batch: Arrays,
) -> Arrays:
  """The original's losses: a flag scales its loss by the batch mean."""

  def scale(flag: str) -> float:
    return batch[flag].mean() if flag in batch else 1.0

  chosen = objective.chosen_rows(outputs.prompts, batch)
  text = losses.text_loss(
      outputs.text.logits,
      chosen['text_tokens'],
      chosen['caption_weights'],
      label_smoothing=_LABEL_SMOOTHING,
      end_id=net.end_token_id,
  ).mean()
  terms = {
      'text_loss': text,
      'text_loss_scaled': text * scale('caption_flag'),
  }
  if outputs.location is not None:
    targets = _point_targets(net, outputs, chosen)
    point = losses.point_loss(
        outputs.location.points,
        targets.points,
        targets.mask * chosen['point_weights'][..., None],
        kind=settings['point_loss_type'],
    ).mean()
    weight = settings['point_loss_weight'] * scale('point_flag')
    terms |= {'point_loss': point, 'point_loss_scaled': point * weight}
  if outputs.mask is not None:
    terms |= _mask_losses(settings, outputs.mask, chosen)
  if outputs.detection is not None:
    terms |= _detection_losses(
        settings, outputs, batch, scale('detection_flag')
    )
  terms['total_loss'] = sum(
      value for name, value in terms.items() if name.endswith('_scaled')
  )
  return terms


def _point_targets(
    net: network.PixelLLM, outputs: stages.Outputs, chosen: Arrays
) -> stages.PointTargets:
  """Targets of the prompts that got text; no trace where the case has none."""
  no_trace = jnp.zeros(outputs.location.points.shape, jnp.float32)
  return objective.point_targets(
      net,
      chosen['text_tokens'],
      chosen.get('points', no_trace),
      chosen['boxes'],
  )


def _mask_losses(
    settings: Mapping[str, Any], outputs: stages.MaskOutputs, chosen: Arrays
) -> Arrays:
  mask = losses.mask_loss(
      outputs.logits,
      outputs.iou,
      mask_bits.unpack(chosen['masks'], chosen['valid_mask'].shape[-1]),
      chosen['valid_mask'] > 0,
      chosen['mask_weights'],
  )
  return {
      'mask_focal_loss': mask.focal.mean(),
      'mask_dice_loss': mask.dice.mean(),
      'mask_iou_pred_loss': mask.iou.mean(),
      'mask_loss': mask.sum().mean(),
      'mask_loss_scaled': mask.sum().mean() * settings['mask_loss_weight'],
  }


def _detection_losses(
    settings: Mapping[str, Any],
    outputs: stages.Outputs,
    batch: Arrays,
    scale: float,
) -> Arrays:
  """Detection losses over all images; those without the task show no box."""
  boxes, num_images = batch['boxes'], batch['boxes'].shape[0]
  if 'detection_flag' in batch:
    boxes = boxes * (batch['detection_flag'] > 0)[:, None, None]
  terms = detection_losses.detection_losses(
      outputs.detection,
      boxes,
      jnp.ones((num_images,)),
      size_ranges=settings['box_decoder_args.fpn_range'],
  )
  loss = terms.mean(
      heatmap_weight=settings['box_decoder_args.hm_weight'],
      box_weight=settings['box_decoder_args.reg_weight'],
  )
  return {
      **detection.loss_scalars(
          loss, terms, num_images, outputs.detection.sample
      ),
      'det_loss_scaled': loss * settings['det_loss_weight'] * scale,
  }


def _predictions(
    net: network.PixelLLM, outputs: stages.Outputs, batch: Arrays
) -> Arrays:
  """What the original shows of a training step, under its names."""
  prompts = outputs.prompts
  chosen = objective.chosen_rows(prompts, batch)
  found = {}
  if outputs.location is not None:
    targets = _point_targets(net, outputs, chosen)
    found |= {
        'point_coords': outputs.location.points,
        'point_valid_mask': targets.mask,
    }
  if outputs.mask is not None:
    found |= {
        'detection_boxes': outputs.location.boxes,
        'detection_masks': outputs.mask.logits,
        'iou_predictions': outputs.mask.iou,
    }
  if outputs.detection is not None:
    classes = prompts.take(batch['labels'])
    found |= {
        'last_proposals': outputs.detection.sample.boxes,
        'prompt_boxes': prompts.boxes,
        'gt_boxes': chosen['boxes'],
        'gt_classes': jnp.where(prompts.mask, classes, 0),
        'gt_text_tokens': prompts.text_tokens,
    }
  # Two of the cases show the target points as well.
  if outputs.location is not None and len(found) > 2:
    found['gt_point_coords'] = targets.points
  return found


def flatten(tree: Mapping[str, Any], prefix: str = '') -> Arrays:
  """Joins the names of a nested dict with slashes."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f'{prefix}{key}/')
    else:
      flat[prefix + key] = value
  return flat


def run_training(
    net: network.PixelLLM, case: case_lib.Case, variants: Sequence[str]
) -> Arrays:
  """Losses, gradients and predictions of the training batches of a case.

  Args:
    net: the network.
    case: the case.
    variants: names of batches; the empty name is the plain one.

  Returns:
    Arrays by full name.
  """

  @jax.jit
  def step(params, batch):
    def total_loss(params):
      outputs = _forward(net, params, batch)
      terms = _original_losses(net, case.settings, outputs, batch)
      return terms['total_loss'], (terms, _predictions(net, outputs, batch))

    (_, (terms, predictions)), gradients = jax.value_and_grad(
        total_loss, has_aux=True
    )(params)
    return terms, predictions, flatten(gradients)

  found = {}
  for variant in variants:
    batch = read_batch(case.inputs, variant)
    terms, predictions, gradients = step(case.params, batch)
    suffix = f'_{variant}' if variant else ''
    terms |= _gradient_norms(gradients)
    for group, values in (('loss', terms), ('train', predictions)):
      found |= {f'out/{group}{suffix}/{k}': v for k, v in values.items()}
    prefix = f'grad/{variant}/' if variant else 'grad/'
    # A case stores the gradients of some parameters, and the norms of all.
    found |= {
        prefix + name: value
        for name, value in gradients.items()
        if prefix + name in case.expected
    }
  return found


def _gradient_norms(gradients: Arrays) -> Arrays:
  norms = {
      name: jnp.linalg.norm(value.ravel()) for name, value in gradients.items()
  }
  norm_per_param = jnp.stack([norms[name] for name in sorted(norms)])
  return {
      'grad_norm_per_param': norm_per_param,
      'grad_global_norm': jnp.linalg.norm(norm_per_param),
  }
