"""What an optimizer is: a pure definition, its state, and both bound together.

An `OptimizerDef` makes a state and turns gradients into new parameters. An
`Optimizer` binds one to parameters and state and is a pytree.

Frozen parameters: `OptimizerDef.trainable_mask` says which parameters train.
The others have no gradient and no state, and come out as they went in.
"""

import abc
from collections.abc import Mapping, Sequence
from typing import Any

import flax
from flax import serialization
import jax

from t5x import param_patterns


@flax.struct.dataclass
class OptimizerState:
  """What an optimizer remembers.

  Attributes:
    step: number of updates so far, int32.
    param_states: moments and the like.
  """

  step: Any
  param_states: Any


class OptimizerDef(metaclass=abc.ABCMeta):
  """Definition of an optimizer: hyper-parameters and pure functions.

  A definition that needs the logical axes of the parameters has a method
  `set_param_axes(axes)`; a model must then emit `params_axes`.

  Attributes:
    hyper_params: a dataclass with `replace`.
  """

  def __init__(self, hyper_params: Any):
    self.hyper_params = hyper_params

  @abc.abstractmethod
  def init_state(self, params: Any) -> OptimizerState:
    """Makes the state for these parameters."""

  @abc.abstractmethod
  def apply_gradient(
      self, hyper_params: Any, params: Any, state: OptimizerState, grads: Any
  ) -> tuple[Any, OptimizerState]:
    """Updates parameters.

    Args:
      hyper_params: as from `update_hyper_params`.
      params: the parameters.
      state: the state before this step.
      grads: like `params`, None at frozen leaves.

    Returns:
      (new parameters, new state).
    """

  @abc.abstractmethod
  def derive_logical_axes(
      self, optimizer: 'Optimizer', param_logical_axes: Any
  ) -> 'Optimizer':
    """Replaces all arrays of an optimizer by their logical axes."""

  def trainable_mask(self, params: Any) -> Any:
    """Tells which parameters train: a tree like `params` of bool."""
    return jax.tree.map(lambda _: True, params)

  def params_to_evaluate(self, params: Any, state: OptimizerState) -> Any:
    """Returns the parameters that a run's own evaluations take."""
    del state  # Most definitions keep no others.
    return params

  def update_hyper_params(self, **overrides: Any) -> Any:
    """Returns the hyper-parameters with some replaced, for one step."""
    return self.hyper_params.replace(**overrides)

  def check_names(self, names: Sequence[str]) -> None:
    """Checks what this definition says of parameters by name.

    Args:
      names: all parameters, also those of other optimizers.

    Raises:
      ValueError: if it names none of them.
    """
    del names  # Most definitions treat all parameters alike.

  def create(self, target: Any) -> 'Optimizer':
    """Binds this definition to parameters, with a fresh state."""
    self.check_names(param_patterns.param_names(target))
    return Optimizer(self, self.init_state(target), target)

  def state_dict(self, target: Any, state: OptimizerState) -> dict[str, Any]:
    """Returns parameters and state as nested dicts."""
    return {
        'target': serialization.to_state_dict(target),
        'state': serialization.to_state_dict(state),
    }

  def restore_state(
      self, target: Any, state: OptimizerState, state_dict: Mapping[str, Any]
  ) -> tuple[Any, OptimizerState]:
    """Fills parameters and state from nested dicts."""
    new_target = serialization.from_state_dict(target, state_dict['target'])
    new_state: Any = serialization.from_state_dict(state, state_dict['state'])
    return new_target, new_state


OptimizerDefType = OptimizerDef


@flax.struct.dataclass
class Optimizer:
  """A definition bound to parameters (`target`) and state."""

  optimizer_def: OptimizerDef = flax.struct.field(pytree_node=False)
  state: OptimizerState = flax.struct.field(pytree_node=True)
  target: Any = flax.struct.field(pytree_node=True)

  def apply_gradient(self, grads: Any, **hyper_param_overrides) -> 'Optimizer':
    """Returns the optimizer after one update."""
    hyper_params = self.optimizer_def.update_hyper_params(
        **hyper_param_overrides
    )
    target, state = self.optimizer_def.apply_gradient(
        hyper_params, self.target, self.state, grads
    )
    return self.replace(target=target, state=state)

  def state_dict(self) -> dict[str, Any]:
    """Returns `{'target', 'state': {'step', 'param_states'}}`."""
    return self.optimizer_def.state_dict(self.target, self.state)

  def restore_state(self, state_dict: Mapping[str, Any]) -> 'Optimizer':
    """Returns an optimizer with the values of a state dict."""
    target, state = self.optimizer_def.restore_state(
        self.target, self.state, state_dict
    )
    return self.replace(target=target, state=state)
