"""Which stacks convert; how they do is tested in `tests/t5x`."""

import jax
import numpy as np
import pytest

from pixel_llm import layer_layout

UNROLLED = (
    'git_backbone/blocks.7/attn/proj/kernel',
    'sam_backbone/blocks.7/attn/qkv/kernel',
    'textual/t5_module/encoder/layers_7/mlp/wo/kernel',
    'textual/t5_module/decoder/layers_7/self_attention/query/kernel_left_lora',
    'textual/transformer/encoder/layer.7/output/dense/kernel',
)
SCANNED = (
    'git_backbone/blocks/attn/proj/kernel',
    'sam_backbone/blocks/blocks.3/attn/qkv/kernel',
    'textual/t5_module/encoder/encoder/mlp/wo/kernel',
    'textual/t5_module/decoder/decoder/self_attention/query/kernel_left_lora',
    'textual/transformer/encoder/layer/output/dense/kernel',
)


def nested(name, value):
  for part in reversed(name.split('/')):
    value = {part: value}
  return value


def stack(name):
  """Eight layers, named like the one with number 7."""
  tree = {}
  for i in range(8):
    value = np.full((2, 3), i, 'float32')
    tree |= _join(tree, nested(name.replace('7', str(i)), value))
  return tree


def _join(a, b):
  if not isinstance(a, dict):
    return b
  return a | {k: _join(a[k], v) if k in a else v for k, v in b.items()}


@pytest.mark.parametrize('unrolled, scanned', [*zip(UNROLLED, SCANNED)])
def test_every_stack_of_the_network_converts(unrolled, scanned):
  tree = stack(unrolled)
  target = nested(scanned, np.zeros((2, 8, 3)))
  if 'blocks.3' in scanned:
    # A group of four: the other members lie beside this one.
    for i in range(4):
      name = scanned.replace('blocks.3', f'blocks.{i}')
      target = _join(target, nested(name, np.zeros((2, 2, 3))))
  converted = layer_layout.to_layout_of(tree, target)
  assert jax.tree.map(np.shape, converted) == jax.tree.map(np.shape, target)
  back = layer_layout.to_unrolled(converted)
  jax.tree.map(np.testing.assert_array_equal, back, tree)


def test_a_checkpoint_takes_the_form_of_the_run_that_starts_from_it():
  names = UNROLLED[0], SCANNED[0]
  stored = {'target': stack(names[0]), 'state': {'mu': stack(names[0])}}
  like = nested(names[1], np.zeros((2, 8, 3)))
  target = {'target': like, 'state': {'mu': like}}
  restored = layer_layout.restore_layout(stored, target)
  assert jax.tree.map(np.shape, restored) == jax.tree.map(np.shape, target)
  back = layer_layout.restore_layout(restored, stored)
  jax.tree.map(np.testing.assert_array_equal, back, stored)
  assert layer_layout.restore_layout(stored, target, is_resuming=True) is stored
