import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x.examples.t5 import layers
from t5x.examples.t5 import positions

KEY = jax.random.key(0)


def test_dense_general_stores_a_matrix_and_maps_many_axes():
  module = layers.DenseGeneral(
      features=(2, 3), axis=(-2, -1), kernel_axes=('joined_kv', 'embed')
  )
  x = jax.random.normal(KEY, (5, 4, 6))
  variables = module.init(KEY, x)
  kernel = variables['params']['kernel']
  assert kernel.shape == (24, 6)
  assert kernel.dtype == jnp.float32
  axes = variables['params_axes']['kernel_axes'].names
  assert tuple(axes) == ('joined_kv', 'embed')
  expected = np.asarray(x).reshape(5, 24) @ np.asarray(kernel)
  np.testing.assert_allclose(
      module.apply(variables, x), expected.reshape(5, 2, 3), rtol=1e-5
  )


def test_layer_norm_divides_by_the_root_mean_square_only():
  x = jnp.array([[3.0, 4.0]])
  module = layers.LayerNorm(epsilon=0.0)
  y = module.apply({'params': {'scale': jnp.array([1.0, 2.0])}}, x)
  rms = np.sqrt((9 + 16) / 2)
  np.testing.assert_allclose(y, [[3 / rms, 8 / rms]], rtol=1e-6)


def test_embed_refuses_floats_and_attends_with_its_table():
  module = layers.Embed(num_embeddings=7, features=3)
  variables = module.init(KEY, jnp.array([[1, 2]]))
  table = np.asarray(variables['params']['embedding'])
  ids = jnp.array([[0, 6]])
  np.testing.assert_array_equal(module.apply(variables, ids), table[[[0, 6]]])
  one_hot = layers.Embed(num_embeddings=7, features=3, one_hot=True)
  np.testing.assert_allclose(
      one_hot.apply(variables, ids), table[[[0, 6]]], rtol=1e-6
  )
  query = np.ones((1, 1, 3), np.float32)
  np.testing.assert_allclose(
      module.apply(variables, query, method='attend'),
      query @ table.T,
      rtol=1e-5,
  )
  with pytest.raises(ValueError, match='float32'):
    module.apply(variables, jnp.zeros((1, 2)))
  cast = layers.Embed(num_embeddings=7, features=3, cast_input_dtype=jnp.int32)
  assert cast.apply(variables, jnp.zeros((1, 2))).shape == (1, 2, 3)


def test_mlp_multiplies_its_activations():
  module = layers.MlpBlock(
      intermediate_dim=4,
      activations=('relu', 'linear'),
      intermediate_dropout_rate=0.0,
  )
  x = jax.random.normal(KEY, (2, 3, 5))
  variables = module.init(KEY, x, deterministic=True)
  params = jax.tree.map(np.asarray, variables['params'])
  gate = np.maximum(x @ params['wi_0']['kernel'], 0)
  hidden = gate * (x @ params['wi_1']['kernel'])
  np.testing.assert_allclose(
      module.apply(variables, x, deterministic=True),
      hidden @ params['wo']['kernel'],
      rtol=1e-4,
      atol=1e-6,
  )
  assert set(
      layers.MlpBlock(intermediate_dim=4).init(KEY, x, deterministic=True)[
          'params'
      ]
  ) == {'wi', 'wo'}


def test_mlp_names_an_unknown_activation():
  module = layers.MlpBlock(activations=('geluu',))
  with pytest.raises(ValueError, match="'geluu'"):
    module.init(KEY, jnp.zeros((1, 2, 3)), deterministic=True)


def test_causal_buckets_are_exact_near_and_logarithmic_far():
  distances = np.array([5, 0, -1, -15, -16, -17, -31, -64, -127, -128, -1000])
  buckets = positions.relative_position_bucket(distances, False, 32, 128)
  # 16 + 16·log(d/16)/log(8): 17 → 16, 31 → 21, 64 → 26, 127 → 31.
  np.testing.assert_array_equal(
      buckets, [0, 0, 1, 15, 16, 16, 21, 26, 31, 31, 31]
  )


def test_bidirectional_buckets_keep_the_signs_apart():
  distances = np.array([-200, -8, -3, 0, 3, 8, 200])
  buckets = positions.relative_position_bucket(distances, True, 32, 128)
  np.testing.assert_array_equal(buckets, [15, 8, 3, 0, 19, 24, 31])


def test_relative_biases_look_up_the_table():
  module = layers.RelativePositionBiases(
      num_buckets=32, max_distance=128, num_heads=2, dtype=jnp.float32
  )
  variables = module.init(KEY, 3, 4, False)
  table = np.asarray(variables['params']['rel_embedding'])
  assert table.shape == (2, 32)
  biases = module.apply(variables, 3, 4, False)
  assert biases.shape == (1, 2, 3, 4)
  # Query 2 and key 0 are two apart; query 0 cannot tell future keys apart.
  np.testing.assert_allclose(biases[0, :, 2, 0], table[:, 2])
  np.testing.assert_allclose(biases[0, :, 0, 3], table[:, 0])


def test_masks_written_out():
  tokens = jnp.array([[5, 6, 0]])
  segments = jnp.array([[1, 1, 2]])
  np.testing.assert_array_equal(
      layers.make_attention_mask(segments, segments, jnp.equal)[0, 0],
      [[1, 1, 0], [1, 1, 0], [0, 0, 1]],
  )
  np.testing.assert_array_equal(
      layers.make_causal_mask(tokens)[0, 0], np.tril(np.ones((3, 3)))
  )
  np.testing.assert_array_equal(
      layers.make_decoder_mask(tokens, jnp.float32)[0, 0],
      [[1, 0, 0], [1, 1, 0], [0, 0, 0]],
  )
  prefix = layers.make_decoder_mask(
      jnp.array([[5, 6, 7, 8]]),
      jnp.float32,
      decoder_causal_attention=jnp.array([[1, 1, 0, 0]]),
  )
  np.testing.assert_array_equal(
      prefix[0, 0],
      [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]],
  )
  packed = layers.make_decoder_mask(
      jnp.array([[5, 6, 7]]), jnp.float32, decoder_segment_ids=segments
  )
  np.testing.assert_array_equal(packed[0, 0], [[1, 0, 0], [1, 1, 0], [0, 0, 1]])
  extra = layers.make_attention_mask(tokens, tokens, extra_batch_dims=2)
  assert extra.shape == (1, 1, 1, 1, 3, 3)


def test_combining_skips_none_and_checks_ranks():
  ones = jnp.ones((1, 1, 2, 2))
  half = jnp.array([[[[1, 0], [1, 0]]]])
  np.testing.assert_array_equal(layers.combine_masks(ones, None, half), half)
  assert layers.combine_masks(None) is None
  np.testing.assert_array_equal(
      layers.combine_biases(ones, None, ones), 2 * ones
  )
  assert layers.combine_biases(None, None) is None
  with pytest.raises(ValueError, match='same rank'):
    layers.combine_masks(ones, ones[0])


def test_attention_equals_a_numpy_twin_without_scaling():
  shape = (2, 3, 4, 5)
  query, key, value = jax.random.normal(KEY, (3, *shape))
  bias = jax.random.normal(jax.random.key(1), (1, 4, 3, 3))
  logits = np.einsum('bqhd,bkhd->bhqk', query, key) + bias
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  np.testing.assert_allclose(
      layers.dot_product_attention(
          query, key, value, bias=bias, deterministic=True
      ),
      np.einsum('bhqk,bkhd->bqhd', weights, value),
      rtol=1e-4,
      atol=1e-5,
  )


def test_attention_checks_shapes_and_random_keys():
  x = jnp.zeros((2, 3, 4, 5))
  with pytest.raises(ValueError, match='equal batch and heads'):
    layers.dot_product_attention(x, x[:, :, :2], x)
  with pytest.raises(ValueError, match='dropout_rng'):
    layers.dot_product_attention(x, x, x, dropout_rate=0.5)


def test_attention_dropout_is_one_mask_for_all_queries():
  query = jnp.zeros((1, 6, 2, 3))
  value = jnp.broadcast_to(jnp.arange(8.0).reshape(1, 8, 1, 1), (1, 8, 2, 3))
  key = jnp.zeros((1, 8, 2, 3))
  dropped = layers.dot_product_attention(
      query, key, value, dropout_rng=KEY, dropout_rate=0.5
  )
  np.testing.assert_allclose(
      dropped, jnp.broadcast_to(dropped[:, :1], dropped.shape)
  )
  whole = layers.dot_product_attention(query, key, value, deterministic=True)
  assert not np.allclose(dropped, whole)


def test_query_kernels_start_smaller_by_the_root_of_the_head_width():
  module = layers.MultiHeadDotProductAttention(num_heads=8, head_dim=64)
  x = jnp.zeros((1, 2, 512))
  params = module.init(KEY, x, x, deterministic=True)['params']
  ratio = jnp.std(params['key']['kernel']) / jnp.std(params['query']['kernel'])
  np.testing.assert_allclose(ratio, 8.0, rtol=0.02)


def test_cached_attention_equals_causal_attention():
  module = layers.MultiHeadDotProductAttention(num_heads=2, head_dim=3)
  x = jax.random.normal(KEY, (2, 5, 4))
  bias = jax.random.normal(jax.random.key(1), (1, 2, 5, 5))
  variables = module.init(KEY, x, x, deterministic=True, decode=True)
  params, cache = variables['params'], variables['cache']
  assert cache['cached_key'].shape == (2, 2, 3, 5)
  assert cache['cache_index'].shape == ()
  full = module.apply(
      {'params': params},
      x,
      x,
      layers.make_causal_mask(x[..., 0]),
      bias,
      deterministic=True,
  )
  for i in range(5):
    step = x[:, i : i + 1]
    y, changed = module.apply(
        {'params': params, 'cache': cache},
        step,
        step,
        None,
        bias,
        deterministic=True,
        decode=True,
        mutable=['cache'],
    )
    cache = changed['cache']
    np.testing.assert_allclose(y[:, 0], full[:, i], rtol=1e-4, atol=1e-5)
  assert cache['cache_index'] == 5
  with pytest.raises(ValueError, match='one position a call'):
    module.apply(
        {'params': params, 'cache': cache}, x, x, decode=True, mutable=['cache']
    )
