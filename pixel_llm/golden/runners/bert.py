"""Runs the golden case of the BERT text head."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from pixel_llm.golden import case as golden_case
from pixel_llm.modules import bert_text_head

# The last layer's output, with the embeddings or with the first layer's.
_FUSIONS = {'sum': 'sum:0,-1', 'concat': 'concat:1,-1'}


def run_bert_text_head(case: golden_case.Case) -> dict[str, np.ndarray]:
  """Computes logits and features, with and without context, and fused."""
  settings = case.settings
  head = bert_text_head.BertTextHead(
      vocab_size=settings['vocab_size'],
      emb_dim=settings['hidden_size'],
      num_heads=settings['num_heads'],
      num_layers=settings['num_hidden_layers'],
      mlp_dim=settings['mlp width'],
      max_length=settings['max_caption_length'],
  )
  inputs = {name: jnp.asarray(array) for name, array in case.inputs.items()}
  visual, text = inputs['visual_features'], inputs['text_tokens']
  context = inputs['context_tokens']
  variables = {'params': case.params}
  plain = head.apply(variables, visual, text)
  with_context = head.apply(variables, visual, text, context)
  outputs = {
      'out/logits': plain.logits,
      'out/features': plain.features,
      'out/logits_context': with_context.logits,
      'out/features_context': with_context.features,
  }
  for name, fusion in _FUSIONS.items():
    fused = head.clone(feature_fusion=fusion).apply(
        variables, visual, text, context
    )
    outputs[f'out/features_context_{name}'] = fused.features
  return {name: np.asarray(array) for name, array in outputs.items()}


RUNNERS: dict[str, Callable[[golden_case.Case], dict[str, np.ndarray]]] = {
    'bert_text_head': run_bert_text_head,
}
