"""How decoders order, expand and gather the rows of beams and caches."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x import decoding


def test_beams_expand_in_place():
  x = jnp.array([[1, 2], [3, 4]])
  np.testing.assert_array_equal(
      decoding.flat_batch_beam_expand(x, 2), [[1, 2], [1, 2], [3, 4], [3, 4]]
  )
  np.testing.assert_array_equal(
      decoding.flat_batch_beam_expand(x, 2, offset=1),
      [[1, 1, 2, 2], [3, 3, 4, 4]],
  )
  expanded = decoding.add_beam_dim(x, 3)
  assert expanded.shape == (2, 3, 2)
  flat = decoding.flatten_beam_dim(expanded)
  np.testing.assert_array_equal(
      decoding.unflatten_beam_dim(flat, 2, 3), expanded
  )


@pytest.mark.parametrize('frozen', [False, True])
def test_cache_map_leaves_out_what_rows_share(frozen):
  cache = {
      'layer': {'cached_key': 1, 'cache_index': 2, 'cached_bias': 3},
      'position_embedder': {'position_embedder_index': 4},
  }
  cache = flax.core.freeze(cache) if frozen else cache
  mapped = decoding.cache_map(lambda x: -x, cache)
  assert type(mapped) is type(cache)
  assert mapped['layer'] == {
      'cached_key': -1,
      'cache_index': 2,
      'cached_bias': 3,
  }
  assert mapped['position_embedder'] == {'position_embedder_index': 4}
  mapped = decoding.cache_map(lambda x: -x, cache, apply_to_index=True)
  assert mapped['layer'] == {
      'cached_key': -1,
      'cache_index': -2,
      'cached_bias': 3,
  }


@pytest.mark.parametrize('one_hot', [False, True])
@pytest.mark.parametrize('offset', [0, 1])
def test_beams_are_gathered_along_their_axis(one_hot, offset):
  x = np.arange(2 * 3 * 5, dtype=np.float32).reshape(2, 3, 5)
  picks = np.array([[2, 0], [1, 1]])
  expected = np.stack([x[0, picks[0]], x[1, picks[1]]])
  cache = {'cached_key': np.stack([x, -x]) if offset else x, 'cache_index': 7}
  gathered = decoding.cache_gather_beams(
      cache, jnp.array(picks), 2, 3, 2, one_hot, offset
  )
  assert gathered['cache_index'] == 7
  np.testing.assert_array_equal(
      gathered['cached_key'],
      np.stack([expected, -expected]) if offset else expected,
  )
  if not offset:
    np.testing.assert_array_equal(
        decoding.gather_beams([x], jnp.array(picks), 2, 3, 2, one_hot)[0],
        expected,
    )


def test_the_best_beams_come_last():
  scores = jnp.array([[3.0, 1.0, 2.0]])
  (best,) = decoding.gather_topk_beams([scores], scores, 1, 2)
  np.testing.assert_array_equal(best, [[2.0, 3.0]])


@pytest.mark.parametrize(('batch', 'length'), [(2, 5000), (2, 100), (9, 5000)])
def test_top_k_in_two_stages_is_top_k(batch, length):
  x = np.random.default_rng(0).permutation(batch * length)
  x = jnp.asarray(x.reshape(batch, length), jnp.float32)
  for found, expected in zip(
      decoding.top_k_two_stage(x, 4), jax.lax.top_k(x, 4)
  ):
    np.testing.assert_array_equal(found, expected)


def test_prompts_align_at_either_end():
  left = np.array([[5, 0, 6, 0, 0], [1, 2, 3, 4, 5], [0, 0, 0, 0, 0]])
  right = np.array([[0, 0, 5, 0, 6], [1, 2, 3, 4, 5], [0, 0, 0, 0, 0]])
  np.testing.assert_array_equal(decoding._right_align_prompts(left), right)
  np.testing.assert_array_equal(decoding._left_align_prompts(right), left)
