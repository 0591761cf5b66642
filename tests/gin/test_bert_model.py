"""The published BERT model, as its gin file makes it."""

import math
import pathlib

from flax import traverse_util
import jax
import jax.numpy as jnp
import pytest

import gin
from pixel_llm import network
from pixel_llm.modules import bert_text_head

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(name='net')
def _net(monkeypatch):
  monkeypatch.setattr(gin.config, '_LOCATION_PREFIXES', [''])
  gin.clear_config()
  gin.add_config_file_search_path(str(ROOT))
  gin.parse_config_files_and_bindings(
      ['gin/models/bert.gin'],
      [
          'from __gin__ import dynamic_registration',
          'from pixel_llm import network',
          # These stand in the files of a run.
          'DROPOUT_RATE = 0.1',
          'OPTIMIZER = None',
          'DECODER = None',
          'NETWORK = @network.PixelLLM()',
      ],
  )
  yield gin.query_parameter('%NETWORK').scoped_configurable_fn()
  gin.clear_config()


def test_the_published_size_builds(net):
  assert isinstance(net, network.PixelLLM)
  assert (net.begin_token_id, net.end_token_id) == (101, 102)
  assert isinstance(net.textual, bert_text_head.BertTextHead)
  variables = jax.eval_shape(
      net.init,
      jax.random.key(0),
      jnp.zeros((1, 384, 384, 3)),
      jnp.full((1, 2), 384, jnp.int32),
      jnp.zeros((1, 2, 4)),
      jnp.zeros((1, 2, 8), jnp.int32),
      jnp.zeros((1, 2, 128), jnp.int32),
  )
  params = variables['params']
  assert 'visual_project_layers' not in params
  textual = traverse_util.flatten_dict(params['textual'], sep='/')
  assert textual['visual_projection.0/kernel'].shape == (1024, 768)
  assert textual['embedding/words/embedding'].shape == (30522, 768)
  # Worked by hand: a layer has 12 d² + 13 d values; tables, projection, output.
  d, vocabulary = 768, 30522
  assert sum(math.prod(x.shape) for x in textual.values()) == (
      6 * (12 * d * d + 13 * d)
      + (vocabulary + 1024 + 2) * d
      + (1024 + 3) * d
      + (d + 1) * vocabulary
  )
