"""Runs the golden cases of the towers, prompts, adapters and the mask decoder.

The figures were made for one image at a time in places; the runner adds the
axis of images where our modules have one.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pixel_llm.golden import case as golden_case
from pixel_llm.modules import eva02_vit
from pixel_llm.modules import mask_adapter
from pixel_llm.modules import point_predictor
from pixel_llm.modules import prompt_adapter
from pixel_llm.modules import sam_image_encoder
from pixel_llm.modules import sam_mask_decoder
from pixel_llm.modules import sam_prompt_encoder
from pixel_llm.modules import sam_two_way_transformer
from pixel_llm.modules import visual_projection

Arrays = dict[str, np.ndarray]


def _arrays(inputs: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
  return {name: jnp.asarray(array) for name, array in inputs.items()}


def _apply(
    module: nn.Module, params: Mapping[str, Any], *inputs: jax.Array, **options
) -> Any:
  """Applies a module, compiled; options such as `method` are not arrays."""
  apply = functools.partial(module.apply, **options)
  return jax.jit(apply)({'params': params}, *inputs)


def _blocks(
    case: golden_case.Case, suffix: str, intermediates: Mapping[str, Any]
) -> Arrays:
  """Names the outputs of the blocks that the case stores for this image."""
  outputs = {}
  for name in case.expected:
    if match := re.fullmatch(rf'out/block(\d+)_{suffix}', name):
      block = intermediates[f'blocks.{match[1]}']['__call__'][0]
      outputs[name] = np.asarray(block)
  return outputs


def _capture(block_cls: type[nn.Module]) -> Callable[[nn.Module, str], bool]:
  return lambda module, _: isinstance(module, block_cls)


def run_eva02_vit(case: golden_case.Case) -> Arrays:
  """Computes tokens of each image, with and without the final norm."""
  settings = case.settings
  tower = eva02_vit.Eva02Vit(
      patch_size=settings['patch_size'],
      embed_dim=settings['embed_dim'],
      depth=settings['depth'],
      num_heads=settings['num_heads'],
      mlp_ratio=settings['mlp_ratio'],
      pretrain_image_size=settings['pretrain_img_size'],
      use_final_norm=settings['use_ln_post'],
      drop_path_rate=settings['drop_path_rate'],
  )
  outputs = {}
  for name, images in _arrays(case.inputs).items():
    suffix = name.removeprefix('image_')
    tokens, state = _apply(
        tower,
        case.params,
        images,
        method='tokens',
        capture_intermediates=_capture(eva02_vit.Block),
    )
    outputs[f'out/features_{suffix}'] = np.asarray(tokens)
    outputs |= _blocks(case, suffix, state['intermediates'])
    bare_name = f'out/features_{suffix}_no_final_norm'
    if bare_name in case.expected:
      params = {k: v for k, v in case.params.items() if k != 'ln_post'}
      tokens = _apply(
          tower.clone(use_final_norm=False), params, images, method='tokens'
      )
      outputs[bare_name] = np.asarray(tokens)
  return outputs


def run_sam_image_encoder(case: golden_case.Case) -> Arrays:
  """Computes the map of each image."""
  settings = case.settings
  windowed = set(settings['window_block_indexes'])
  tower = sam_image_encoder.SamImageEncoder(
      image_size=settings['img_size'],
      patch_size=settings['patch_size'],
      embed_dim=settings['embed_dim'],
      depth=settings['depth'],
      num_heads=settings['num_heads'],
      mlp_ratio=settings['mlp_ratio'],
      output_dim=settings['out_chans'],
      window_size=settings['window_size'],
      global_block_indexes=tuple(
          sorted(set(range(settings['depth'])) - windowed)
      ),
      drop_path_rate=settings['drop_path_rate'],
  )
  outputs = {}
  for name, images in _arrays(case.inputs).items():
    suffix = name.removeprefix('image_')
    features, state = _apply(
        tower,
        case.params,
        images,
        capture_intermediates=_capture(sam_image_encoder.Block),
    )
    outputs[f'out/features_{suffix}'] = np.asarray(features)
    outputs |= _blocks(case, suffix, state['intermediates'])
  return outputs


def run_sam_prompt_encoder(case: golden_case.Case) -> Arrays:
  """Computes embeddings of points, boxes and masks, apart and together."""
  settings = case.settings
  encoder = sam_prompt_encoder.SamPromptEncoder(
      embed_dim=settings['embed_dim'], mask_dim=settings['mask_in_chans']
  ).bind({'params': jax.tree.map(jnp.asarray, dict(case.params))})
  image_hw = tuple(settings['input_image_size'])
  other_hw = tuple(settings['other image size used (height, width)'])
  grid_hw = tuple(settings['image_embedding_size'])
  oblong_hw = case.expected['out/dense_pe_oblong'].shape[:2]
  inputs = _arrays(case.inputs)
  points, labels, boxes = (inputs[k] for k in ('points', 'labels', 'boxes'))
  sizes = {'image_hw': image_hw, 'grid_hw': grid_hw}
  points_sparse, points_dense = encoder(points=points, labels=labels, **sizes)
  both_sparse, _ = encoder(points=points, labels=labels, boxes=boxes, **sizes)
  boxes_sparse, _ = encoder(boxes=boxes, **sizes)
  outputs = {
      'points_padded': encoder.points(points, labels, image_hw, pad=True),
      'points_unpadded': encoder.points(points, labels, image_hw),
      'points_padded_other_image': encoder.points(
          points, labels, other_hw, pad=True
      ),
      'boxes': encoder.boxes(boxes, image_hw),
      'boxes_other_image': encoder.boxes(boxes, other_hw),
      'dense_pe': encoder.dense_pe(*grid_hw),
      'dense_pe_oblong': encoder.dense_pe(*oblong_hw),
      'call_points_sparse': points_sparse,
      'call_points_dense': points_dense,
      'call_points_boxes_sparse': both_sparse,
      'call_boxes_sparse': boxes_sparse,
      'mask_downscaled': encoder.masks(inputs['masks']),
  }
  return {f'out/{k}': np.asarray(v) for k, v in outputs.items()}


def run_sam_two_way_transformer(case: golden_case.Case) -> Arrays:
  """Computes tokens and image."""
  settings = case.settings
  flatten = sam_two_way_transformer.flatten_grid
  inputs = _arrays(case.inputs)
  transformer = sam_two_way_transformer.SamTwoWayTransformer(
      depth=settings['depth'],
      num_heads=settings['num_heads'],
      mlp_dim=settings['mlp_dim'],
      downsample_rate=settings['attention_downsample_rate'],
  )
  tokens, image = _apply(
      transformer,
      case.params,
      inputs['tokens'],
      flatten(inputs['image_embedding']),
      flatten(inputs['image_pe']),
  )
  return {'out/tokens': np.asarray(tokens), 'out/image': np.asarray(image)}


def run_sam_mask_decoder(case: golden_case.Case) -> Arrays:
  """Computes one or several masks, with a dense map or a dense vector."""
  settings = case.settings
  decoder = sam_mask_decoder.SamMaskDecoder(
      num_multimask_outputs=settings['num_multimask_outputs'],
      iou_head_depth=settings['iou head layers'],
      head_hidden_dim=settings[
          'iou_head_hidden_dim (also hidden width of the per-mask MLPs)'
      ],
  )
  inputs = _arrays(case.inputs)
  dense, dense_vector = inputs['dense'][None], inputs['dense_vector'][0]
  modes = {
      'multi': (dense, True),
      'single': (dense, False),
      'single_dense_vector': (dense_vector, False),
  }
  outputs = {}
  for name, (prompt, multimask_output) in modes.items():
    prediction = _apply(
        decoder,
        case.params,
        inputs['image_embedding'][None],
        inputs['image_pe'],
        inputs['sparse'][None],
        prompt,
        multimask_output=multimask_output,
    )
    outputs[f'out/masks_{name}'] = np.asarray(prediction.logits[0])
    outputs[f'out/iou_{name}'] = np.asarray(prediction.iou[0])
  return outputs


def run_prompt_adapter(case: golden_case.Case) -> Arrays:
  """Computes sparse and dense features."""
  settings = case.settings
  inputs = _arrays(case.inputs)
  adapter = prompt_adapter.PromptAdapter(
      depth=settings['depth'],
      transformer_dim=settings['transformer_dim'],
      num_outputs=settings['num_outputs'],
      output_dim=settings['output_dim'],
  )
  features = _apply(
      adapter,
      case.params,
      inputs['image_embedding'][None],
      inputs['image_pe'],
      inputs['sparse'][None],
      inputs['dense_vector'][0],
  )
  return {
      'out/sparse': np.asarray(features.sparse[0]),
      'out/dense': np.asarray(features.dense[0]),
  }


def run_visual_projection(case: golden_case.Case) -> Arrays:
  """Computes projected features."""
  projection = visual_projection.VisualProjection(
      features=case.settings['emb_dim'], use_norm=case.settings['norm']
  )
  features = _apply(
      projection, case.params, jnp.asarray(case.inputs['features'])
  )
  return {'out/features': np.asarray(features)}


def run_point_predictor(case: golden_case.Case) -> Arrays:
  """Computes relative points and logits."""
  settings = case.settings
  predictor = point_predictor.PointPredictor(
      hidden_dim=settings['hidden_dim'],
      depth=settings['depth'],
      num_points=settings['num_output_points'],
      num_classes=settings['num_classes'],
      pre_norm=settings['pre_norm'],
      activation=settings['mlp_activation'],
  )
  prediction = _apply(
      predictor, case.params, jnp.asarray(case.inputs['text_features'])
  )
  return {
      'out/coords': np.asarray(prediction.points_rel),
      'out/logits': np.asarray(prediction.logits),
  }


def run_mask_adapter(case: golden_case.Case) -> Arrays:
  """Computes corrected corner embeddings, with the gate and without."""
  settings = case.settings
  inputs = _arrays(case.inputs)
  outputs = {}
  modes: Sequence[tuple[str, bool]] = (
      ('out/sparse', settings['gating']),
      ('out/sparse_no_gating', False),
  )
  for name, gating in modes:
    params = dict(case.params)
    if not gating:
      params.pop('alpha_output.weight', None)
    adapter = mask_adapter.MaskAdapter(
        depth=settings['depth'],
        transformer_dim=settings['transformer_dim'],
        num_outputs=settings['num_outputs'],
        input_projection=settings['input_projection'],
        gating=gating,
        reads_padding=True,
    )
    sparse = _apply(
        adapter,
        params,
        inputs['sparse'],
        inputs['visual_features'],
        inputs['text_features'],
        np.ones(inputs['text_features'].shape[:3], bool),
    )
    outputs[name] = np.asarray(sparse)
  return outputs


RUNNERS = {
    'eva02_vit': run_eva02_vit,
    'sam_image_encoder': run_sam_image_encoder,
    'sam_prompt_encoder': run_sam_prompt_encoder,
    'sam_two_way_transformer': run_sam_two_way_transformer,
    'sam_mask_decoder': run_sam_mask_decoder,
    'prompt_adapter': run_prompt_adapter,
    'prompt_adapter_same_width': run_prompt_adapter,
    'visual_projection': run_visual_projection,
    'visual_projection_no_norm': run_visual_projection,
    'point_predictor': run_point_predictor,
    'mask_adapter': run_mask_adapter,
}
