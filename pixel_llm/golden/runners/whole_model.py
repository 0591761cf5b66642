"""Runners of the whole-model cases: stages, decoding, losses and gradients.

The network is built from the case's settings, so that other sizes need no
change here.
"""

from collections.abc import Callable, Mapping
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pixel_llm import beam_search
from pixel_llm import generation
from pixel_llm import geometry
from pixel_llm import inference
from pixel_llm import losses
from pixel_llm import network
from pixel_llm import stages
from pixel_llm.golden import case as case_lib
from pixel_llm.modules import bert_text_head
from pixel_llm.modules import eva02_vit
from pixel_llm.modules import image_features
from pixel_llm.modules import mask_adapter
from pixel_llm.modules import point_predictor
from pixel_llm.modules import prompt_adapter
from pixel_llm.modules import sam_image_encoder
from pixel_llm.modules import sam_mask_decoder
from pixel_llm.modules import sam_prompt_encoder
from pixel_llm.modules import t5_text_head
from pixel_llm.modules import text_head
from pixel_llm.modules import visual_projection

Arrays = dict[str, Any]
# RefA of the case: the same for all of them.
_LABEL_SMOOTHING = 0.1


def _group(settings: Mapping[str, Any], prefix: str) -> dict[str, Any]:
  """Settings below a dotted prefix, which is taken off."""
  prefix += '.'
  return {
      key[len(prefix) :]: value
      for key, value in settings.items()
      if key.startswith(prefix)
  }


def _text_head(settings: Mapping[str, Any]) -> text_head.TextHead:
  """Builds the language model: `git` is the BERT head, else T5."""
  if settings['text_decoder_name'] == 'git':
    bert = _group(settings, 'text_decoder_args')
    return bert_text_head.BertTextHead(
        vocab_size=settings['vocab_size'],
        emb_dim=bert['hidden_size'],
        num_heads=bert['num_heads'],
        num_layers=bert['num_hidden_layers'],
        # BERT's MLPs are four times as wide as the layers.
        mlp_dim=4 * bert['hidden_size'],
        max_length=bert['max_caption_length'],
    )
  t5 = _group(settings, 't5 size')
  t5['mlp_activations'] = tuple(t5['mlp_activations'])
  return t5_text_head.T5TextHead(t5_text_head.T5TextConfig(**t5))


def _visual_projection(
    settings: Mapping[str, Any],
) -> visual_projection.VisualProjection | None:
  """Builds the projection; the BERT head has its own."""
  if settings['visual_project_layers_name'] == 'none':
    return None
  return visual_projection.VisualProjection(
      features=settings['visual_project_layers_args.emb_dim']
  )


def build_network(settings: Mapping[str, Any]) -> network.PixelLLM:
  """Builds the network that a case's settings describe."""
  git = _group(settings, 'git_backbone_args')
  sam = _group(settings, 'sam_backbone_args')
  adapter = _group(settings, 'prompt_adapter_args')
  points = _group(settings, 'point_predictor_args')
  windowed = set(sam['window_block_indexes'])
  masks = {}
  if settings['mask_decoder_name'] != 'none':
    mask = _group(settings, 'mask_adapter_args')
    masks = {
        'mask_adapter': mask_adapter.MaskAdapter(
            depth=mask['depth'],
            transformer_dim=mask['transformer_dim'],
            gating=mask['gating'],
        ),
        'mask_decoder': sam_mask_decoder.SamMaskDecoder(),
    }
  return network.PixelLLM(
      git_backbone=eva02_vit.Eva02Vit(
          patch_size=git['patch_size'],
          embed_dim=git['embed_dim'],
          depth=git['depth'],
          num_heads=git['num_heads'],
          mlp_ratio=git['mlp_ratio'],
          pretrain_image_size=git['pretrain_img_size'],
          use_final_norm=git['use_ln_post'],
          drop_path_rate=git['drop_path_rate'],
      ),
      sam_backbone=sam_image_encoder.SamImageEncoder(
          image_size=sam['img_size'],
          patch_size=sam['patch_size'],
          embed_dim=sam['embed_dim'],
          depth=sam['depth'],
          num_heads=sam['num_heads'],
          mlp_ratio=sam['mlp_ratio'],
          output_dim=sam['out_chans'],
          window_size=sam['window_size'],
          global_block_indexes=tuple(
              i for i in range(sam['depth']) if i not in windowed
          ),
      ),
      prompt_encoder=sam_prompt_encoder.SamPromptEncoder(
          embed_dim=settings['prompt_encoder_args.embed_dim']
      ),
      prompt_adapter=prompt_adapter.PromptAdapter(
          depth=adapter['depth'],
          transformer_dim=adapter['transformer_dim'],
          num_outputs=adapter['num_outputs'],
          output_dim=adapter['output_dim'],
      ),
      visual_project_layers=_visual_projection(settings),
      textual=_text_head(settings),
      point_predictor=point_predictor.PointPredictor(
          hidden_dim=points['hidden_dim'],
          depth=points['depth'],
          num_points=points['num_output_points'],
          pre_norm=points['pre_norm'],
          activation=points['mlp_activation'],
      ),
      git_normalizer=image_features.ImageNormalizer(
          size=tuple(settings['git_preprocess_args.image_size'])
      ),
      sam_normalizer=image_features.SamImageNormalizer(
          size=tuple(settings['sam_preprocess_args.image_size'])
      ),
      begin_token_id=settings['begin_token_id'],
      end_token_id=settings['end_token_id'],
      point_output_ignore=settings['point_output_ignore'],
      trace_point_output_ignore=settings.get(
          'trace_point_output_ignore', 'begin,end,pad'
      ),
      prompt_use_box_rate=settings['prompt_use_box_rate'],
      **masks,
  )


def _read_batch(inputs: Mapping[str, np.ndarray], variant: str = '') -> Arrays:
  """Names a case's inputs as the product does; a variant replaces some."""
  arrays = {k: v for k, v in inputs.items() if '/' not in k}
  if variant:
    prefix = f'{variant}/'
    arrays |= {
        k[len(prefix) :]: v for k, v in inputs.items() if k.startswith(prefix)
    }
  prompt_mask = arrays['labels'] > 0
  batch = {
      'image': arrays['inputs'],
      'image_hw': geometry.image_hw_from_mask(arrays['padding_mask']),
      'prompt_boxes': arrays['prompt_boxes'],
      'context_tokens': arrays['context_tokens'],
      'text_tokens': arrays['text_tokens'],
      'prompt_mask': prompt_mask,
      'valid_mask': arrays['padding_mask'],
      'caption_flag': arrays['cap_loss_valid_mask'].astype(np.float32),
      'point_flag': arrays['point_loss_valid_mask'].astype(np.float32),
  }
  if 'boxes' in arrays:
    batch['boxes'] = arrays['boxes']
  if 'points' in arrays:
    batch['points'] = arrays['points']
  if 'masks' in arrays:
    batch['masks'] = arrays['masks'][..., 0] > 0
  return batch


def _forward(net: network.PixelLLM, params, batch: Arrays) -> stages.Outputs:
  return net.apply(
      {'params': params},
      batch['image'],
      batch['image_hw'],
      batch['prompt_boxes'],
      batch['context_tokens'],
      batch['text_tokens'],
  )


def _original_losses(
    net: network.PixelLLM,
    settings: Mapping[str, Any],
    outputs: stages.Outputs,
    batch: Arrays,
) -> tuple[Arrays, stages.PointTargets]:
  """The original's losses: a flag scales its loss by the batch mean.

  The product weighs per example instead (QUIRKS, mend 6); both agree on
  batches of one task, which `tests/pixel_llm/test_models.py` shows.
  """
  prompt_weights = batch['prompt_mask'].astype(np.float32)
  num_points = outputs.location.points.shape[3]
  shape = (*batch['text_tokens'].shape, num_points, 2)
  targets = net.point_targets(
      batch['text_tokens'],
      batch.get('points', np.zeros(shape, np.float32)),
      batch.get('boxes', np.zeros((*shape[:2], 4), np.float32)),
  )
  text = losses.text_loss(
      outputs.text.logits,
      batch['text_tokens'],
      prompt_weights,
      label_smoothing=_LABEL_SMOOTHING,
      end_id=net.end_token_id,
  ).mean()
  point = losses.point_loss(
      outputs.location.points,
      targets.points,
      targets.mask * prompt_weights[..., None],
      kind=settings['point_loss_type'],
  ).mean()
  terms = {
      'text_loss': text,
      'text_loss_scaled': text * batch['caption_flag'].mean(),
      'point_loss': point,
      'point_loss_scaled': (
          point * settings['point_loss_weight'] * batch['point_flag'].mean()
      ),
  }
  if outputs.mask is not None:
    mask = losses.mask_loss(
        outputs.mask.logits,
        outputs.mask.iou,
        batch['masks'],
        batch['valid_mask'] > 0,
        prompt_weights,
    )
    terms |= {
        'mask_focal_loss': mask.focal.mean(),
        'mask_dice_loss': mask.dice.mean(),
        'mask_iou_pred_loss': mask.iou.mean(),
        'mask_loss': mask.sum().mean(),
        'mask_loss_scaled': mask.sum().mean() * settings['mask_loss_weight'],
    }
  terms['total_loss'] = sum(
      value for name, value in terms.items() if name.endswith('_scaled')
  )
  return terms, targets


def _flatten(tree: Mapping[str, Any], prefix: str = '') -> Arrays:
  flat = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      flat |= _flatten(value, f'{prefix}{key}/')
    else:
      flat[prefix + key] = value
  return flat


def _training(
    net: network.PixelLLM, case: case_lib.Case, variant: str
) -> Arrays:
  """Losses, gradients and predictions of one training batch."""
  batch = _read_batch(case.inputs, variant)

  def total_loss(params):
    outputs = _forward(net, params, batch)
    terms, targets = _original_losses(net, case.settings, outputs, batch)
    return terms['total_loss'], (terms, outputs, targets)

  (_, (terms, outputs, targets)), gradients = jax.jit(
      jax.value_and_grad(total_loss, has_aux=True)
  )(case.params)
  norms = {
      name: jnp.linalg.norm(value.ravel())
      for name, value in _flatten(gradients).items()
  }
  norm_per_param = jnp.stack([norms[name] for name in sorted(norms)])
  suffix = f'_{variant}' if variant else ''
  found = {f'out/loss{suffix}/{name}': value for name, value in terms.items()}
  found |= {
      f'out/loss{suffix}/grad_norm_per_param': norm_per_param,
      f'out/loss{suffix}/grad_global_norm': jnp.linalg.norm(norm_per_param),
      f'out/train{suffix}/point_coords': outputs.location.points,
      f'out/train{suffix}/point_valid_mask': outputs.location.point_mask,
  }
  if outputs.mask is not None:
    found |= {
        f'out/train{suffix}/detection_boxes': outputs.location.boxes,
        f'out/train{suffix}/detection_masks': outputs.mask.logits,
        f'out/train{suffix}/iou_predictions': outputs.mask.iou,
        f'out/train{suffix}/gt_point_coords': targets.points,
    }
  middle = f'{variant}/' if variant else ''
  wanted = re.compile(rf'grad/{middle}(?!mixed/)(.+)')
  for name in case.expected:
    match = wanted.fullmatch(name)
    if match and match[1] in norms:
      found[name] = _flatten(gradients)[match[1]]
  return found


def _described(description: inference.Description, boxes_name: str) -> Arrays:
  """Names what `inference.describe` finds as the golden files do."""
  location = description.location
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


def _inference(net: network.PixelLLM, case: case_lib.Case) -> Arrays:
  """Preparation, every decoding that the case names, and the given text."""
  batch = _read_batch(case.inputs)
  params = case.params
  # Compiled by stage: the stages are shared by all decodings.
  prepare = jax.jit(inference.prepare, static_argnums=0)
  describe = jax.jit(inference.describe, static_argnums=0)
  decode_text = jax.jit(inference.decode_text, static_argnums=(0, 3, 4))
  prepared = prepare(
      net,
      params,
      batch['image'],
      batch['image_hw'],
      batch['prompt_boxes'],
      batch['context_tokens'],
  )
  num_images, num_prompts, length = batch['text_tokens'].shape
  begin_tokens = network.unfold_prompts(
      generation.start_tokens(
          num_images * num_prompts,
          length,
          net.begin_token_id,
          net.end_token_id,
      ),
      num_prompts,
  )
  start = describe(net, params, prepared, begin_tokens)
  found = {
      'out/prep/begin_tokens': begin_tokens,
      'out/prep/context_tokens': batch['context_tokens'],
      'out/prep/box_valid_mask': (batch['prompt_boxes'] > 0).any(-1)[
          ..., None, None
      ],
      'out/prep/prompt_point_coords': geometry.boxes_to_points(
          batch['prompt_boxes'],
          net.prompt_points_per_side,
          cell_centres=False,
      ),
      'out/prep/point_coords': start.location.points,
      'out/prep/point_logits': start.location.point_logits,
      'out/prep/visual_features': prepared.visual_tokens,
  }
  if net.has_masks:
    found['out/prep/sam_image_embeddings'] = prepared.features.sam

  decodings = {
      name.split('/')[1]
      for name in case.expected
      if re.match(r'out/(greedy|beam\d+x\d+)/', name)
  }
  for name in sorted(decodings):
    texts = decode_text(net, params, prepared, length, _decoder(name))
    prefix = f'out/{name}/'
    found |= {
        prefix + 'beam_text_tokens': texts.tokens,
        prefix + 'beam_log_probs': texts.scores,
        prefix + 'text_tokens': texts.tokens[:, :, -1],
        prefix + 'log_probs': texts.scores[:, :, -1],
    }
    if prefix + 'final_text_tokens' in case.expected:
      tokens = generation.zero_after_end(
          texts.tokens[:, :, -1], net.end_token_id
      )
      description = describe(net, params, prepared, tokens)
      found[prefix + 'final_text_tokens'] = tokens
      found |= {
          prefix + key: value
          for key, value in _described(
              description, 'final_detection_boxes'
          ).items()
      }
  if any(name.startswith('out/gttext/') for name in case.expected):
    description = describe(net, params, prepared, batch['text_tokens'])
    found['out/gttext/text_tokens'] = batch['text_tokens']
    found |= {
        f'out/gttext/{key}': value
        for key, value in _described(description, 'detection_boxes').items()
    }
  return found


def run_without_detector(case: case_lib.Case) -> Arrays:
  """Runs a whole-model case that has no box decoder."""
  net = build_network(case.settings)
  variants = sorted({name.split('/')[0] for name in case.inputs if '/' in name})
  found = _inference(net, case)
  for variant in ['', *variants]:
    found |= _training(net, case, variant)
  return found


RUNNERS: Mapping[str, Callable[[case_lib.Case], Arrays]] = {
    'model_trace_bert': run_without_detector,
    'model_trace_t5': run_without_detector,
    'model_refseg_t5': run_without_detector,
}
