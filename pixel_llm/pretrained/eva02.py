"""The image tower of EVA02-CLIP: names of timm, of the authors, and ours.

timm's weights, also those on Hugging Face, come alone or as `visual.trunk.` of
an OpenCLIP model; the authors' as `visual.`. Heads that project to CLIP's space
and the text tower are left out.

RefA: huggingface/pytorch-image-models `timm/models/eva.py`; RefB:
baaivision/EVA `EVA-CLIP/rei/eva_clip/eva_vit_model.py`.
"""

from collections.abc import Mapping
from typing import Any

from pixel_llm.pretrained import name_rules

_Rule = name_rules.Rule
_LeftOut = name_rules.LeftOut

PLACE = 'git_backbone'
_PREFIXES = ('visual.trunk.', 'visual.')
_BLOCK = 'blocks.{i}'

# Our name of a linear layer or norm of a block: timm's, the authors'.
_DENSE = {
    'attn/proj': ('attn.proj', 'attn.proj'),
    'mlp/w1': ('mlp.fc1_g', 'mlp.w1'),
    'mlp/w2': ('mlp.fc1_x', 'mlp.w2'),
    'mlp/w3': ('mlp.fc2', 'mlp.w3'),
}
_NORMS = {
    # Only towers with `attention_norm` have it.
    'attn/inner_attn_ln': ('attn.norm', 'attn.inner_attn_ln'),
    'norm1': ('norm1', 'norm1'),
    'norm2': ('norm2', 'norm2'),
    'mlp/ffn_ln': ('mlp.norm', 'mlp.ffn_ln'),
}
# The keys of attention have no bias.
_BIASES = {
    'attn/q_bias': ('attn.q_proj.bias', 'attn.q_bias'),
    'attn/v_bias': ('attn.v_proj.bias', 'attn.v_bias'),
}


def _norm(ours: str, theirs: str) -> list[name_rules.Rule]:
  return [
      _Rule(f'{ours}/scale', f'{theirs}.weight'),
      _Rule(f'{ours}/bias', f'{theirs}.bias'),
  ]


def _table(column: int) -> name_rules.Table:
  rules = [
      _Rule('cls_token', 'cls_token'),
      _Rule('pos_embed', 'pos_embed'),
      _Rule(
          'patch_embed.proj/kernel',
          'patch_embed.proj.weight',
          name_rules.CONVOLUTION,
      ),
      _Rule('patch_embed.proj/bias', 'patch_embed.proj.bias'),
      *_norm('ln_post', 'norm'),
  ]
  for projection in ('q_proj', 'k_proj', 'v_proj'):
    rules.append(
        _Rule(
            f'{_BLOCK}/attn/{projection}/kernel',
            f'{_BLOCK}.attn.{projection}.weight',
            name_rules.LINEAR,
        )
    )
  for ours, theirs in _DENSE.items():
    name = f'{_BLOCK}.{theirs[column]}'
    rules += [
        _Rule(f'{_BLOCK}/{ours}/kernel', f'{name}.weight', name_rules.LINEAR),
        _Rule(f'{_BLOCK}/{ours}/bias', f'{name}.bias'),
    ]
  for ours, theirs in _NORMS.items():
    rules += _norm(f'{_BLOCK}/{ours}', f'{_BLOCK}.{theirs[column]}')
  for ours, theirs in _BIASES.items():
    rules.append(_Rule(f'{_BLOCK}/{ours}', f'{_BLOCK}.{theirs[column]}'))
  return name_rules.Table(
      rules,
      left_out=(
          _LeftOut(r'head\..*', "CLIP's projection; PixelLLM reads the tokens"),
          _LeftOut(r'text\..*|logit_scale', "CLIP's text tower"),
          _LeftOut(r'(blocks\.\d+\.attn\.)?rope\..*', 'computed, no weight'),
      ),
  )


TIMM_TABLE = _table(0)
AUTHORS_TABLE = _table(1)


def is_eva02(names: Mapping[str, Any]) -> bool:
  """Tells whether these are the names of an EVA02 tower, alone or in a CLIP."""
  return any(
      name.endswith(('blocks.0.mlp.fc1_g.weight', 'blocks.0.mlp.w1.weight'))
      for name in names
  )


def to_ours(theirs: Mapping[str, Any]) -> name_rules.Result:
  """Gives the parameters of a tower, alone or in a CLIP, our names.

  Args:
    theirs: arrays, lazy or not, by name.

  Returns:
    The parameters below `git_backbone`.
  """
  arrays, sources = {}, {}
  for name, array in theirs.items():
    prefix = next((p for p in _PREFIXES if name.startswith(p)), '')
    new = name.removeprefix(prefix)
    arrays[new], sources[new] = array, name
  is_timm = any('.mlp.fc1_g.' in name for name in arrays)
  table = TIMM_TABLE if is_timm else AUTHORS_TABLE
  return table.to_ours(arrays).with_sources(sources)
