"""Fits parameters to a model: names, shapes, and the form of its stacks.

All is compared layer by layer, in the unrolled form. What does not fit is told
with the gin setting that decides it, where there is one.
"""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any

from flax import traverse_util

from pixel_llm import layer_layout
from pixel_llm.pretrained import name_rules

# What PixelLLM never uses, unless the model has it all the same.
_NEVER_USED = (
    name_rules.LeftOut(
        r'prompt_encoder/mask_downscaling/.*',
        "SAM's mask prompts; PixelLLM has none",
    ),
)


@dataclasses.dataclass(frozen=True)
class _Setting:
  """The gin setting that decides the size of an axis.

  Attributes:
    pattern: regular expression that matches the whole name.
    settings: what decides each axis; '' for axes that follow from others.
  """

  pattern: str
  settings: tuple[str, ...]


def _of(prefix: str, *names: str) -> tuple[str, ...]:
  return tuple(name and f'{prefix}.{name}' for name in names)


_EVA02 = 'eva02_vit.Eva02Vit'
_SAM = 'sam_image_encoder.SamImageEncoder'
_T5 = 't5_text_head.T5TextConfig'
_BERT = 'bert_text_head.BertTextHead'

_SETTINGS = (
    _Setting(
        'git_backbone/pos_embed',
        _of(_EVA02, '', 'pretrain_image_size', 'embed_dim'),
    ),
    _Setting(
        'git_backbone/patch_embed.proj/kernel',
        _of(_EVA02, 'patch_size', 'patch_size', '', 'embed_dim'),
    ),
    _Setting(
        r'git_backbone/blocks\.\d+/mlp/w[12]/kernel',
        _of(_EVA02, 'embed_dim', 'mlp_ratio'),
    ),
    _Setting(
        'sam_backbone/pos_embed',
        _of(_SAM, '', 'image_size', 'image_size', 'embed_dim'),
    ),
    _Setting(
        'sam_backbone/patch_embed.proj/kernel',
        _of(_SAM, 'patch_size', 'patch_size', '', 'embed_dim'),
    ),
    # Tables of global blocks are as long as the image, others as a window.
    _Setting(
        r'sam_backbone/blocks\.\d+/attn/rel_pos_[hw]',
        (
            f'{_SAM}.image_size, .window_size or .global_block_indexes',
            f'{_SAM}.num_heads',
        ),
    ),
    _Setting(
        r'sam_backbone/blocks\.\d+/mlp/lin1/kernel',
        _of(_SAM, 'embed_dim', 'mlp_ratio'),
    ),
    _Setting(
        'textual/t5_module/token_embedder/embedding',
        _of(_T5, 'vocab_size', 'emb_dim'),
    ),
    _Setting(
        'textual/t5_module/decoder/logits_dense/kernel',
        _of(_T5, 'emb_dim', 'vocab_size'),
    ),
    _Setting(
        r'textual/t5_module/(en|de)coder/layers_\d+/mlp/wi(_\d)?/kernel',
        _of(_T5, 'emb_dim', 'mlp_dim'),
    ),
    _Setting(
        'textual/embedding/words/embedding',
        _of(_BERT, 'vocab_size', 'emb_dim'),
    ),
    _Setting(
        'textual/embedding/positions/embedding',
        _of(_BERT, 'max_length', 'emb_dim'),
    ),
    _Setting('textual/output/kernel', _of(_BERT, 'emb_dim', 'vocab_size')),
)

# The setting for the number of layers, by the start of their names.
_DEPTHS = {
    r'git_backbone/blocks\.': f'{_EVA02}.depth',
    r'sam_backbone/blocks\.': f'{_SAM}.depth',
    r'textual/t5_module/encoder/layers_': f'{_T5}.num_encoder_layers',
    r'textual/t5_module/decoder/layers_': f'{_T5}.num_decoder_layers',
    r'textual/transformer/encoder/layer\.': f'{_BERT}.num_layers',
}

# The setting that gives a model parameters it may lack.
_OPTIONS = {
    r'git_backbone/blocks\.\d+/attn/inner_attn_ln/.*': (
        f'{_EVA02}.attention_norm = True'
    ),
    'textual/t5_module/decoder/logits_dense/kernel': (
        f'{_T5}.logits_via_embedding = False'
    ),
}


@dataclasses.dataclass
class Fit:
  """Parameters and how they fit a model.

  Attributes:
    params: those that the model knows, by full name; in the model's form if
      nothing is wrong.
    left_out: reason by name for those that PixelLLM never uses.
    unknown: what may be done, or '', by name that the model has not.
    wrong: what is wrong, by name that the model has.
    fresh: names of the model for which there is nothing.
  """

  params: dict[str, Any]
  left_out: dict[str, str] = dataclasses.field(default_factory=dict)
  unknown: dict[str, str] = dataclasses.field(default_factory=dict)
  wrong: dict[str, str] = dataclasses.field(default_factory=dict)
  fresh: list[str] = dataclasses.field(default_factory=list)


def fit(params: Mapping[str, Any], target: Mapping[str, Any]) -> Fit:
  """Fits parameters to a model.

  Args:
    params: arrays, lazy or not, by full name; in either form.
    target: shapes of the model's parameters, nested.

  Returns:
    What fits and what does not.

  Raises:
    ValueError: if layers of a scanned stack differ in type.
  """
  wanted = _flat(layer_layout.to_unrolled(target))
  result = Fit({})
  nested = traverse_util.unflatten_dict(dict(params), sep='/')
  for name, array in _flat(layer_layout.to_unrolled(nested)).items():
    if name in wanted:
      result.params[name] = array
      if tuple(array.shape) != tuple(wanted[name].shape):
        result.wrong[name] = _misshapen(name, array.shape, wanted[name].shape)
      continue
    reasons = [x.reason for x in _NEVER_USED if re.fullmatch(x.pattern, name)]
    if reasons:
      result.left_out[name] = reasons[0]
    else:
      result.unknown[name] = _why_unknown(name, target, wanted)
  for name, layers in layer_layout.layer_names(target).items():
    missing = [layer for layer in layers if layer not in result.params]
    if len(missing) == len(layers):
      result.fresh.append(name)
    else:
      # One array holds all layers: a run cannot start some of them fresh.
      for layer in missing:
        result.wrong[layer] = f'MISSING: no source has it for {name}'
  if not result.wrong:
    nested = traverse_util.unflatten_dict(result.params, sep='/')
    result.params = _flat(layer_layout.to_layout_of(nested, target))
  return result


def _flat(tree: Any) -> dict[str, Any]:
  return traverse_util.flatten_dict(tree, sep='/')


def _misshapen(
    name: str, shape: tuple[int, ...], wanted: tuple[int, ...]
) -> str:
  text = f'MISSHAPEN: {tuple(shape)}, the model has {tuple(wanted)}'
  mends = _settings(name, shape, wanted)
  return f'{text}: set {" and ".join(mends)}' if mends else text


def _settings(
    name: str, shape: tuple[int, ...], wanted: tuple[int, ...]
) -> list[str]:
  """Returns what decides the axes that differ."""
  found = {}  # each once, in order
  for row in _SETTINGS:
    if not re.fullmatch(row.pattern, name) or len(shape) != len(wanted):
      continue
    for setting, size, size_wanted in zip(row.settings, shape, wanted):
      if setting and size != size_wanted:
        found[setting] = None
  return list(found)


def _why_unknown(
    name: str, target: Mapping[str, Any], wanted: Mapping[str, Any]
) -> str:
  part = name.split('/')[0]
  if part not in target:
    return (
        f", which has no {part}: leave it out with --allow_unknown '{part}/.*'"
    )
  for pattern, setting in _DEPTHS.items():
    layer = re.match(rf'{pattern}\d+/', name)
    if layer and not any(x.startswith(layer[0]) for x in wanted):
      return f', which has fewer layers: set {setting}'
  for pattern, setting in _OPTIONS.items():
    if re.fullmatch(pattern, name):
      return f': set {setting}'
  return ''
