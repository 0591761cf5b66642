"""T5 of Hugging Face `transformers`: its names and ours.

Ours are T5X's, below `t5_module`. There linear layers are transposed, and so is
the table of relative positions, which the first layer of a stack owns.

RefA: huggingface/transformers `models/t5/modeling_t5.py` and
`convert_t5x_checkpoint_to_pytorch.py`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pixel_llm.pretrained import name_rules

_Rule = name_rules.Rule

_PROJECTIONS = {'query': 'q', 'key': 'k', 'value': 'v', 'out': 'o'}
# `wi` is the plain MLP of T5 1.0; `wi_0` and `wi_1` are the gated one of 1.1.
_MATRICES = ('wi', 'wi_0', 'wi_1', 'wo')
_SHARED = 'shared.weight'
_LM_HEAD = 'lm_head.weight'
_COPIES = ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight')
# Of each part of a layer: our name, our norm's name, their name.
_PARTS = {
    'encoder': (
        ('attention', 'pre_attention_layer_norm', 'SelfAttention'),
        ('mlp', 'pre_mlp_layer_norm', 'DenseReluDense'),
    ),
    'decoder': (
        ('self_attention', 'pre_self_attention_layer_norm', 'SelfAttention'),
        (
            'encoder_decoder_attention',
            'pre_cross_attention_layer_norm',
            'EncDecAttention',
        ),
        ('mlp', 'pre_mlp_layer_norm', 'DenseReluDense'),
    ),
}


def _rules() -> list[name_rules.Rule]:
  linear = name_rules.LINEAR
  rules = [
      _Rule('token_embedder/embedding', _SHARED),
      _Rule('decoder/logits_dense/kernel', _LM_HEAD, linear),
  ]
  for stack, parts in _PARTS.items():
    rules += [
        _Rule(
            f'{stack}/{stack}_norm/scale', f'{stack}.final_layer_norm.weight'
        ),
        _Rule(
            f'{stack}/relpos_bias/rel_embedding',
            f'{stack}.block.0.layer.0.SelfAttention.relative_attention_bias'
            '.weight',
            linear,
        ),
    ]
    for place, (part, norm, block) in enumerate(parts):
      ours = f'{stack}/layers_{{i}}'
      theirs = f'{stack}.block.{{i}}.layer.{place}'
      children = (
          {name: name for name in _MATRICES} if part == 'mlp' else _PROJECTIONS
      )
      rules.append(_Rule(f'{ours}/{norm}/scale', f'{theirs}.layer_norm.weight'))
      rules += [
          _Rule(
              f'{ours}/{part}/{ours_child}/kernel',
              f'{theirs}.{block}.{child}.weight',
              linear,
          )
          for ours_child, child in children.items()
      ]
  return rules


TABLE = name_rules.Table(
    rules=_rules(),
    left_out=(
        name_rules.LeftOut(
            r'(en|de)coder\.embed_tokens\.weight', 'a copy of shared.weight'
        ),
        name_rules.LeftOut(
            r'decoder\.block\.0\.layer\.1\.EncDecAttention'
            r'\.relative_attention_bias\.weight',
            'old files hold it, no T5 uses it',
        ),
        name_rules.LeftOut(
            _LM_HEAD, 'the output matrix is tied to the token table'
        ),
    ),
)


def is_t5(names: Mapping[str, Any]) -> bool:
  """Tells whether these are the names of a T5 of `transformers`."""
  return _SHARED in names and any('.SelfAttention.' in name for name in names)


def to_ours(
    theirs: Mapping[str, Any], tied: bool | None = None
) -> name_rules.Result:
  """Gives the parameters of a T5 our names.

  Args:
    theirs: arrays, lazy or not, by name.
    tied: whether the output matrix is the token table (T5 1.0); None finds out
      by comparing, if the file holds both.

  Returns:
    The parameters below `t5_module`.

  Raises:
    ValueError: if a stack has a token table of its own.
  """
  for name in _COPIES:
    if name in theirs and not np.array_equal(
        np.asarray(theirs[name]), np.asarray(theirs[_SHARED])
    ):
      raise ValueError(
          f'{name} differs from {_SHARED}; our T5 has one token table.'
      )
  if tied is None:
    tied = _LM_HEAD not in theirs or np.array_equal(
        np.asarray(theirs[_LM_HEAD]), np.asarray(theirs[_SHARED])
    )
  table = TABLE
  if tied:
    rules = [rule for rule in TABLE.rules if rule.theirs != _LM_HEAD]
    table = name_rules.Table(rules, TABLE.left_out)
  return table.to_ours(theirs)
