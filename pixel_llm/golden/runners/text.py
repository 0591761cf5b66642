"""Runs the golden cases of the T5 text head and of decoding."""

from collections.abc import Callable
import dataclasses

import jax.numpy as jnp
import numpy as np

from pixel_llm import beam_search
from pixel_llm import generation
from pixel_llm.golden import case as golden_case
from pixel_llm.modules import decode_cache
from pixel_llm.modules import t5_text_head


def _text_config(settings) -> t5_text_head.T5TextConfig:
  """Takes the settings that are fields of the config."""
  names = {f.name for f in dataclasses.fields(t5_text_head.T5TextConfig)}
  fields = {k: v for k, v in settings.items() if k in names}
  return t5_text_head.T5TextConfig(
      **(fields | {'mlp_activations': tuple(fields['mlp_activations'])})
  )


def run_t5_text_head(case: golden_case.Case) -> dict[str, np.ndarray]:
  """Computes logits and features, with and without context."""
  head = t5_text_head.T5TextHead(_text_config(case.settings))
  inputs = case.inputs
  outputs = {}
  contexts = {'': None, '_context': inputs['context_tokens']}
  for suffix, context_tokens in contexts.items():
    output = head.apply(
        {'params': case.params},
        jnp.asarray(inputs['visual_features']),
        jnp.asarray(inputs['text_tokens']),
        None if context_tokens is None else jnp.asarray(context_tokens),
    )
    outputs[f'out/logits{suffix}'] = np.asarray(output.logits)
    outputs[f'out/features{suffix}'] = np.asarray(output.features)
  return outputs


def run_decoding(case: golden_case.Case) -> dict[str, np.ndarray]:
  """Decodes a table of logits, greedily and with beams."""
  settings = case.settings
  table, position, row_bias = (
      jnp.asarray(case.inputs[k]) for k in ('table', 'position', 'row_bias')
  )

  def step(cache, sequences, index):
    logits = table[sequences[:, :, index]]
    logits += position[index].reshape(1, 1, -1)
    return logits + row_bias[:, None, :], cache

  start = generation.start_tokens(
      settings['batch'], settings['length'], settings['begin'], settings['end']
  )
  cache = decode_cache.DecodeCache(shared=(), beams=())
  greedy = generation.Greedy()(step, cache, start, settings['end'])
  outputs = {
      'out/greedy/tokens': np.asarray(greedy.tokens[:, 0]),
      'out/greedy/log_prob': np.asarray(greedy.scores[:, 0]),
  }
  for beams in settings['beams']:
    for candidates in settings['candidates per beam']:
      for alpha in settings['alpha']:
        search = beam_search.BeamSearch(beams, candidates, alpha)
        found = search(step, cache, start, settings['end'])
        name = f'out/beam{beams}x{candidates}_alpha{alpha}'
        outputs[f'{name}/tokens'] = np.asarray(found.tokens)
        outputs[f'{name}/scores'] = np.asarray(found.scores)
  return outputs


RUNNERS: dict[str, Callable[[golden_case.Case], dict[str, np.ndarray]]] = {
    'decoding': run_decoding,
    't5_text_head': run_t5_text_head,
    't5_text_head_no_lora': run_t5_text_head,
}
