"""Stacks of layers convert between both forms, bit for bit."""

from flax.core import freeze
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5x import checkpoint_importer
from t5x import layer_layout

LAYOUT = layer_layout.Layout(
    (*layer_layout.T5_STACKS, layer_layout.StackNames('blocks.{}', 'blocks'))
)


def layer(seed, *shape):
  rng = np.random.default_rng(seed)
  return {
      'mlp': {'kernel': rng.normal(size=shape or (2, 3)).astype('float32')},
      'scale': rng.normal(size=(4,)).astype('float32'),
      'temperature': np.float32(seed),
  }


def unrolled(count, name='blocks.{}'):
  return {name.format(i): layer(i) for i in range(count)} | {
      'stem': np.ones((5,), 'float32')
  }


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_layers_are_the_second_axis():
  tree = {'encoder': unrolled(3, 'layers_{}')}
  scanned = LAYOUT.scan(tree, {'encoder/encoder': 0})
  assert jax.tree.map(np.shape, scanned) == {
      'encoder': {
          'encoder': {
              'mlp': {'kernel': (2, 3, 3)},
              'scale': (4, 3),
              'temperature': (3,),
          },
          'stem': (5,),
      }
  }
  kernel = scanned['encoder']['encoder']['mlp']['kernel']
  np.testing.assert_array_equal(
      kernel[:, 1], tree['encoder']['layers_1']['mlp']['kernel']
  )


def test_members_of_a_group_take_turns():
  tree = {'tower': {f'blocks.{i}': layer(i, i % 2 + 1, 7) for i in range(6)}}
  scanned = LAYOUT.scan(tree, {'tower/blocks': 2})
  blocks = scanned['tower']['blocks']
  assert blocks['blocks.0']['mlp']['kernel'].shape == (1, 3, 7)
  assert blocks['blocks.1']['mlp']['kernel'].shape == (2, 3, 7)
  np.testing.assert_array_equal(blocks['blocks.1']['temperature'], [1, 3, 5])
  assert LAYOUT.periods(scanned) == {'tower/blocks': 2}
  assert_same(LAYOUT.unroll(scanned), tree)


@settings(max_examples=30, deadline=None)
@given(
    groups=st.integers(1, 12),
    period=st.integers(0, 3),
    axis=st.integers(0, 3),
    dtype=st.sampled_from(['float32', 'bfloat16', 'int32']),
)
def test_there_and_back_changes_no_bit(groups, period, axis, dtype):
  layout = layer_layout.Layout(LAYOUT.stacks, axis)
  tree = {
      'a': {'tower': unrolled(groups * max(period, 1))},
      'decoder': unrolled(2),
  }
  tree = jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)
  scanned = layout.scan(tree, {'tower/blocks': period})
  back = layout.unroll(scanned)
  assert jax.tree.structure(back) == jax.tree.structure(tree)
  for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(tree)):
    assert a.dtype == b.dtype
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
  # The order of children is the network's, which a dict keeps.
  assert list(back['a']['tower'])[-1] == f'blocks.{groups * max(period, 1) - 1}'
  assert_same(layout.match(tree, scanned), scanned)
  assert_same(layout.match(scanned, tree), tree)


def test_scanning_again_changes_nothing():
  tree = unrolled(4)
  once = LAYOUT.scan(tree, {'blocks': 2})
  assert_same(LAYOUT.scan(once, {'blocks': 2}), once)


def test_an_optimizer_state_follows_its_parameters():
  params = freeze({'tower': unrolled(4)})
  state = optax.adamw(1e-3).init(params)
  periods = {'tower/blocks': 0}
  scanned = LAYOUT.scan(state, periods)
  expected = optax.adamw(1e-3).init(LAYOUT.scan(params, periods))
  assert jax.tree.structure(scanned) == jax.tree.structure(expected)
  assert_same(scanned, expected)
  assert_same(LAYOUT.unroll(scanned), state)


def test_shapes_convert_like_arrays():
  tree = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, unrolled(4)))
  scanned = LAYOUT.scan(tree, {'blocks': 0})
  assert scanned['blocks']['mlp']['kernel'].shape == (2, 4, 3)
  assert LAYOUT.unroll(scanned) == tree


def test_every_layer_of_a_scanned_array_has_its_unrolled_name():
  scanned = LAYOUT.scan({'t': unrolled(12)}, {'t/blocks': 2})
  names = LAYOUT.layer_names(scanned)
  assert names['t/stem'] == ('t/stem',)
  assert names['t/blocks/blocks.1/scale'] == tuple(
      f't/blocks.{i}/scale' for i in (1, 3, 5, 7, 9, 11)
  )
  assert LAYOUT.layer_names({'t': unrolled(1)})['t/blocks.0/scale'] == (
      't/blocks.0/scale',
  )


def test_arrays_of_a_checkpoint_are_read_when_asked_for_and_once():
  reads = []

  def lazy(path, value):
    name = jax.tree_util.keystr(path)

    def get():
      reads.append(name)
      return value

    return checkpoint_importer.LazyArray(value.shape, value.dtype, get)

  tree = unrolled(3)
  scanned = LAYOUT.scan(
      jax.tree.map_with_path(lazy, tree), LAYOUT.periods({'blocks': {'a': 0}})
  )
  assert not reads
  assert_same(
      jax.tree.map(lambda x: x.get(), scanned), LAYOUT.scan(tree, {'blocks': 0})
  )
  reads.clear()
  arrays = LAYOUT.scan(tree, {'blocks': 0})
  back = LAYOUT.unroll(jax.tree.map_with_path(lazy, arrays))
  assert not reads
  assert_same(jax.tree.map(lambda x: x.get(), back), tree)
  assert len(reads) == len(jax.tree.leaves(arrays))


def without(tree, name):
  return {k: v for k, v in tree.items() if k != name}


@pytest.mark.parametrize(
    'tree, message',
    [
        (without(unrolled(3), 'blocks.1'), 't/blocks.1 is missing'),
        (unrolled(3) | {'blocks.2': layer(0, 2, 4)}, 't/blocks.2/mlp/kernel'),
        (
            unrolled(2) | {'blocks.1': without(layer(0), 'scale')},
            't/blocks.0/scale has no like in t/blocks.1',
        ),
        (
            unrolled(2) | {'blocks.1': layer(0) | {'extra': np.ones(1)}},
            't/blocks.1/extra has no like in t/blocks.0',
        ),
    ],
)
def test_layers_that_do_not_match_are_told_by_name(tree, message):
  with pytest.raises(ValueError, match=message):
    LAYOUT.scan({'t': tree}, {'t/blocks': 0})


def test_groups_that_do_not_divide_are_refused():
  with pytest.raises(ValueError, match='t/blocks.6 do not divide .* of 2'):
    LAYOUT.scan({'t': unrolled(7)}, {'t/blocks': 2})


def test_scanned_arrays_of_unequal_length_are_refused():
  stack = {'a': np.ones((2, 3)), 'b': {'c': np.ones((2, 4))}}
  with pytest.raises(ValueError, match='t/blocks/b/c holds 4 layers'):
    LAYOUT.unroll({'t': {'blocks': stack}})
