"""Runners of the whole-model cases: stages and decoding, and training steps.

The network is built from the case's settings, so that other sizes need no
change here.
"""

from collections.abc import Callable, Mapping
import re
from typing import Any

import jax
import jax.numpy as jnp

from pixel_llm import beam_search
from pixel_llm import generation
from pixel_llm import geometry
from pixel_llm import inference
from pixel_llm import network
from pixel_llm import rescoring
from pixel_llm.golden import case as case_lib
from pixel_llm.golden.runners import network_settings
from pixel_llm.golden.runners import training_step
from pixel_llm.modules import roi_head

Arrays = dict[str, Any]

# Compiled by stage: the stages are shared by all decodings.
_prepare = jax.jit(inference.prepare, static_argnums=0)
_detect = jax.jit(inference.detect, static_argnums=0)
_describe = jax.jit(inference.describe, static_argnums=0)
_decode_text = jax.jit(inference.decode_text, static_argnums=(0, 3, 4))


def _described(description: inference.Description, boxes_name: str) -> Arrays:
  """Names what `inference.describe` finds as the golden files do."""
  location = description.location
  if location is None:
    return {}
  found = {
      'text_feats': description.text.features,
      'point_coords': location.points,
      'point_logits': location.point_logits,
      'point_valid_mask': location.point_mask,
      boxes_name: location.boxes,
  }
  if description.mask is not None:
    found |= {
        'detection_masks': description.mask.logits[:, :, 0],
        'iou_predictions': description.mask.iou[:, :, 0],
    }
  return found


def _decoder(name: str) -> generation.Decoder:
  """`greedy`, or `beam4x2` for 4 beams of 2 candidates."""
  if name == 'greedy':
    return generation.Greedy()
  num_beams, per_node = re.fullmatch(r'beam(\d+)x(\d+)', name).groups()
  return beam_search.BeamSearch(
      num_beams=int(num_beams), per_node_beam_size=int(per_node)
  )


def _prepared(
    net: network.PixelLLM,
    case: case_lib.Case,
    prepared: inference.Prepared,
    prompt_boxes: jax.Array,
    context_tokens: jax.Array,
) -> Arrays:
  """What the original shows after its preparation pass."""
  num_images, num_prompts = prompt_boxes.shape[:2]
  begin_tokens = network.unfold_prompts(
      generation.start_tokens(
          num_images * num_prompts,
          case.inputs['text_tokens'].shape[2],
          net.begin_token_id,
          net.end_token_id,
      ),
      num_prompts,
  )
  found = {
      'begin_tokens': begin_tokens,
      'context_tokens': context_tokens,
      'box_valid_mask': (prompt_boxes > 0).any(-1)[..., None, None],
      'prompt_point_coords': geometry.boxes_to_points(
          prompt_boxes, net.prompt_points_per_side, cell_centres=False
      ),
      'visual_features': prepared.visual_tokens,
  }
  if net.point_predictor is not None:
    start = _describe(net, case.params, prepared, begin_tokens)
    found |= {
        'point_coords': start.location.points,
        'point_logits': start.location.point_logits,
    }
  if net.has_masks:
    found['sam_image_embeddings'] = prepared.features.sam
  return found


def _decoded(
    net: network.PixelLLM,
    case: case_lib.Case,
    prepared: inference.Prepared,
    prefix: str,
    decoder: generation.Decoder,
    boxes: jax.Array | None = None,
    detections: roi_head.Detections | None = None,
) -> Arrays:
  """One decoding, and what is made of it.

  Args:
    net: the network.
    case: the case.
    prepared: images and prompts.
    prefix: of the arrays' names.
    decoder: writes the texts.
    boxes: of the prompts where they are objects; they stay the final boxes.
    detections: with scores, where the prompts are detections.

  Returns:
    Arrays by full name.
  """
  length = case.inputs['text_tokens'].shape[2]
  texts = _decode_text(net, case.params, prepared, length, decoder)
  found = {
      'beam_text_tokens': texts.tokens,
      'beam_log_probs': texts.scores,
      'text_tokens': texts.tokens[:, :, -1],
      'log_probs': texts.scores[:, :, -1],
  }
  if f'{prefix}final_text_tokens' in case.expected:
    tokens = generation.zero_after_end(found['text_tokens'], net.end_token_id)
    description = _describe(net, case.params, prepared, tokens)
    found['final_text_tokens'] = tokens
    if boxes is None:
      found |= _described(description, 'final_detection_boxes')
    else:
      found['final_detection_boxes'] = boxes
      found |= _described(description, 'point_detection_boxes')
  if f'{prefix}rescored_text_tokens' in case.expected:
    captioned = rescoring.rescore(detections, texts.tokens, texts.scores)
    found |= {
        'rescored_text_tokens': captioned.text_tokens,
        'rescored_num_detections': captioned.detections.mask.sum(-1),
        'rescored_detection_scores': captioned.detections.scores,
        'rescored_detection_boxes': captioned.detections.boxes,
    }
  return {prefix + name: value for name, value in found.items()}


def _decodings(case: case_lib.Case, prefix: str) -> list[str]:
  """Names of the decodings that a case has under a prefix."""
  pattern = re.compile(rf'{prefix}(greedy|beam\d+x\d+)/')
  return sorted({m[1] for m in map(pattern.match, case.expected) if m})


def _infer_given(net: network.PixelLLM, case: case_lib.Case) -> Arrays:
  """Inference on the prompts of the batch, and on its text."""
  batch = training_step.read_batch(case.inputs)
  boxes, context = batch['prompt_boxes'], batch['context_tokens']
  prepared = _prepare(
      net, case.params, batch['image'], batch['image_hw'], boxes, context
  )
  # A network with a box decoder takes the boxes of its prompts as detections.
  is_object = net.box_decoder is not None
  start = 'out/gtprompt_' if is_object else 'out/'
  found = _prepared(net, case, prepared, boxes, context)
  if is_object:
    found |= {
        'detection_boxes': boxes,
        'detection_scores': jnp.ones(boxes.shape[:2]),
    }
  found = {f'{start}prep/{name}': value for name, value in found.items()}
  for name in _decodings(case, start):
    found |= _decoded(
        net,
        case,
        prepared,
        f'{start}{name}/',
        _decoder(name),
        boxes if is_object else None,
    )
  if any(name.startswith('out/gttext/') for name in case.expected):
    description = _describe(net, case.params, prepared, batch['text_tokens'])
    found['out/gttext/text_tokens'] = batch['text_tokens']
    found |= {
        f'out/gttext/{key}': value
        for key, value in _described(description, 'detection_boxes').items()
    }
  return found


def _infer_detections(net: network.PixelLLM, case: case_lib.Case) -> Arrays:
  """Inference on what the box decoder finds."""
  batch = training_step.read_batch(case.inputs)
  prepared, detections = _detect(
      net,
      case.params,
      batch['image'],
      batch['image_hw'],
      batch['context_tokens'],
  )
  num_images, num_detections = detections.boxes.shape[:2]
  context = jnp.broadcast_to(
      batch['context_tokens'][:, :1],
      (num_images, num_detections, batch['context_tokens'].shape[2]),
  )
  found = _prepared(net, case, prepared, detections.boxes, context) | {
      'num_detections': detections.mask.sum(-1),
      'detection_boxes': detections.boxes,
      'detection_scores': detections.scores,
      'detection_classes': detections.classes,
      'prompt_boxes': detections.boxes,
  }
  found = {f'out/prep/{name}': value for name, value in found.items()}
  for name in _decodings(case, 'out/'):
    found |= _decoded(
        net,
        case,
        prepared,
        f'out/{name}/',
        _decoder(name),
        detections.boxes,
        detections,
    )
  return found


def run_whole_model(case: case_lib.Case) -> Arrays:
  """Runs all that a whole-model case holds."""
  net = network_settings.build_network(case.settings)
  found = {}
  if net.box_decoder is not None:
    found |= _infer_detections(net, case)
  if net.box_decoder is None or any(
      name.startswith('out/gtprompt_') for name in case.expected
  ):
    found |= _infer_given(net, case)
  variants = {name.split('/')[0] for name in case.inputs if '/' in name}
  return found | training_step.run_training(net, case, ['', *sorted(variants)])


RUNNERS: Mapping[str, Callable[[case_lib.Case], Arrays]] = {
    'model_trace_bert': run_whole_model,
    'model_trace_t5': run_whole_model,
    'model_refseg_t5': run_whole_model,
    'model_densecap_t5': run_whole_model,
    'model_joint_t5': run_whole_model,
}
