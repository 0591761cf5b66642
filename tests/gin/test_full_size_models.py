"""The published models as their gin files make them, in both forms.

Abstract only: no array is made.
"""

import math
import pathlib

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gin
from pixel_llm import axes
from pixel_llm import layer_layout
from pixel_llm import network

ROOT = pathlib.Path(__file__).parents[2]
MODELS = {'t5': 'gin/models/t5_xl.gin', 'bert': 'gin/models/bert.gin'}
TINY = 'gin/models/tiny.gin'
KNOWN_AXES = {v for k, v in vars(axes).items() if k.isupper()}


@pytest.fixture(name='build')
def _build(monkeypatch):
  """Makes a network from its gin file and some bindings."""
  monkeypatch.setattr(gin.config, '_LOCATION_PREFIXES', [''])
  gin.clear_config()
  gin.add_config_file_search_path(str(ROOT))

  def build(name, *bindings):
    gin.parse_config_files_and_bindings(
        [MODELS.get(name, name), 'gin/models/masks.gin'],
        [
            'from __gin__ import dynamic_registration',
            'from pixel_llm import network',
            # These stand in the files of a run.
            'DROPOUT_RATE = 0.1',
            'OPTIMIZER = None',
            'DECODER = None',
            'NETWORK = @network.PixelLLM()',
            *bindings,
        ],
    )
    return gin.query_parameter('%NETWORK').scoped_configurable_fn()

  yield build
  gin.clear_config()


def inputs(size):
  rng = np.random.default_rng(0)
  return (
      jnp.asarray(rng.uniform(0, 255, (1, size, size, 3)), jnp.float32),
      jnp.full((1, 2), size, jnp.int32),
      jnp.array([[[0, 0, size, size], [9.0, 10, 80, 70]]]),
      jnp.asarray(rng.integers(1, 9, (1, 2, 8)), jnp.int32),
      jnp.asarray(rng.integers(2, 9, (1, 2, 16)), jnp.int32),
  )


def init_shapes(net: network.PixelLLM, size=384):
  return jax.eval_shape(net.init, jax.random.key(0), *inputs(size))


def flat(tree):
  return traverse_util.flatten_dict(tree, sep='/')


def count(params, *, of='', without='\n'):
  return sum(
      math.prod(x.shape)
      for name, x in flat(params).items()
      if of in name and without not in name
  )


@pytest.mark.parametrize(
    'scan_layers',
    [True, pytest.param(False, marks=pytest.mark.slow)],
    ids=['scanned', 'unrolled'],
)
@pytest.mark.parametrize('name', MODELS)
def test_full_size_has_the_published_counts(build, name, scan_layers):
  net = build(name, f'SCAN_LAYERS = {scan_layers}')
  variables = init_shapes(net)
  params, names = variables['params'], flat(variables['params_axes'])
  assert bool(layer_layout.LAYOUT.periods(params)) == scan_layers
  assert count(params['sam_backbone']) == 637_026_048
  assert count(params['git_backbone']) == pytest.approx(304e6, rel=0.005)
  if name == 't5':
    assert count(params['textual'], without='lora') == 2_849_757_184
    assert count(params['textual'], of='lora') == 18_874_368
  # Every parameter starts in float32 and names its axes, each of them once.
  assert set(names) == {f'{path}_axes' for path in flat(params)}
  for path, array in flat(params).items():
    logical = names[f'{path}_axes'].names
    assert len(logical) == array.ndim == len(set(logical)), path
    assert set(logical) <= KNOWN_AXES, path
    assert array.dtype == jnp.float32, path


def test_released_names_are_those_of_the_scanned_model_unrolled(build):
  params = init_shapes(build('t5'))['params']
  names = set(flat(layer_layout.to_unrolled(params)))
  # One of each stack, as golden figures and released checkpoints have them.
  assert {
      'git_backbone/blocks.23/attn/q_bias',
      'sam_backbone/blocks.31/attn/rel_pos_h',
      'textual/t5_module/encoder/layers_23/mlp/wi_1/kernel',
      'textual/t5_module/decoder/layers_0/encoder_decoder_attention/value/'
      'kernel_right_lora',
  } <= names
  assert sum('sam_backbone/blocks.' in name for name in names) == 32 * 14


def test_the_full_size_towers_are_scanned_and_compute_in_bfloat16(build):
  for name in MODELS:
    net = build(name)
    textual = net.textual.config if name == 't5' else net.textual
    for part in (net.git_backbone, net.sam_backbone, textual):
      assert part.scan_layers and part.dtype == 'bfloat16'
      assert part.remat_policy == 'minimal'
    gin.clear_config()


def test_a_misspelt_policy_is_told_with_the_nearest(build):
  net = build('bert', "REMAT_POLICY = 'minmal'")
  with pytest.raises(ValueError, match="Did you mean 'minimal'"):
    init_shapes(net)


@pytest.mark.slow
def test_the_whole_network_computes_the_same_scanned_and_near_it_in_halves(
    build,
):
  four_blocks = (
      'from pixel_llm.modules import sam_image_encoder',
      'sam_image_encoder.SamImageEncoder.depth = 4',
      'sam_image_encoder.SamImageEncoder.global_block_indexes = (1, 3)',
      "REMAT_POLICY = 'minimal'",
  )
  outputs, params = [], None
  for bindings in (
      (),
      ('SCAN_LAYERS = True',),
      ('SCAN_LAYERS = True', "DTYPE = 'bfloat16'"),
  ):
    net = build(TINY, *four_blocks, *bindings)
    if params is None:
      params = jax.jit(net.init)(jax.random.key(0), *inputs(160))['params']
    params = layer_layout.to_layout_of(params, init_shapes(net, 160)['params'])
    outputs.append(jax.jit(net.apply)({'params': params}, *inputs(160)))
    gin.clear_config()
  unrolled, scanned, halves = outputs
  for one, other in zip(*map(jax.tree.leaves, (scanned, unrolled))):
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)
  assert halves.text.logits.dtype == jnp.float32
  np.testing.assert_allclose(
      halves.text.logits, unrolled.text.logits, rtol=0.1, atol=0.1
  )
  # In pixels of 160.
  np.testing.assert_allclose(
      halves.location.points, unrolled.location.points, atol=2
  )
