"""Decoding with a cache against reading the whole text again at every step.

Both write the same texts with the same decoder, from a prompt that is encoded
once. The rival computes logits of the position it needs only, so it is faster
than the original, which scores all of them. Programs are compiled ahead and run
once on prompts that need no text before they are timed.

    python benchmarks/decode.py
    python benchmarks/decode.py --heads t5 --decoders greedy

prints a JSON object a line: tokens per second are those of the best text of
every prompt, `ratio` is how many times as fast the cache is.
"""

import argparse
from collections.abc import Callable
import json
import os
import time

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pixel_llm import beam_search
from pixel_llm import generation
from pixel_llm import sampling
from pixel_llm.modules import bert_text_head
from pixel_llm.modules import decode_cache
from pixel_llm.modules import t5_text_head

BEGIN, END = 0, 1
NUM_VISUAL = 32
DECODERS: dict[str, generation.Decoder] = {
    'greedy': generation.Greedy(),
    'beam4x2': beam_search.BeamSearch(num_beams=4, per_node_beam_size=2),
    'top_k50': sampling.Sample(top_k=50),
}


def make_t5(layers: int, width: int, length: int) -> nn.Module:
  del length
  return t5_text_head.T5TextHead(
      t5_text_head.T5TextConfig(
          vocab_size=32128,
          emb_dim=width,
          num_heads=width // 64,
          num_encoder_layers=layers,
          num_decoder_layers=layers,
          head_dim=64,
          mlp_dim=4 * width,
          mlp_activations=('gelu', 'linear'),
      )
  )


def make_bert(layers: int, width: int, length: int) -> nn.Module:
  return bert_text_head.BertTextHead(
      emb_dim=width,
      num_heads=width // 64,
      num_layers=layers,
      mlp_dim=4 * width,
      max_length=length,
  )


HEADS = {'t5': make_t5, 'bert': make_bert}


def logits_of_features(head: nn.Module, features: jax.Array) -> jax.Array:
  """Scores the vocabulary at chosen positions, from `decode`'s features."""
  if isinstance(head, t5_text_head.T5TextHead):
    return head.t5_module.decoder.logits_dense(features)
  return head.output(features)


def cached(head, variables, encoded, num_beams, length):
  """Makes the product's step function and its cache."""
  cache = head.apply(
      variables, encoded, num_beams, length, method='start_decode'
  )
  return generation.module_step(head, variables), cache


def rereading(head, variables, encoded, num_beams, length):
  """Makes a step function that reads the whole text, and an empty cache."""
  encoded = jax.tree.map(lambda x: jnp.repeat(x, num_beams, axis=0), encoded)

  def step(cache, sequences, index):
    output = head.apply(
        variables, encoded, sequences.reshape(-1, length), method='decode'
    )
    features = jax.lax.dynamic_index_in_dim(
        output.features, index, axis=1, keepdims=False
    )
    logits = head.apply(variables, features, method=logits_of_features)
    return logits.reshape(*sequences.shape[:2], -1), cache

  return step, decode_cache.DecodeCache(shared=(), beams=())


def endless(step: decode_cache.StepFn) -> decode_cache.StepFn:
  """Forbids the end token, so that every text has all its tokens."""

  def wrapped(cache, sequences, index):
    logits, cache = step(cache, sequences, index)
    return logits.at[..., END].set(-1e9), cache

  return wrapped


def timed(
    head: nn.Module,
    params,
    decoder: generation.Decoder,
    make_step: Callable[
        ..., tuple[decode_cache.StepFn, decode_cache.DecodeCache]
    ],
    visual: jax.Array,
    length: int,
) -> tuple[float, np.ndarray]:
  """Times one decoding; returns seconds and the best texts."""
  prompts = len(visual)

  def decode(params, visual, row_mask):
    variables = {'params': params}
    encoded = head.apply(variables, visual, method='encode')
    step, cache = make_step(head, variables, encoded, decoder.num_beams, length)
    start = generation.start_tokens(prompts, length, BEGIN, END)
    keys = sampling.row_keys(jax.random.key(0), prompts, 1)
    return decoder(endless(step), cache, start, END, row_mask, keys).best_tokens

  everyone = jnp.ones((prompts,), bool)
  compiled = jax.jit(decode).lower(params, visual, everyone).compile()
  jax.block_until_ready(compiled(params, visual, ~everyone))
  start = time.perf_counter()
  tokens = jax.block_until_ready(compiled(params, visual, everyone))
  return time.perf_counter() - start, np.asarray(tokens)


def compare(args: argparse.Namespace, head_name: str, decoder_name: str):
  """Times one head with one decoder both ways."""
  head = HEADS[head_name](args.layers, args.width, args.length)
  shape = (args.prompts, NUM_VISUAL, args.width)
  visual = jax.random.normal(jax.random.key(1), shape)
  params = jax.jit(head.init)(
      jax.random.key(0), visual, jnp.zeros((args.prompts, 2), jnp.int32)
  )['params']
  decoder = DECODERS[decoder_name]
  found = {
      name: timed(head, params, decoder, make_step, visual, args.length)
      for name, make_step in (('cached', cached), ('rereading', rereading))
  }
  # The begin token is given and the last slot is never written.
  written = args.prompts * (args.length - 2)
  same = np.all(found['cached'][1] == found['rereading'][1], axis=-1)
  return {
      'head': head_name,
      'decoder': decoder_name,
      'layers': args.layers,
      'width': args.width,
      'prompts': args.prompts,
      'length': args.length,
      **{
          f'{name}_tokens_per_second': round(written / seconds, 1)
          for name, (seconds, _) in found.items()
      },
      'ratio': round(found['rereading'][0] / found['cached'][0], 1),
      'equal_texts': int(same.sum()),
      'device': jax.devices()[0].device_kind,
      'cores': len(os.sched_getaffinity(0)),
  }


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--heads', nargs='+', choices=HEADS, default=[*HEADS])
  parser.add_argument(
      '--decoders', nargs='+', choices=DECODERS, default=[*DECODERS]
  )
  parser.add_argument('--layers', type=int, default=4)
  parser.add_argument('--width', type=int, default=256)
  parser.add_argument('--prompts', type=int, default=16)
  parser.add_argument('--length', type=int, default=128)
  args = parser.parse_args()
  for head_name in args.heads:
    for decoder_name in args.decoders:
      print(json.dumps(compare(args, head_name, decoder_name)), flush=True)


if __name__ == '__main__':
  main()
