"""Low-rank adapters of the T5 text head as a file of the `peft` package.

There a layer computes `W x + (alpha / r) · B A x`: `A` is our left matrix and
`B` our right one, each transposed, and `alpha / r` is our scale. Encoder and
decoder may differ in rank and scale, which peft tells by patterns of names.

RefA: LoRA (arXiv 2106.09685); RefB: huggingface/peft
`utils/save_and_load.py`, `tuners/lora/config.py` (the layout of
`adapter_model.safetensors` and `adapter_config.json`).
"""

from collections.abc import Mapping
import re
from typing import Any

import numpy as np

from pixel_llm.modules import lora
from pixel_llm.pretrained import name_rules
from pixel_llm.pretrained import t5_hf

TENSORS_FILE = 'adapter_model.safetensors'
CONFIG_FILE = 'adapter_config.json'

_PREFIX = 'base_model.model.'
_STACKS = ('encoder', 'decoder')
_HALVES = {lora.LEFT: 'lora_A', lora.RIGHT: 'lora_B'}


def _table() -> name_rules.Table:
  """Derives the adapters' names from those of the kernels beside them."""
  rules = [
      name_rules.Rule(
          f'{rule.ours.removesuffix("kernel")}{half}',
          f'{_PREFIX}{rule.theirs.removesuffix("weight")}{theirs}.weight',
          name_rules.LINEAR,
      )
      for rule in t5_hf.TABLE.rules
      if rule.ours.endswith('/kernel') and '{i}' in rule.ours
      for half, theirs in _HALVES.items()
  ]
  return name_rules.Table(rules)


TABLE = _table()


def is_adapter(name: str) -> bool:
  """Tells whether one of our parameters is half of an adapter."""
  return name.endswith(tuple(_HALVES))


def to_peft(
    ours: Mapping[str, Any], scales: Mapping[str, float]
) -> tuple[name_rules.Result, dict[str, Any]]:
  """Turns the adapters of a T5 text head into peft's two files.

  Args:
    ours: arrays, lazy or not, by name below `t5_module`; those that are no
      adapters are passed over.
    scales: scale of the adapters in `encoder` and `decoder`.

  Returns:
    The tensors, and the contents of `adapter_config.json`.

  Raises:
    ValueError: if there are no adapters, or a stack holds several ranks.
  """
  adapters = {name: x for name, x in ours.items() if is_adapter(name)}
  if not adapters:
    raise ValueError('There are no adapters below t5_module: nothing to write.')
  ranks = {}
  for stack in _STACKS:
    found = {
        int(array.shape[1])
        for name, array in adapters.items()
        if name.startswith(f'{stack}/') and name.endswith(lora.LEFT)
    }
    if len(found) > 1:
      raise ValueError(f'The {stack} has adapters of ranks {sorted(found)}.')
    if found:
      ranks[stack] = found.pop()
  result = TABLE.to_theirs(adapters)
  first = next(iter(ranks))
  alphas = {stack: scales[stack] * rank for stack, rank in ranks.items()}
  others = [stack for stack in ranks if stack != first]
  config = {
      'peft_type': 'LORA',
      'task_type': 'SEQ_2_SEQ_LM',
      'r': ranks[first],
      'lora_alpha': alphas[first],
      'rank_pattern': {rf'{s}\..*': ranks[s] for s in others},
      'alpha_pattern': {rf'{s}\..*': alphas[s] for s in others},
      'target_modules': sorted(
          {_module_of(one.name) for one in result.renamed}
      ),
      'lora_dropout': 0.0,
      'bias': 'none',
      'fan_in_fan_out': False,
      'inference_mode': True,
      'base_model_name_or_path': None,
  }
  return result, config


def _module_of(tensor: str) -> str:
  """Returns the layer that a tensor adapts: `encoder.block.0.….q`."""
  return re.sub(r'\.lora_[AB]\.weight$', '', tensor).removeprefix(_PREFIX)


def to_ours(
    tensors: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[name_rules.Result, dict[str, float]]:
  """Turns peft's two files into adapters of a T5 text head.

  Args:
    tensors: arrays, lazy or not, of `adapter_model.safetensors`.
    config: the contents of `adapter_config.json`.

  Returns:
    The parameters below `t5_module`, and the scale that the text head must have
    for `encoder` and `decoder` (`T5TextConfig.encoder_lora_scale` …).

  Raises:
    ValueError: if the file is of another kind of adapter, or the scale differs
      within a stack.
  """
  _check_supported(config)
  result = TABLE.to_ours(tensors)
  scales: dict[str, float] = {}
  for one in result.renamed:
    if not one.name.endswith(lora.LEFT):
      continue
    stack = one.name.partition('/')[0]
    module = _module_of(one.source)
    rank = _by_pattern(module, config.get('rank_pattern'), config['r'])
    if one.array.shape[1] != rank:
      raise ValueError(
          f'{one.source} has rank {one.array.shape[1]}, {CONFIG_FILE} says'
          f' {rank}.'
      )
    alpha = _by_pattern(
        module, config.get('alpha_pattern'), config['lora_alpha']
    )
    # Rank-stabilised LoRA divides by the root.
    scale = alpha / (np.sqrt(rank) if config.get('use_rslora') else rank)
    if scales.setdefault(stack, float(scale)) != scale:
      raise ValueError(
          f'{module} has the scale {scale}, other adapters of the {stack}'
          f' {scales[stack]}; the text head has one scale a stack.'
      )
  return result, scales


def _check_supported(config: Mapping[str, Any]) -> None:
  wanted = {
      'peft_type': 'LORA',
      'bias': 'none',
      'use_dora': False,
      'fan_in_fan_out': False,
  }
  other = {
      key: config[key]
      for key, value in wanted.items()
      if config.get(key, value) != value
  }
  if other:
    raise ValueError(
        f'{CONFIG_FILE} says {other}; only plain LoRA without biases is read'
        f' ({wanted}).'
    )


def _by_pattern(module: str, patterns: Mapping[str, Any] | None, default):
  """Returns what the first pattern says that matches the module's name."""
  for pattern, value in (patterns or {}).items():
    if re.match(rf'(.*\.)?({pattern})$', module):
      return value
  return default
