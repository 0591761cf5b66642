"""Runs the golden cases of the box decoder and of what it is made of."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pixel_llm import detection_losses
from pixel_llm import roi_ops
from pixel_llm import suppression
from pixel_llm.golden import case as golden_case
from pixel_llm.modules import box_decoder
from pixel_llm.modules import centernet
from pixel_llm.modules import feature_pyramid
from pixel_llm.modules import roi_head

Arrays = dict[str, np.ndarray]


def run_nms(case: golden_case.Case) -> Arrays:
  """Suppresses at three thresholds, and within classes."""
  boxes, scores, classes = (
      jnp.asarray(case.inputs[name]) for name in ('boxes', 'scores', 'classes')
  )
  outputs = {}
  for percent in (50, 70, 90):
    num_kept = case.expected[f'out/scores_{percent}'].shape[0]
    kept = suppression.non_max_suppression(
        boxes, scores, threshold=percent / 100, num_kept=num_kept
    )
    outputs[f'boxes_{percent}'] = boxes[kept.index] * kept.mask[:, None]
    outputs[f'scores_{percent}'] = scores[kept.index] * kept.mask
  num_kept = case.expected['out/classwise_scores'].shape[0]
  kept = suppression.non_max_suppression(
      boxes, scores, threshold=0.5, num_kept=num_kept, classes=classes
  )
  outputs['classwise_boxes'] = boxes[kept.index]
  outputs['classwise_scores'] = scores[kept.index] * kept.mask
  outputs['classwise_classes'] = classes[kept.index]
  return {f'out/{name}': np.asarray(array) for name, array in outputs.items()}


def run_roi_ops(case: golden_case.Case) -> Arrays:
  """Crops, codes and compares boxes."""
  inputs = {name: jnp.asarray(array) for name, array in case.inputs.items()}
  weights = case.settings['box weights']
  anchors, targets = inputs['anchors'], inputs['targets']
  encoded = roi_ops.encode_boxes(targets, anchors, weights)
  outputs = {
      'crops': roi_ops.roi_align(
          [inputs[f'features{i}'] for i in range(3)],
          inputs['boxes'],
          inputs['level'],
          output_size=case.settings['output side'],
          num_samples=case.settings['samples per bin and axis'],
      ),
      'encoded': encoded,
      'decoded': roi_ops.decode_boxes(encoded, anchors, weights),
      'decoded_large': roi_ops.decode_boxes(inputs['deltas'], anchors, weights),
      'iou': roi_ops.pairwise_iou(anchors[0], targets[0]),
  }
  return {f'out/{name}': np.asarray(array) for name, array in outputs.items()}


def run_feature_pyramid(case: golden_case.Case) -> Arrays:
  """Computes the levels."""
  pyramid = feature_pyramid.FeaturePyramid(
      features=case.settings['out_channels'],
      scale_factors=case.settings['scale_factors'],
      top_block=feature_pyramid.SubsampledTop(),
      upsample_dim=case.settings['in_dim'],
  )
  levels = jax.jit(pyramid.apply)(
      {'params': case.params}, jnp.asarray(case.inputs['features'])
  )
  return {f'out/level{i}': np.asarray(x) for i, x in enumerate(levels)}


def make_box_decoder(
    settings: Mapping[str, Any],
    features: int,
    upsample_dim: int,
    num_detections: int,
) -> box_decoder.BoxDecoder:
  """Builds a box decoder from the settings of a case."""
  return box_decoder.BoxDecoder(
      fpn=feature_pyramid.FeaturePyramid(
          features=features, upsample_dim=upsample_dim
      ),
      proposal_generator=centernet.CenterNet(
          strides=tuple(settings['strides']),
          score_threshold=settings['score_thresh'],
          iou_threshold=settings['iou_thresh'],
          num_candidates_train=settings['pre_nms_topk_train'],
          num_proposals_train=settings['post_nms_topk_train'],
          num_candidates_test=settings['pre_nms_topk_test'],
          num_proposals_test=settings['post_nms_topk_test'],
      ),
      roi_heads=roi_head.RoiHead(
          num_classes=settings['roi_num_classes'],
          hidden_dims=tuple(settings['roi_fc_dims']),
          min_iou=settings['roi_matching_threshold'][0],
          text_min_iou=settings['match_gt_thresh'],
          num_samples=settings['roi_samples_per_image'],
          positive_fraction=settings['roi_positive_fraction'],
          score_threshold=settings['roi_score_threshold'],
          iou_threshold=settings['roi_nms_threshold'],
          num_detections=num_detections,
      ),
  )


def run_box_decoder(case: golden_case.Case) -> Arrays:
  """Runs detection, a training step's losses and its gradient."""
  settings = case.settings
  upsample_dim, features = settings['pyramid in_dim / out_channels'].split('/')
  decoder = make_box_decoder(
      settings,
      int(features),
      int(upsample_dim),
      settings['roi_post_nms_num_detections'],
  )
  params = jax.tree.map(jnp.asarray, dict(case.params))
  inputs = {name: jnp.asarray(array) for name, array in case.inputs.items()}
  # All images of the case have one padded size.
  height, width = (int(x) for x in case.inputs['image_size'][0])
  outputs = _run_stages(decoder, params, inputs, (height, width))
  training, grads = _run_losses(
      decoder, params, inputs, (height, width), settings
  )
  outputs = {f'out/{k}': v for k, v in (outputs | training).items()}
  for path, grad in jax.tree_util.tree_leaves_with_path(grads):
    name = 'grad/' + '/'.join(key.key for key in path)
    # The case stores the gradients of some parameters, and the norm of all.
    if name in case.expected:
      outputs[name] = grad
  return {name: np.asarray(array) for name, array in outputs.items()}


def _run_stages(
    decoder: box_decoder.BoxDecoder,
    params: Mapping[str, Any],
    inputs: Mapping[str, jax.Array],
    input_hw: tuple[int, int],
) -> dict[str, jax.Array]:
  """Inference, with what is between the stages."""
  generator = decoder.proposal_generator
  levels = jax.jit(decoder.fpn.apply)(
      {'params': params['fpn']}, inputs['features']
  )
  maps = jax.jit(generator.apply)(
      {'params': params['proposal_generator']}, levels
  )
  outputs = {}
  start = 0
  for i, (height, width) in enumerate(maps.grids):
    stop = start + height * width
    shape = (-1, height, width)
    outputs |= {
        f'fpn_level{i}': levels[i],
        f'heatmap_level{i}': maps.logits[:, start:stop].reshape(*shape, 1),
        f'box_reg_level{i}': maps.distances[:, start:stop].reshape(*shape, 4),
    }
    start = stop
  scores, cells = jax.lax.top_k(
      jax.nn.sigmoid(maps.logits), generator.num_candidates_test
  )
  proposals = jax.jit(lambda x: generator.propose(x, is_training=False))(maps)
  detections = jax.jit(
      lambda p, x: decoder.apply(
          {'params': p}, x, input_hw=input_hw, method='detect'
      )
  )(params, inputs['features'])
  outputs |= {
      'peak_boxes': jnp.take_along_axis(maps.boxes(), cells[..., None], axis=1),
      'peak_scores': scores,
      'proposal_boxes': proposals.boxes,
      'proposal_scores': proposals.scores,
      'detection_boxes': detections.boxes,
      'detection_scores': detections.scores,
      'detection_classes': detections.classes,
      'num_detections': jnp.sum(detections.mask, axis=-1),
  }
  return outputs


def loss_scalars(
    loss: jax.Array,
    terms: detection_losses.DetectionLosses,
    num_images: int,
    sample: roi_head.RoiSample,
) -> dict[str, jax.Array]:
  """Names the parts of the loss; the original's counts are means over images."""
  return {
      'det_loss': loss,
      'pos_loss': terms.positive.mean(),
      'neg_loss': terms.negative.mean(),
      'reg_loss': terms.box.mean(),
      'hm_norm': terms.positive.count / num_images,
      'reg_norm': terms.box.count / num_images,
      'stage0_roi_cls_loss': terms.roi_class.mean(),
      'stage0_roi_reg_loss': terms.roi_box.mean(),
      'stage0_foreground_accuracy_scalar': terms.foreground_accuracy.mean(),
      'stage0_num_positives_per_img_scalar': (
          terms.foreground_accuracy.count / num_images
      ),
      'stage0_num_valid_proposals': terms.roi_class.count / num_images,
      'stage0_num_proposals': jnp.asarray(sample.mask.shape[1]),
  }


def _run_losses(
    decoder: box_decoder.BoxDecoder,
    params: Mapping[str, Any],
    inputs: Mapping[str, jax.Array],
    input_hw: tuple[int, int],
    settings: Mapping[str, Any],
) -> tuple[dict[str, jax.Array], Mapping[str, Any]]:
  """A training step and its gradient."""
  num_images = inputs['gt_boxes'].shape[0]

  def loss_fn(params):
    found = decoder.apply(
        {'params': params},
        inputs['features'],
        inputs['gt_boxes'],
        inputs['gt_classes'],
        input_hw=input_hw,
    )
    terms = detection_losses.detection_losses(
        found,
        inputs['gt_boxes'],
        jnp.ones((num_images,)),
        size_ranges=settings['fpn_range'],
    )
    loss = terms.mean(
        heatmap_weight=settings['hm_weight'], box_weight=settings['reg_weight']
    )
    return loss, (terms, found)

  (loss, (terms, found)), grads = jax.jit(
      jax.value_and_grad(loss_fn, has_aux=True)
  )(params)
  sample = found.sample
  scalars = loss_scalars(loss, terms, num_images, sample)
  squares = [jnp.sum(jnp.square(x)) for x in jax.tree.leaves(grads)]
  outputs = {f'loss_{name}': value for name, value in scalars.items()}
  outputs |= {
      'vec_stage0_accuracy_scalar': (
          detection_losses.is_correct(found.roi, sample) / terms.roi_class.count
      ),
      'last_proposals': sample.boxes,
      'match_index': sample.match_index,
      'match_class': sample.match_classes,
      'grad_global_norm': jnp.sqrt(sum(squares)),
  }
  return outputs, grads


RUNNERS = {
    'nms': run_nms,
    'roi_ops': run_roi_ops,
    'feature_pyramid': run_feature_pyramid,
    'box_decoder': run_box_decoder,
}
