"""What several tests of this folder need, and where they import it from."""

import pathlib
import sys
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))


@pytest.fixture(name='random_params', scope='session')
def make_random_params():
  """Draws a module's parameters without compiling its initialisers.

  Parameters that start at zero get values too, so that no branch is idle.
  """

  def draw(module, *args, **kwargs):
    shapes = jax.eval_shape(
        lambda: module.init(jax.random.key(0), *args, **kwargs)
    )['params']

    def fill(path, shape):
      seed = zlib.crc32(jax.tree_util.keystr(path).encode())
      values = np.random.default_rng(seed).normal(size=shape.shape)
      is_scale = jax.tree_util.keystr(path).endswith("['scale']")
      return jnp.asarray(is_scale + 0.3 * values, jnp.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)

  return draw
