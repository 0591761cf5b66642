import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_llm.golden.case import load_case
from pixel_llm.golden.compare import compare_case
from pixel_llm.golden.runners import vision
from pixel_llm.modules import prompt_adapter

GOLDEN = pathlib.Path(__file__).parents[2] / 'golden'


@pytest.mark.golden
@pytest.mark.parametrize(
    'name', ['prompt_adapter', 'prompt_adapter_same_width']
)
def test_matches_the_golden_figures(name):
  case = load_case(GOLDEN, name)
  outputs = vision.RUNNERS[name](case)
  assert [r for r in compare_case(outputs, case.expected) if not r.passed] == []


def test_a_prompt_is_read_alone(random_params):
  adapter = prompt_adapter.PromptAdapter(
      depth=1, transformer_dim=16, num_outputs=3, output_dim=5, mlp_dim=8
  )
  keys = jax.random.split(jax.random.key(0), 4)
  image = jax.random.normal(keys[0], (2, 3, 4, 7))
  image_pe = jax.random.normal(keys[1], (3, 4, 6))
  sparse = jax.random.normal(keys[2], (2, 3, 2, 6))
  dense = jax.random.normal(keys[3], (6,))
  variables = {'params': random_params(adapter, image, image_pe, sparse, dense)}
  together = jax.jit(adapter.apply)(variables, image, image_pe, sparse, dense)
  alone = jax.jit(adapter.apply)(
      variables, image[1:], image_pe, sparse[1:, 2:], dense
  )
  assert together.sparse.shape == (2, 3, 3, 5)
  assert together.dense.shape == (2, 3, 3, 4, 5)
  np.testing.assert_allclose(together.sparse[1:, 2:], alone.sparse, atol=1e-5)
  np.testing.assert_allclose(together.dense[1:, 2:], alone.dense, atol=1e-5)


def test_defaults_are_the_published_size():
  adapter = prompt_adapter.PromptAdapter()
  features, _ = jax.eval_shape(
      adapter.init_with_output,
      jax.random.key(0),
      jnp.zeros((1, 27, 27, 1280)),
      jnp.zeros((27, 27, 256)),
      jnp.zeros((1, 2, 5, 256)),
      jnp.zeros((256,)),
  )
  assert features.sparse.shape == (1, 2, 32, 1024)
