"""SAM's three networks: names of Meta's `.pth`, of Hugging Face, and ours.

Ours are Meta's with another spelling, since our network keeps the original's
names: its image encoder is `sam_backbone`. Hugging Face names some differently,
and holds the matrix of position encodings twice.

RefA: facebookresearch/segment-anything `modeling/`; RefB: huggingface/
transformers `models/sam/modeling_sam.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pixel_llm.pretrained import name_rules

_Rule = name_rules.Rule
# Our name, Meta's, Hugging Face's.
_Row = tuple[str, str, str]
_MakeRules = Callable[[str, str], list[name_rules.Rule]]

_META_MATRIX = 'prompt_encoder.pe_layer.positional_encoding_gaussian_matrix'
_HF_MATRIX = 'shared_image_embedding.positional_embedding'
_HF_MATRIX_COPY = 'prompt_encoder.shared_embedding.positional_embedding'


def _raw(ours: str, theirs: str) -> list[name_rules.Rule]:
  return [_Rule(ours, theirs)]


def _norm(ours: str, theirs: str) -> list[name_rules.Rule]:
  return [
      _Rule(f'{ours}/scale', f'{theirs}.weight'),
      _Rule(f'{ours}/bias', f'{theirs}.bias'),
  ]


def _dense(ours: str, theirs: str) -> list[name_rules.Rule]:
  return [
      _Rule(f'{ours}/kernel', f'{theirs}.weight', name_rules.LINEAR),
      _Rule(f'{ours}/bias', f'{theirs}.bias'),
  ]


def _convolution(ours: str, theirs: str) -> list[name_rules.Rule]:
  # A transposed convolution is (in, out, height, width) there and (height,
  # width, out, in) here, so the same order serves it.
  return [
      _Rule(f'{ours}/kernel', f'{theirs}.weight', name_rules.CONVOLUTION),
      _Rule(f'{ours}/bias', f'{theirs}.bias'),
  ]


def _image_encoder() -> list[tuple[_MakeRules, _Row]]:
  ours, meta, hf = 'sam_backbone', 'image_encoder', 'vision_encoder'
  rows = [
      (_raw, (f'{ours}/pos_embed', f'{meta}.pos_embed', f'{hf}.pos_embed')),
      (
          _convolution,
          (
              f'{ours}/patch_embed.proj',
              f'{meta}.patch_embed.proj',
              f'{hf}.patch_embed.projection',
          ),
      ),
  ]
  for place, make, child in (
      (0, _convolution, 'conv1'),
      (1, _norm, 'layer_norm1'),
      (2, _convolution, 'conv2'),
      (3, _norm, 'layer_norm2'),
  ):
    rows.append(
        (
            make,
            (
                f'{ours}/neck/{place}',
                f'{meta}.neck.{place}',
                f'{hf}.neck.{child}',
            ),
        )
    )
  for make, part, hf_part in (
      (_norm, 'norm1', 'layer_norm1'),
      (_norm, 'norm2', 'layer_norm2'),
      (_dense, 'attn.qkv', 'attn.qkv'),
      (_dense, 'attn.proj', 'attn.proj'),
      (_dense, 'mlp.lin1', 'mlp.lin1'),
      (_dense, 'mlp.lin2', 'mlp.lin2'),
      (_raw, 'attn.rel_pos_h', 'attn.rel_pos_h'),
      (_raw, 'attn.rel_pos_w', 'attn.rel_pos_w'),
  ):
    rows.append(
        (
            make,
            (
                f'{ours}/blocks.{{i}}/{part.replace(".", "/")}',
                f'{meta}.blocks.{{i}}.{part}',
                f'{hf}.layers.{{i}}.{hf_part}',
            ),
        )
    )
  return rows


def _prompt_encoder() -> list[tuple[_MakeRules, _Row]]:
  ours = meta = hf = 'prompt_encoder'
  rows = [
      (
          _raw,
          (
              f'{ours}/pe_layer/positional_encoding_gaussian_matrix',
              _META_MATRIX,
              _HF_MATRIX,
          ),
      ),
      (
          _raw,
          (
              f'{ours}/point_embeddings.{{i}}.weight',
              f'{meta}.point_embeddings.{{i}}.weight',
              f'{hf}.point_embed.{{i}}.weight',
          ),
      ),
  ]
  for name in ('no_mask_embed.weight', 'not_a_point_embed.weight'):
    rows.append((_raw, (f'{ours}/{name}', f'{meta}.{name}', f'{hf}.{name}')))
  for place, make, child in (
      (0, _convolution, 'conv1'),
      (1, _norm, 'layer_norm1'),
      (3, _convolution, 'conv2'),
      (4, _norm, 'layer_norm2'),
      (6, _convolution, 'conv3'),
  ):
    rows.append(
        (
            make,
            (
                f'{ours}/mask_downscaling/{place}',
                f'{meta}.mask_downscaling.{place}',
                f'{hf}.mask_embed.{child}',
            ),
        )
    )
  return rows


def _mask_decoder() -> list[tuple[_MakeRules, _Row]]:
  name = 'mask_decoder'
  rows = [
      (_raw, (f'{name}/{token}', f'{name}.{token}', f'{name}.{token}'))
      for token in ('iou_token.weight', 'mask_tokens.weight')
  ]
  for place, make, child in (
      (0, _convolution, 'upscale_conv1'),
      (1, _norm, 'upscale_layer_norm'),
      (3, _convolution, 'upscale_conv2'),
  ):
    rows.append(
        (
            make,
            (
                f'{name}/output_upscaling/{place}',
                f'{name}.output_upscaling.{place}',
                f'{name}.{child}',
            ),
        )
    )
  for place, child in enumerate(('proj_in', 'layers.0', 'proj_out')):
    for mlp in ('output_hypernetworks_mlps.{i}', 'iou_prediction_head'):
      rows.append(
          (
              _dense,
              (
                  f'{name}/{mlp}/layers.{place}',
                  f'{name}.{mlp}.layers.{place}',
                  f'{name}.{mlp}.{child}',
              ),
          )
      )
  stack = 'transformer'
  blocks = ['final_attn_token_to_image'] + [
      f'layers.{{i}}/{block}'
      for block in (
          'self_attn',
          'cross_attn_token_to_image',
          'cross_attn_image_to_token',
      )
  ]
  dense = [
      f'{block}/{projection}_proj'
      for block in blocks
      for projection in ('q', 'k', 'v', 'out')
  ] + ['layers.{i}/mlp/lin1', 'layers.{i}/mlp/lin2']
  for part in dense:
    theirs = f'{name}.{stack}.{part.replace("/", ".")}'
    rows.append((_dense, (f'{name}/{stack}/{part}', theirs, theirs)))
  norms = {f'layers.{{i}}/norm{n}': f'layer_norm{n}' for n in (1, 2, 3, 4)}
  norms['norm_final_attn'] = 'layer_norm_final_attn'
  for part, child in norms.items():
    theirs = f'{name}.{stack}.{part.replace("/", ".")}'
    parent = theirs.rpartition('.')[0]
    rows.append(
        (_norm, (f'{name}/{stack}/{part}', theirs, f'{parent}.{child}'))
    )
  return rows


def _table(column: int, left_out: Sequence[name_rules.LeftOut] = ()):
  rows = [*_image_encoder(), *_prompt_encoder(), *_mask_decoder()]
  rules = []
  for make, names in rows:
    rules += make(names[0], names[column])
  return name_rules.Table(rules, left_out)


META_TABLE = _table(1)
HF_TABLE = _table(
    2,
    left_out=[
        name_rules.LeftOut(
            _HF_MATRIX_COPY.replace('.', r'\.'), f'a copy of {_HF_MATRIX}'
        )
    ],
)


def is_meta(names: Mapping[str, Any]) -> bool:
  """Tells whether these are the names of Meta's SAM."""
  return 'image_encoder.pos_embed' in names or _META_MATRIX in names


def is_hf(names: Mapping[str, Any]) -> bool:
  """Tells whether these are the names of a SAM of `transformers`."""
  return _HF_MATRIX in names or _HF_MATRIX_COPY in names


def hf_to_ours(theirs: Mapping[str, Any]) -> name_rules.Result:
  """Gives the parameters of a SAM of `transformers` our names.

  Args:
    theirs: arrays, lazy or not, by name.

  Returns:
    The parameters by full name.

  Raises:
    ValueError: if the two matrices of position encodings differ.
  """
  sources = {name: name for name in theirs}
  arrays = dict(theirs)
  if _HF_MATRIX not in arrays:
    # A file holds tied arrays once, under either name.
    arrays[_HF_MATRIX] = arrays.pop(_HF_MATRIX_COPY)
    sources[_HF_MATRIX] = _HF_MATRIX_COPY
  elif _HF_MATRIX_COPY in arrays and not np.array_equal(
      np.asarray(arrays[_HF_MATRIX]), np.asarray(arrays[_HF_MATRIX_COPY])
  ):
    raise ValueError(
        f'{_HF_MATRIX_COPY} differs from {_HF_MATRIX}; our SAM has one.'
    )
  return HF_TABLE.to_ours(arrays).with_sources(sources)
