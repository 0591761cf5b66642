"""Train states: parameters, optimizer state, mutable variables and their axes."""

from collections.abc import Mapping
from typing import Any, Protocol

import flax
from flax import serialization
from flax.core import FrozenDict
from flax.core import freeze
from flax.core import unfreeze
from flax.linen import partitioning as flax_partitioning
from flax.traverse_util import flatten_dict
import jax.numpy as jnp

from t5x import optimizers
from t5x import step_guard

EMPTY_DICT = freeze({})
FlaxMutables = Mapping[str, Any]


class TrainState(Protocol):
  """What the trainer, the partitioner and the checkpoints ask of a state."""

  @property
  def step(self) -> Any:
    """Number of updates so far."""
    ...

  @property
  def params(self) -> Any:
    """The parameters."""
    ...

  @property
  def param_states(self) -> Any:
    """The optimizer's state of the parameters."""
    ...

  @property
  def flax_mutables(self) -> FlaxMutables:
    """Mutable collections, such as batch statistics."""
    ...

  def state_dict(self) -> dict[str, Any]:
    """Returns nested dicts, as a checkpoint holds them."""
    ...

  def restore_state(self, state_dict: Mapping[str, Any]) -> 'TrainState':
    """Returns a state with the values of a state dict."""
    ...

  def replace_params(self, params: Any) -> 'TrainState':
    """Returns a state with other parameters."""
    ...

  def replace_flax_mutables(self, flax_mutables: FlaxMutables) -> 'TrainState':
    """Returns a state with other mutable collections."""
    ...

  def replace_step(self, step: Any) -> 'TrainState':
    """Returns a state at another step."""
    ...

  def apply_gradient(
      self,
      grads: Any,
      learning_rate: Any,
      flax_mutables: FlaxMutables = EMPTY_DICT,
  ) -> 'TrainState':
    """Returns the state after one update."""
    ...

  def as_logical_axes(self) -> 'TrainState':
    """Returns the state with logical axis names for arrays."""
    ...


def _split_variables(
    variables: Mapping[str, Any],
) -> tuple[Any, Any, FrozenDict, FrozenDict | None]:
  """Splits what a model initialises.

  Args:
    variables: collections by name; `<name>_axes` holds the axes of `<name>`.

  Returns:
    (params, their axes or None, other collections, their axes or None).

  Raises:
    ValueError: if a parameter has no axis names though others have.
  """
  collections = dict(variables)
  params = collections.pop('params')
  params_axes = collections.pop('params_axes', None)
  axes = {
      name.removesuffix('_axes'): collection
      for name, collection in collections.items()
      if name.endswith('_axes')
  }
  mutables = {
      name: collection
      for name, collection in collections.items()
      if not name.endswith('_axes')
  }
  if params_axes is not None:
    _check_params_axes(params_axes, params)
  return (
      params,
      params_axes,
      freeze(mutables),
      freeze(axes) if axes else None,
  )


def _flat_names(tree: Any) -> set[str]:
  return set(flatten_dict(unfreeze(tree), sep='/'))


def _check_params_axes(params_axes: Any, params: Any) -> None:
  named = _flat_names(flax_partitioning.get_axis_names(params_axes))
  missing = sorted(_flat_names(params) - named)
  if missing:
    listing = ', '.join(map(repr, missing))
    raise ValueError(f'Missing axis names for parameters: {{{listing}}}')


def _axis_names(axes: Any, like: Any) -> Any:
  """Reads axis names from metadata, in the same kind of dict as `like`."""
  names = flax_partitioning.get_axis_names(axes)
  return names if isinstance(like, FrozenDict) else unfreeze(names)


def _params_axis_names(params_axes: Any, params: Any) -> Any:
  if params_axes is None:
    raise ValueError(
        'The model emits no `params_axes`, so that its parameters cannot be'
        ' placed by name. Make them with'
        ' flax.linen.partitioning.param_with_axes.'
    )
  return _axis_names(params_axes, params)


def _mutables_axis_names(mutables_axes: Any) -> FrozenDict:
  if mutables_axes is None:
    return EMPTY_DICT
  return freeze(
      {
          name: flax_partitioning.get_axis_names(collection)
          for name, collection in mutables_axes.items()
      }
  )


@flax.struct.dataclass
class FlaxOptimTrainState:
  """Parameters and optimizer state of a training run.

  Attributes:
    params_axes: axis metadata of the parameters, None if the model has none.
    flax_mutables: mutable collections.
    flax_mutables_axes: axis metadata of those, None if the model has none.
    guard_memory: what the trainer's `StepGuard` remembers, replicated; None
      without one.
  """

  _optimizer: optimizers.Optimizer
  params_axes: Any = None
  flax_mutables: FlaxMutables = EMPTY_DICT
  flax_mutables_axes: Any = None
  guard_memory: Any = None

  @classmethod
  def create(
      cls,
      optimizer_def: optimizers.OptimizerDef,
      model_variables: Mapping[str, Any],
  ) -> 'FlaxOptimTrainState':
    """Makes the state of step 0.

    Args:
      optimizer_def: the optimizer.
      model_variables: what the model initialises: `params`, `params_axes` and
        mutable collections, each with its `<name>_axes`.

    Returns:
      The state.

    Raises:
      ValueError: if axis names are missing that the optimizer, or the other
        parameters, call for.
    """
    params, params_axes, mutables, mutables_axes = _split_variables(
        model_variables
    )
    if hasattr(optimizer_def, 'set_param_axes'):
      if params_axes is None:
        raise ValueError(
            'The optimizer supports params_axes for model-based partitioning,'
            ' but the model is not emitting them.'
        )
      optimizer_def.set_param_axes(
          flax_partitioning.get_axis_names(params_axes)
      )
    optimizer = optimizer_def.create(params)
    return cls(optimizer, params_axes, mutables, mutables_axes)

  @property
  def step(self) -> Any:
    """Number of updates so far."""
    return self._optimizer.state.step

  @property
  def params(self) -> Any:
    """The parameters."""
    return self._optimizer.target

  @property
  def param_states(self) -> Any:
    """The optimizer's state of the parameters."""
    return self._optimizer.state.param_states

  def trainable_mask(self) -> Any:
    """Tells which parameters train: a tree like `params` of bool."""
    return self._optimizer.optimizer_def.trainable_mask(self.params)

  def state_dict(self) -> dict[str, Any]:
    """Returns nested dicts, as a checkpoint holds them.

    Returns:
      `{'target', 'state': {'step', 'param_states'}}`, `flax_mutables` if the
      model has any, and `guard_memory` if the trainer has a guard.
    """
    state_dict = self._optimizer.state_dict()
    if self.flax_mutables:
      state_dict['flax_mutables'] = unfreeze(self.flax_mutables)
    if self.guard_memory is not None:
      state_dict[step_guard.STORED] = serialization.to_state_dict(
          self.guard_memory
      )
    return state_dict

  def restore_state(
      self, state_dict: Mapping[str, Any]
  ) -> 'FlaxOptimTrainState':
    """Returns a state with the values of a state dict, without a guard's."""
    return self.replace(
        _optimizer=self._optimizer.restore_state(state_dict),
        flax_mutables=freeze(state_dict.get('flax_mutables', {})),
    )

  def to_evaluate(self) -> 'FlaxOptimTrainState':
    """Returns the state with the parameters that evaluations take."""
    optimizer_def = self._optimizer.optimizer_def
    params = optimizer_def.params_to_evaluate(
        self.params, self._optimizer.state
    )
    return self.replace_params(params)

  def replace_params(self, params: Any) -> 'FlaxOptimTrainState':
    """Returns a state with other parameters."""
    return self.replace(_optimizer=self._optimizer.replace(target=params))

  def replace_flax_mutables(
      self, flax_mutables: FlaxMutables
  ) -> 'FlaxOptimTrainState':
    """Returns a state with other mutable collections."""
    return self.replace(flax_mutables=freeze(flax_mutables))

  def replace_step(self, step: Any) -> 'FlaxOptimTrainState':
    """Returns a state at another step."""
    state = self._optimizer.state.replace(step=step)
    return self.replace(_optimizer=self._optimizer.replace(state=state))

  def apply_gradient(
      self,
      grads: Any,
      learning_rate: Any,
      flax_mutables: FlaxMutables = EMPTY_DICT,
  ) -> 'FlaxOptimTrainState':
    """Returns the state after one update.

    Args:
      grads: gradients like `params`, None at frozen leaves.
      learning_rate: this step's learning rate.
      flax_mutables: the mutable collections after this step.
    """
    optimizer = self._optimizer.apply_gradient(
        grads, learning_rate=learning_rate
    )
    return self.replace(_optimizer=optimizer, flax_mutables=flax_mutables)

  def as_logical_axes(self) -> 'FlaxOptimTrainState':
    """Returns the state with logical axis names (or None) for arrays."""
    optimizer_def = self._optimizer.optimizer_def
    axes = _params_axis_names(self.params_axes, self.params)
    return FlaxOptimTrainState(
        _optimizer=optimizer_def.derive_logical_axes(self._optimizer, axes),
        flax_mutables=_mutables_axis_names(self.flax_mutables_axes),
    )


@flax.struct.dataclass
class InferenceState:
  """Parameters without an optimizer, for evaluation and inference.

  Attributes:
    step: the training step of the parameters.
    params: the parameters.
    params_axes: as in `FlaxOptimTrainState`.
    flax_mutables: as in `FlaxOptimTrainState`.
    flax_mutables_axes: as in `FlaxOptimTrainState`.
  """

  step: Any
  params: Any
  params_axes: Any = None
  flax_mutables: FlaxMutables = EMPTY_DICT
  flax_mutables_axes: Any = None

  @classmethod
  def create(cls, model_variables: Mapping[str, Any]) -> 'InferenceState':
    """Makes a state of step 0; see `FlaxOptimTrainState.create`."""
    params, params_axes, mutables, mutables_axes = _split_variables(
        model_variables
    )
    step = jnp.zeros((), jnp.int32)
    # Frozen as in `restore_state`, so that both fit one compiled function.
    return cls(step, freeze(params), params_axes, mutables, mutables_axes)

  @property
  def param_states(self) -> Any:
    """Raises NotImplementedError: there is no optimizer."""
    raise NotImplementedError('InferenceState has no optimizer states.')

  def apply_gradient(self, *args: Any, **kwargs: Any) -> 'InferenceState':
    """Raises NotImplementedError: there is no optimizer."""
    raise NotImplementedError('InferenceState has no optimizer.')

  def state_dict(self) -> dict[str, Any]:
    """Returns `{'target', 'state': {'step'}}`, and mutables if any."""
    state_dict = {
        'target': serialization.to_state_dict(self.params),
        'state': {'step': self.step},
    }
    if self.flax_mutables:
      state_dict['flax_mutables'] = unfreeze(self.flax_mutables)
    return state_dict

  def restore_state(self, state_dict: Mapping[str, Any]) -> 'InferenceState':
    """Returns a state with the values of a state dict."""
    return self.replace(
        step=state_dict['state']['step'],
        params=freeze(state_dict['target']),
        flax_mutables=freeze(state_dict.get('flax_mutables', {})),
    )

  def replace_params(self, params: Any) -> 'InferenceState':
    """Returns a state with other parameters."""
    return self.replace(params=params)

  def replace_flax_mutables(
      self, flax_mutables: FlaxMutables
  ) -> 'InferenceState':
    """Returns a state with other mutable collections."""
    return self.replace(flax_mutables=freeze(flax_mutables))

  def replace_step(self, step: Any) -> 'InferenceState':
    """Returns a state at another step."""
    return self.replace(step=step)

  def as_logical_axes(self) -> 'InferenceState':
    """Returns the state with logical axis names (or None) for arrays."""
    return InferenceState(
        step=None,
        params=_params_axis_names(self.params_axes, self.params),
        flax_mutables=_mutables_axis_names(self.flax_mutables_axes),
    )
