"""A run starts from a checkpoint of either form, and of either precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_llm import axes
from pixel_llm import layer_layout
from pixel_llm import param_groups
from pixel_llm.modules import eva02_vit
from t5x import checkpoint_config
from t5x import checkpoints
from t5x import initializer
from t5x import partitioning
from t5x import state_utils
from t5x import stored_state

TOWER = eva02_vit.Eva02Vit(
    patch_size=4, embed_dim=8, depth=3, num_heads=2, pretrain_image_size=8
)
IMAGES = jnp.ones((2, 8, 8, 3))
# The stem trains, the blocks are frozen but for their biases.
FROZEN = (r'blocks\.\d/.*(kernel|scale)$',)


def partitioner():
  return partitioning.PjitPartitioner(
      num_partitions=1,
      logical_axis_rules=partitioning.standard_logical_axis_rules(
          additional_rules=axes.additional_rules()
      ),
  )


@functools.cache
def run_of(scan_layers, frozen_dtype):
  tower = TOWER.clone(scan_layers=scan_layers)
  return initializer.TrainStateInitializer(
      param_groups.ParamGroupOptimizer(
          0.1, frozen=FROZEN, frozen_dtype=frozen_dtype
      ),
      lambda rng, input_shapes, input_types: tower.init(rng, IMAGES),
      {'image': IMAGES.shape},
      partitioner(),
  )


def save(directory, run, state, dtype=None):
  manager = checkpoints.OrbaxCheckpointManagerInterface(
      str(directory),
      run.global_train_state_shape,
      partitioner(),
      save_dtype=dtype,
  )
  manager.save(state)
  manager.close()


def restore(directory, run, **kwargs):
  return run.from_checkpoint(
      [
          checkpoint_config.RestoreCheckpointConfig(
              str(directory),
              dtype='float32',
              state_transformation_fns=[
                  layer_layout.restore_layout,
                  *kwargs.pop('fns', ()),
              ],
              **kwargs,
          )
      ],
      init_rng=jax.random.key(1),
  )


def flat(state):
  return {
      '/'.join(path): leaf
      for path, leaf in stored_state.flatten(
          layer_layout.to_unrolled(state.state_dict())
      ).items()
  }


@pytest.mark.parametrize('scanned', [False, True], ids=['unrolled', 'scanned'])
def test_a_run_starts_from_a_checkpoint_of_the_other_form(tmp_path, scanned):
  first = run_of(scanned, None)
  state = first.from_scratch(jax.random.key(0))
  save(tmp_path, first, state)
  second = run_of(not scanned, 'bfloat16')
  restored = restore(tmp_path, second)
  # Names, shapes and types are the run's own: bfloat16 where it is frozen.
  expected = second.global_train_state_shape
  assert jax.tree.map(lambda x: (x.shape, x.dtype.name), restored) == (
      jax.tree.map(lambda x: (x.shape, x.dtype.name), expected)
  )
  before, after = flat(state), flat(restored)
  assert before.keys() == after.keys()
  for name, value in before.items():
    frozen = name.startswith('target/blocks') and name.endswith(
        ('kernel', 'scale')
    )
    assert (after[name].dtype == jnp.bfloat16) == frozen, name
    np.testing.assert_array_equal(value.astype(after[name].dtype), after[name])


def test_half_precision_survives_a_checkpoint(tmp_path):
  run = run_of(True, 'bfloat16')
  state = run.from_scratch(jax.random.key(0))
  save(tmp_path, run, state)
  stored = checkpoints.load_t5x_checkpoint(str(tmp_path))
  frozen = stored['target']['blocks']['attn']['proj']['kernel']
  assert frozen.dtype == jnp.bfloat16
  restored = restore(tmp_path, run)
  for name, value in flat(state).items():
    assert value.dtype == flat(restored)[name].dtype, name
    np.testing.assert_array_equal(value, flat(restored)[name], err_msg=name)


def test_what_a_recipe_does_not_take_starts_fresh_in_the_other_form(tmp_path):
  first = run_of(False, None)
  state = first.from_scratch(jax.random.key(0)).replace_step(jnp.int32(7))
  save(tmp_path, first, state)
  second = run_of(True, None)
  restored = restore(
      tmp_path,
      second,
      fns=[
          functools.partial(
              state_utils.apply_assignment_map,
              assignment_map=[
                  ('state/.*', None),
                  ('target/blocks/attn/q_proj/.*', None),
              ],
          )
      ],
      fallback_to_scratch=True,
  )
  fresh = flat(second.from_scratch(jax.random.key(1)))
  old, new = flat(state), flat(restored)
  assert int(restored.step) == 0
  for name, value in new.items():
    taken = name.startswith('target/') and 'attn/q_proj' not in name
    source = old if taken else fresh
    np.testing.assert_array_equal(value, source[name], err_msg=name)
