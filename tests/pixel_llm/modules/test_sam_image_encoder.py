import pathlib

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_llm.golden.case import load_case
from pixel_llm.golden.compare import compare_case
from pixel_llm.golden.runners import vision
from pixel_llm.modules import layers
from pixel_llm.modules import sam_image_encoder

GOLDEN = pathlib.Path(__file__).parents[2] / 'golden'


@pytest.mark.golden
def test_matches_the_golden_figures():
  case = load_case(GOLDEN, 'sam_image_encoder')
  outputs = vision.RUNNERS[case.name](case)
  assert [r for r in compare_case(outputs, case.expected) if not r.passed] == []


def test_full_size_has_637_million_parameters():
  shapes = jax.eval_shape(
      sam_image_encoder.SamImageEncoder().init,
      jax.random.key(0),
      jnp.zeros((1, 1024, 1024, 3)),
  )
  count = sum(x.size for x in jax.tree.leaves(shapes['params']))
  assert count == pytest.approx(637e6, rel=0.002)


@hypothesis.settings(max_examples=10, deadline=None)
@hypothesis.given(
    height=st.integers(1, 9), width=st.integers(1, 9), window=st.integers(1, 4)
)
def test_merging_windows_undoes_cutting(height, width, window):
  x = jnp.arange(2 * height * width * 3, dtype=jnp.float32)
  x = x.reshape(2, height, width, 3)
  windows = sam_image_encoder.partition_windows(x, window)
  assert len(windows) == 2 * -(-height // window) * -(-width // window)
  np.testing.assert_array_equal(
      sam_image_encoder.merge_windows(windows, height, width), x
  )


def test_oblong_map_equals_windows_padded_by_hand(random_params):
  block = sam_image_encoder.Block(
      num_heads=2, mlp_dim=16, table_size=3, window_size=3
  )
  x = jax.random.normal(jax.random.key(0), (1, 5, 10, 8))
  params = random_params(block, x)

  normed = layers.LayerNorm().apply({'params': params['norm1']}, x)
  # 5 rows need 1 more and 10 columns 2 more to be whole windows of 3.
  padded = np.pad(normed, ((0, 0), (0, 1), (0, 2), (0, 0)))
  attended = np.zeros_like(padded)
  attention = sam_image_encoder.Attention(num_heads=2, table_size=3)
  attend = jax.jit(attention.apply)
  for top in range(0, 6, 3):
    for left in range(0, 12, 3):
      cells = (slice(None), slice(top, top + 3), slice(left, left + 3))
      attended[cells] = attend(
          {'params': params['attn']}, jnp.asarray(padded[cells])
      )
  expected = x + attended[:, :5, :10]
  normed = layers.LayerNorm().apply({'params': params['norm2']}, expected)
  expected += sam_image_encoder.MlpBlock(16).apply(
      {'params': params['mlp']}, normed
  )
  np.testing.assert_allclose(
      jax.jit(block.apply)({'params': params}, x), expected, atol=1e-5
  )


def test_oblong_image_that_matches_the_table_in_height_only(random_params):
  tower = sam_image_encoder.SamImageEncoder(
      image_size=16,
      patch_size=4,
      embed_dim=8,
      depth=2,
      num_heads=2,
      output_dim=4,
      window_size=3,
      global_block_indexes=(1,),
  )
  images = jnp.zeros((1, 16, 28, 3))
  params = random_params(tower, images)
  assert params['pos_embed'].shape == (1, 4, 4, 8)
  features = jax.jit(tower.apply)({'params': params}, images)
  assert features.shape == (1, 4, 7, 4)
  # The image is blank, so columns differ by their positions alone.
  assert jnp.all(jnp.std(features, axis=2) > 1e-3)


def test_relative_rows_follow_query_minus_key():
  table = jnp.arange(5, dtype=jnp.float32)[:, None]
  rows = sam_image_encoder.relative_rows(table, 3)[..., 0]
  np.testing.assert_array_equal(rows, [[2, 1, 0], [3, 2, 1], [4, 3, 2]])


def test_heads_that_do_not_divide_the_width_are_refused():
  tower = sam_image_encoder.SamImageEncoder(embed_dim=10, num_heads=4)
  with pytest.raises(ValueError, match='num_heads=4 does not divide'):
    tower.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
