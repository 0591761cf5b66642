"""Runs the golden case of the losses."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array
import numpy as np

from pixel_llm import losses
from pixel_llm.golden import case as golden_case


def _text(inputs, end_id: int) -> dict[str, Array]:
  """Computes the text losses and a gradient."""
  logits, tokens = inputs['text/logits'], inputs['text/tokens']
  mask = inputs['text/mask']
  everything = jnp.ones_like(mask)

  def loss(logits, tokens, weights, smoothing):
    return losses.text_loss(
        logits, tokens, weights, label_smoothing=smoothing, end_id=end_id
    ).mean()

  outputs = {
      'out/text/all_invalid': loss(logits, tokens, 0 * mask, 0.1),
      'out/text/all_padding': loss(logits, 0 * tokens, everything, 0.1),
      'out/text/grad_logits': jax.grad(loss)(logits, tokens, mask, 0.1),
  }
  for smoothing in (0.0, 0.1, 0.3):
    for name, weights in (('no_mask', everything), ('mask', mask)):
      outputs[f'out/text/{name}_smooth{smoothing}'] = loss(
          logits, tokens, weights, smoothing
      )
  return outputs


def _points(inputs) -> dict[str, Array]:
  """Computes the point losses."""
  points, targets = inputs['point/pred'], inputs['point/target']
  # The original takes one target or mask a caption too; ours are per token.
  box = inputs['point/target_box'][:, :, None]
  box_targets = jnp.broadcast_to(box, targets.shape)
  tokens = inputs['point/pred_valid'].astype(jnp.float32)
  target_tokens = inputs['point/target_valid'].astype(jnp.float32)
  captions = inputs['point/target_box_valid'][..., None].astype(jnp.float32)
  cases = {
      '': (targets, tokens * target_tokens),
      '_box_target': (box_targets, tokens * captions),
      '_mixed': (targets, tokens * captions),
      '_all_invalid': (targets, 0 * tokens),
      '_zero_targets': (0 * targets, jnp.ones_like(tokens)),
  }
  return {
      f'out/point/{kind}{suffix}': losses.point_loss(
          points, case_targets, weights, kind=kind
      ).mean()
      for kind in losses.POINT_LOSSES
      for suffix, (case_targets, weights) in cases.items()
  }


def _masks(inputs) -> dict[str, Array]:
  """Computes the mask losses and a gradient."""
  mask_logits, mask_iou = inputs['mask/pred'], inputs['mask/pred_iou']
  targets = (inputs['mask/target'][..., 0] > 0).astype(jnp.uint8)
  inside = inputs['mask/padding_mask'] > 0
  weights = inputs['mask/valid'].astype(jnp.float32)

  def loss(mask_logits):
    return (
        losses.mask_loss(mask_logits, mask_iou, targets, inside, weights)
        .sum()
        .mean()
    )

  cases = {
      '': (mask_logits, mask_iou, weights),
      '_all_invalid': (mask_logits, mask_iou, 0 * weights),
      '_all_valid': (mask_logits, mask_iou, jnp.ones_like(weights)),
      '_single': (mask_logits[:, :, :1], mask_iou[:, :, :1], weights),
  }
  outputs = {'out/mask/grad_pred': jax.grad(loss)(mask_logits)}
  for suffix, (case_logits, case_iou, case_weights) in cases.items():
    terms = losses.mask_loss(
        case_logits, case_iou, targets, inside, case_weights
    )
    outputs |= {
        f'out/mask/mask_focal_loss{suffix}': terms.focal.mean(),
        f'out/mask/mask_dice_loss{suffix}': terms.dice.mean(),
        f'out/mask/mask_iou_pred_loss{suffix}': terms.iou.mean(),
        f'out/mask/mask_loss{suffix}': terms.sum().mean(),
    }
  return outputs


def run_losses(case: golden_case.Case) -> dict[str, np.ndarray]:
  """Computes all losses and gradients of the case."""
  inputs = {name: jnp.asarray(x) for name, x in case.inputs.items()}
  outputs = _text(inputs, case.settings['end token'])
  outputs |= _points(inputs) | _masks(inputs)
  return {name: np.asarray(x) for name, x in outputs.items()}


RUNNERS: dict[str, Callable[[golden_case.Case], dict[str, np.ndarray]]] = {
    'losses': run_losses,
}
