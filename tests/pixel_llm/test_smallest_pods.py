"""The smallest slices that a train state fits, worked by hand."""

import math

from flax.linen import partitioning as flax_partitioning
import jax
import numpy as np
import pytest

from pixel_llm import axes
from pixel_llm import param_groups
from pixel_llm import plan
from pixel_llm import smallest_pods
from t5x import axis_rules
from t5x import partitioning
from t5x import train_state

GIB = 2**30
# 7 GiB of float32 that train, so 14 of moments and 7 of gradients.
TRAINED = {'head/kernel': ((2**14, 7 * 2**14), ('embed', 'mlp'))}


def run(arrays, batch_size=64, frozen=(), tower_rules=()):
  """A run whose parameters have these shapes and axes."""
  params, names = {}, {}
  for name, (shape, logical) in arrays.items():
    tower, leaf = name.split('/')
    params.setdefault(tower, {})[leaf] = jax.ShapeDtypeStruct(shape, np.float32)
    names.setdefault(tower, {})[f'{leaf}_axes'] = (
        flax_partitioning.AxisMetadata(names=logical)
    )
  optimizer = param_groups.ParamGroupOptimizer(
      0.1, frozen=frozen, frozen_dtype='bfloat16'
  )
  state = jax.eval_shape(
      lambda values: train_state.FlaxOptimTrainState.create(
          optimizer, {'params': values, 'params_axes': names}
      ),
      params,
  )
  rules = axis_rules.standard_logical_axis_rules(1, 2, axes.additional_rules())
  partitioner = partitioning.PjitPartitioner(
      num_partitions=2, logical_axis_rules=rules, tower_rules=tower_rules
  )
  return smallest_pods.RunState(state, partitioner, batch_size)


def held(run_state, num_chips, partitions, dims):
  found = smallest_pods.chip_bytes(run_state, num_chips, partitions, dims)
  return tuple(
      round(size / GIB, 3)
      for size in (found.parameters, found.optimizer, found.gradients)
  )


def test_a_chip_holds_its_part_of_what_is_cut():
  one = run(TRAINED)
  assert held(one, 4, 1, 1) == (7, 14, 7)
  assert held(one, 4, 2, 1) == (3.5, 7, 3.5)
  assert held(one, 4, 1, 2) == (1.75, 3.5, 1.75)
  # 2 x 2: both axes are cut in two.
  assert held(one, 4, 2, 2) == (1.75, 3.5, 1.75)
  assert held(one, 16, 2, 2) == (0.438, 0.875, 0.438)


def test_what_is_frozen_has_neither_moments_nor_gradients():
  frozen = {**TRAINED, 'tower/kernel': TRAINED['head/kernel']}
  assert held(run(frozen, frozen=('^tower/',)), 4, 1, 1) == (7 + 3.5, 14, 7)


def test_parts_with_rules_of_their_own_stay_whole():
  rules = (('^head/', (('embed', None),)),)
  assert held(run(TRAINED, tower_rules=rules), 4, 1, 2) == (7, 14, 7)


@pytest.mark.parametrize(
    'kind, room, topology, partitions, dims',
    [
        # 28 GiB of 16, of 32, and of 95.
        ('v5e', 0, 'v5e:2x2', 2, 1),
        ('v6e', 0, 'v6e:1x1', 1, 1),
        ('v4', 0, 'v4:2x2x1', 1, 1),
        ('v5p', 8, 'v5p:2x2x1', 1, 1),
        # 14 and 3 are too much, 7 and 3 are not.
        ('v5e', 3, 'v5e:2x2', 1, 2),
        ('v6e', 5, 'v6e:2x2', 2, 1),
        ('v5e', 14, 'v5e:4x4', 1, 2),
    ],
)
def test_the_smallest_slice_and_the_least_exchange_are_found(
    kind, room, topology, partitions, dims
):
  found = smallest_pods.smallest(run(TRAINED), kind, room * GIB)
  assert found.topology == topology
  choice = found.choice
  assert (choice.num_partitions, choice.parameter_dims) == (partitions, dims)
  # One image at a time on each copy.
  size = topology.partition(':')[2]
  chips = math.prod(int(n) for n in size.split('x'))
  assert choice.num_microbatches * chips // partitions == 64


def test_the_reason_tells_why_no_smaller_one_does():
  found = smallest_pods.smallest(run(TRAINED), 'v5e', 14 * GIB)
  assert found.reason == (
      'v5e:2x4: 3.5 GiB of state and 14.0 for the step are more than 16'
  )
  # Two chips a copy are no way to cut one chip.
  found = smallest_pods.smallest(run(TRAINED), 'v5e', 0)
  assert found.reason == (
      'v5e:1x1: 28.0 GiB of state and 0.0 for the step are more than 16'
  )


def test_a_run_that_no_slice_holds_has_a_reason():
  none = smallest_pods.smallest(run(TRAINED, batch_size=3), 'v4', 14 * GIB)
  assert none.topology is None
  assert none.reason == (
      'v4:2x2x1: 3 images do not divide over 4/2 copies of the model;'
      ' v4:2x2x2 leaves chips without an image'
  )
  odd = {'head/kernel': ((2**14 + 2, 7 * 2**14 + 1), ('embed', 'mlp'))}
  none = smallest_pods.smallest(run(odd), 'v5e', 0)
  assert none.topology is None
  assert 'head/kernel' in none.reason and 'does not divide' in none.reason


def test_the_plan_prints_a_line_a_kind(monkeypatch, capsys):
  asked = []
  # Reading the gin files of a run takes seconds: see the slow test.
  monkeypatch.setattr(
      smallest_pods,
      'state_of_gin',
      lambda *args: asked.append(args) or run(TRAINED),
  )
  arguments = ['--gin_file=a.gin', '--gin.BATCH_SIZE=64', '--smallest']
  assert plan.main([*arguments, '--room_gib=14']) == 0
  assert asked == [(['a.gin'], ['BATCH_SIZE = 64'])]
  out = capsys.readouterr().out
  assert 'v5e:4x4           0.4        0.9        0.4  16' in out
  assert (
      'v5e  --gin_file=gin/mesh/fsdp.gin --gin.NUM_PARTITIONS=1'
      ' --gin.PARAMETER_DIMS=2 --gin.NUM_MICROBATCHES=4'
      ' --gin.REMAT_POLICY="\'full\'"'
  ) in out
  assert 'v5p  it is the smallest there is.' in out


@pytest.mark.slow
def test_the_published_recipe_holds_what_the_compiler_says_it_holds():
  # Arguments of the compiled step, docs/pods/t5_refseg.v4-2x2x4.train.json.
  found = smallest_pods.state_of_gin(['gin/pixel_llm_t5_refseg.gin'])
  parameters, optimizer, _ = held(found, 16, 1, 1)
  assert parameters + optimizer == pytest.approx(7.25, abs=0.02)
