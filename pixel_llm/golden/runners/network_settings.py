"""Builds the network that the settings of a whole-model case describe."""

from collections.abc import Mapping
from typing import Any

from pixel_llm import network
from pixel_llm.golden.runners import detection
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


def _point_predictor(
    settings: Mapping[str, Any],
) -> point_predictor.PointPredictor | None:
  """Builds the point head, which dense captioning lacks."""
  if settings['point_predictor_name'] == 'none':
    return None
  points = _group(settings, 'point_predictor_args')
  return point_predictor.PointPredictor(
      hidden_dim=points['hidden_dim'],
      depth=points['depth'],
      num_points=points['num_output_points'],
      pre_norm=points['pre_norm'],
      activation=points['mlp_activation'],
  )


def _optional_parts(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Builds what only some tasks have: masks, the box decoder."""
  parts = {}
  if settings['mask_decoder_name'] != 'none':
    mask = _group(settings, 'mask_adapter_args')
    parts |= {
        'mask_adapter': mask_adapter.MaskAdapter(
            depth=mask['depth'],
            transformer_dim=mask['transformer_dim'],
            gating=mask['gating'],
            reads_padding=True,
        ),
        'mask_decoder': sam_mask_decoder.SamMaskDecoder(),
    }
  if settings.get('box_decoder_name', 'none') != 'none':
    boxes = _group(settings, 'box_decoder_args')
    parts |= {
        'box_decoder': detection.make_box_decoder(
            boxes,
            boxes['fpn_args']['out_channels'],
            boxes['fpn_args']['in_dim'],
            boxes['roi_post_nms_num_detections'],
        ),
        'num_text_proposals': settings['num_text_proposals'],
    }
  return parts


def _feature_fusion(settings: Mapping[str, Any]) -> str:
  """Which maps are read: `git_visual_features+…` becomes `git+…`.

  Raises:
    ValueError: if language model and box decoder read different maps.
  """
  key = settings['text_decoder_feature_key']
  box_key = settings.get('box_decoder_feature_key', key)
  if box_key != key:
    raise ValueError(
        f'text_decoder_feature_key={key!r}, but box_decoder_feature_key='
        f'{box_key!r}; the network has one fused map for both.'
    )
  return key.replace('_visual_features', '')


def build_network(settings: Mapping[str, Any]) -> network.PixelLLM:
  """Builds the network that a case's settings describe."""
  git = _group(settings, 'git_backbone_args')
  sam = _group(settings, 'sam_backbone_args')
  adapter = _group(settings, 'prompt_adapter_args')
  windowed = set(sam['window_block_indexes'])
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
      point_predictor=_point_predictor(settings),
      git_normalizer=image_features.ImageNormalizer(
          size=tuple(settings['git_preprocess_args.image_size'])
      ),
      sam_normalizer=image_features.SamImageNormalizer(
          size=tuple(settings['sam_preprocess_args.image_size'])
      ),
      feature_fusion=_feature_fusion(settings),
      prompt_fusion=settings['prompt_fuse_fn'],
      begin_token_id=settings['begin_token_id'],
      end_token_id=settings['end_token_id'],
      # Without a point head the case has none; then nothing reads it.
      point_output_ignore=settings.get('point_output_ignore', 'begin,end,pad'),
      trace_point_output_ignore=settings.get(
          'trace_point_output_ignore', 'begin,end,pad'
      ),
      prompt_use_box_rate=settings['prompt_use_box_rate'],
      **_optional_parts(settings),
  )
