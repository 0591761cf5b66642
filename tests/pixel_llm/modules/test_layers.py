import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_llm.modules import layers


def random(*shape):
  return jax.random.normal(jax.random.key(len(shape)), shape)


def test_dense_works_on_any_leading_axes():
  x = random(2, 3, 4, 5)
  y, variables = layers.Dense(6).init_with_output(jax.random.key(0), x)
  kernel = np.asarray(variables['params']['kernel'])
  np.testing.assert_allclose(y, np.asarray(x) @ kernel, atol=1e-5)


def test_conv_folds_leading_axes():
  x = random(2, 3, 6, 7, 4)
  conv = layers.Conv(5, (3, 3), padding='SAME')
  y, variables = conv.init_with_output(jax.random.key(0), x)
  assert y.shape == (2, 3, 6, 7, 5)
  np.testing.assert_allclose(
      y[1, 2], conv.apply(variables, x[1, 2:])[0], atol=1e-5
  )


def test_layer_norm_of_bfloat16_is_computed_in_float32():
  # The spread is below the resolution of bfloat16 around the mean's square.
  x = (100 + 0.5 * np.arange(4, dtype=np.float32))[None]
  norm = layers.LayerNorm(epsilon=1e-5)
  y, _ = norm.init_with_output(jax.random.key(0), jnp.asarray(x, jnp.bfloat16))
  expected = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
  np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize(
    ('num_layers', 'kernel_axes'),
    [
        (1, [('embed', 'outputs')]),
        (
            3,
            [('embed', 'mlp'), ('mlp', 'embed'), ('embed', 'outputs')],
        ),
    ],
)
def test_mlp_layers_split_the_hidden_width_in_turn(num_layers, kernel_axes):
  variables = layers.Mlp(8, 3, num_layers).init(jax.random.key(0), random(2, 4))
  names = [
      variables['params_axes'][f'layers.{i}']['kernel_axes'].names
      for i in range(num_layers)
  ]
  assert names == kernel_axes


def test_drop_path_drops_whole_examples_and_keeps_the_mean():
  x = jnp.ones((4000, 2, 3))
  y = layers.DropPath(0.25).apply(
      {}, x, True, rngs={'dropout': jax.random.key(0)}
  )
  np.testing.assert_array_equal(y, jnp.broadcast_to(y[:, :1, :1], y.shape))
  assert set(np.unique(y)) == {0, np.float32(1 / 0.75)}
  assert float(y.mean()) == pytest.approx(1, abs=0.05)


def test_drop_path_needs_no_random_stream_when_disabled():
  x = jnp.ones((2, 3))
  assert layers.DropPath(0.5).apply({}, x, False) is x
  assert layers.DropPath(0.0).apply({}, x, True) is x


def test_drop_path_rates_grow_from_zero():
  assert layers.drop_path_rates(0.1, 3) == pytest.approx([0, 0.05, 0.1])
  assert layers.drop_path_rates(0.1, 1) == [0]


def test_attention_shares_axes_of_size_one():
  query, key = random(2, 3, 4, 2, 5), random(2, 1, 6, 2, 5)
  value = key + 1
  shared = layers.dot_product_attention(query, key, value)
  repeated = layers.dot_product_attention(
      query, jnp.repeat(key, 3, axis=1), jnp.repeat(value, 3, axis=1)
  )
  np.testing.assert_allclose(shared, repeated, atol=1e-6)


def test_attention_equals_a_numpy_twin():
  query, key, bias = random(4, 2, 5), random(6, 2, 5), random(2, 4, 6)
  attended = layers.dot_product_attention(query, key, key, bias)
  for head in range(2):
    logits = np.asarray(query)[:, head] @ np.asarray(key)[:, head].T
    logits = logits / np.sqrt(5) + np.asarray(bias)[head]
    weights = np.exp(logits)
    weights /= weights.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(
        attended[:, head * 5 : head * 5 + 5],
        weights @ np.asarray(key)[:, head],
        atol=1e-5,
    )
