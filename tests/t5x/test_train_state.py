import flax
from flax.linen import partitioning as flax_partitioning
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x import optimizers
from t5x import partitioning
from t5x import train_state as train_state_lib

AxisMetadata = flax_partitioning.AxisMetadata
P = partitioning.PartitionSpec
ADAM = optimizers.adam(0.1)

VARIABLES = {
    'params': {'dense': {'bias': np.zeros(4), 'kernel': np.zeros((2, 4))}},
    'params_axes': {
        'dense': {
            'bias_axes': AxisMetadata(names=('embed',)),
            'kernel_axes': AxisMetadata(names=('vocab', 'embed')),
        }
    },
    'stats': {'dense': {'mean': np.ones(4)}},
    'stats_axes': {'dense': {'mean': AxisMetadata(names=('embed',))}},
}
AXES = {'dense': {'bias': P('embed'), 'kernel': P('vocab', 'embed')}}


def _create(variables=VARIABLES, kind='training'):
  if kind == 'inference':
    return train_state_lib.InferenceState.create(variables)
  return train_state_lib.FlaxOptimTrainState.create(ADAM, variables)


def _without(*names):
  return {name: v for name, v in VARIABLES.items() if name not in names}


@pytest.mark.parametrize('kind', ['training', 'inference'])
@pytest.mark.parametrize('frozen_dict', [False, True])
def test_create_splits_the_collections(kind, frozen_dict):
  variables = flax.core.freeze(VARIABLES) if frozen_dict else VARIABLES
  state = _create(variables, kind)
  assert state.step == 0
  assert state.params['dense']['kernel'].shape == (2, 4)
  assert set(state.flax_mutables) == {'stats'}
  assert set(state.flax_mutables_axes) == {'stats'}
  axes = state.as_logical_axes()
  assert axes.params_axes is None
  assert flax.core.unfreeze(axes.params) == AXES
  assert axes.flax_mutables['stats']['dense']['mean'] == P('embed')
  assert type(axes.params) is type(state.params)


@pytest.mark.parametrize('kind', ['training', 'inference'])
def test_state_dict_round_trip(kind):
  state = _create(kind=kind)
  state = state.replace_step(jnp.asarray(3))
  state = state.replace_params(jax.tree.map(lambda x: x + 1, state.params))
  state_dict = state.state_dict()
  assert set(state_dict) == {'target', 'state', 'flax_mutables'}
  restored = _create(kind=kind).restore_state(state_dict)
  assert jax.tree.structure(restored) == jax.tree.structure(state)
  jax.tree.map(np.testing.assert_array_equal, restored, state)
  names = set(state_dict['state'])
  assert names == {'step'} | ({'param_states'} if kind == 'training' else set())


def test_state_dict_without_mutables_has_no_entry_for_them():
  state = _create(_without('stats', 'stats_axes'))
  assert set(state.state_dict()) == {'target', 'state'}
  assert state.flax_mutables == train_state_lib.EMPTY_DICT
  assert state.flax_mutables_axes is None
  assert state.as_logical_axes().flax_mutables == {}


def test_update_moves_parameters_step_and_mutables():
  state = _create()
  grads = jax.tree.map(np.ones_like, state.params)
  new = state.apply_gradient(
      grads, learning_rate=0.1, flax_mutables={'stats': {}}
  )
  assert new.step == 1
  assert np.all(new.params['dense']['bias'] < 0)
  assert new.flax_mutables == {'stats': {}}
  assert jax.tree.all(
      jax.tree.map(lambda trains: trains, state.trainable_mask())
  )


@pytest.mark.parametrize('kind', ['training', 'inference'])
def test_missing_axis_names_are_an_error(kind):
  axes = {'dense': {'bias_axes': AxisMetadata(names=('embed',))}}
  with pytest.raises(
      ValueError,
      match=r"^Missing axis names for parameters: \{'dense/kernel'\}$",
  ):
    _create({**VARIABLES, 'params_axes': axes}, kind)


@pytest.mark.filterwarnings(
    'ignore:.flax.traverse_util.Traversal. will be deprecated'
)
def test_optimizers_that_need_axes_get_them_or_say_so():
  class NeedsAxes(optimizers.OptaxWrapper):

    def set_param_axes(self, param_logical_axes):
      self.axes = param_logical_axes

  definition = NeedsAxes(optimizers.sgd(0.1).optax_optimizer)
  train_state_lib.FlaxOptimTrainState.create(definition, VARIABLES)
  assert flax.core.unfreeze(definition.axes) == AXES
  with pytest.raises(ValueError, match='supports params_axes'):
    train_state_lib.FlaxOptimTrainState.create(
        definition, _without('params_axes')
    )
  multi = optimizers.MultiOptimizer(
      [(optimizers.ModelParamTraversal(lambda *_: True), definition)]
  )
  with pytest.raises(ValueError, match='supports params_axes'):
    train_state_lib.FlaxOptimTrainState.create(multi, _without('params_axes'))


def test_models_without_axes_train_but_have_no_logical_axes():
  state = _create(_without('params_axes'))
  assert state.params_axes is None
  with pytest.raises(ValueError, match='param_with_axes'):
    state.as_logical_axes()


def test_inference_state_has_no_optimizer():
  state = _create(kind='inference')
  with pytest.raises(NotImplementedError):
    _ = state.param_states
  with pytest.raises(NotImplementedError):
    state.apply_gradient({}, learning_rate=0.1)
