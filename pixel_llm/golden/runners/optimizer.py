"""Runs the golden case of the optimizer: rates, updates, freezing."""

from collections.abc import Callable
import re

import jax
import numpy as np

from pixel_llm import param_groups
from pixel_llm import schedules
from pixel_llm.golden import case as golden_case
from t5x import param_patterns

# The recipes' rules, which the case gives in words.
_FROZEN = {
    'trace': (
        'sam_backbone',
        'prompt_encoder',
        'mask_decoder',
        't5_module/(?!.*lora)',
    ),
    'refseg': (
        'sam_backbone',
        'prompt_encoder',
        'mask_decoder',
        'git_backbone',
        'prompt_adapter',
        'textual/',
        'visual_project_layers/',
    ),
}


def _tree(case: golden_case.Case, group: str) -> dict[str, np.ndarray]:
  """Takes the arrays of a group, keyed by parameter name."""
  prefix = f'{group}/'
  return {
      name.removeprefix(prefix): array
      for name, array in case.inputs.items()
      if name.startswith(prefix)
  }


def _layer_decay(settings) -> param_groups.LayerDecay:
  """Reads the settings of the layer-wise rates."""
  stems, _, _ = settings['stem names'].partition(' (')
  return param_groups.LayerDecay(
      num_layers=settings['transformer layers'],
      rate=settings['layerwise decay'],
      block_prefix=re.escape(settings['block prefix']),
      stems=tuple(stems.split(', ')),
  )


def _updates(
    case: golden_case.Case, optimizer: param_groups.ParamGroupOptimizer
) -> list[dict[str, jax.Array]]:
  """Applies the case's gradients; the updates are taken out of the step.

  The transformation is asked instead of the new parameters: a difference of
  parameters has lost the digits of a small update.
  """
  params = golden_case.nest(_tree(case, 'params'))
  state = optimizer.init_state(params).param_states
  updates = []
  groups = {name.split('/')[0] for name in case.inputs}
  num_updates = sum(name.startswith('grads') for name in groups)
  for i in range(num_updates):
    grads = golden_case.nest(_tree(case, f'grads{i}'))
    update, state = optimizer.optax_optimizer.update(grads, state, params)
    params = jax.tree.map(lambda p, u: p + u, params, update)
    names = param_patterns.param_names(update)
    updates.append(dict(zip(names, jax.tree.leaves(update))))
  return updates


def _frozen(names: list[str], rule: str) -> np.ndarray:
  """Flags the names that a recipe freezes."""
  # The case's names are a selection: some parts of the model are missing.
  present = [
      pattern
      for pattern in _FROZEN[rule]
      if any(re.search(pattern, name) for name in names)
  ]
  frozen = param_patterns.match(names, present, f'frozen, {rule}')
  return np.array([name in frozen for name in names], np.uint8)


def run_optimizer(case: golden_case.Case) -> dict[str, np.ndarray]:
  """Computes rates, updates of four recipes, layers and frozen names."""
  settings = case.settings
  rate = schedules.warmup_cosine(
      settings['base rate'],
      settings['cycle'],
      settings['warm-up'],
      restart=True,
  )
  decay = float(settings['weight decay'].partition(' ')[0])
  layer_decay = _layer_decay(settings)
  multiplier, _, words = settings['multiplier'].partition(' ')
  prefix = words.split()[-1]
  variants = {
      'plain_wd': {'weight_decay': decay},
      'plain_no_wd': {},
      'layerwise': {'weight_decay': decay, 'layer_decay': layer_decay},
      'backbone_multiplier': {
          'weight_decay': decay,
          'lr_multipliers': ((f'^{prefix}', float(multiplier)),),
      },
  }
  steps = case.inputs['steps']
  outputs = {'out/lr': np.array([rate(int(s)) for s in steps], np.float32)}
  for variant, options in variants.items():
    optimizer = param_groups.ParamGroupOptimizer(rate, **options)
    for i, update in enumerate(_updates(case, optimizer)):
      for name, value in update.items():
        outputs[f'out/{variant}/update{i}/{name}'] = np.asarray(value)
  names = settings['names (sorted)']
  params = golden_case.nest(_tree(case, 'params'))
  rows = param_groups.ParamGroupOptimizer(
      rate, weight_decay=decay, layer_decay=layer_decay
  ).table(params)
  by_name = {row.name: row for row in rows}
  outputs['out/layer_id'] = np.array(
      [layer_decay.layer_id(name) for name in names]
  )
  outputs['out/layer_scale'] = np.array(
      [by_name[name].lr_factor for name in names]
  )
  outputs['out/decayed'] = np.array([by_name[name].decays for name in names])
  for rule in _FROZEN:
    outputs[f'out/frozen_{rule}'] = _frozen(
        settings['names for freezing (sorted)'], rule
    )
  return outputs


RUNNERS: dict[str, Callable[[golden_case.Case], dict[str, np.ndarray]]] = {
    'optimizer': run_optimizer,
}
