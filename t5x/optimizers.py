"""Optimizers that gin files name.

`OptaxWrapper` turns any optax transformation into an `OptimizerDef`; the
functions below it (`adamw`, `sgd`, …) are optax's, wrapped.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

import flax
from flax import serialization
from flax.traverse_util import ModelParamTraversal
import jax.numpy as jnp
import optax

from t5x import optax_axes
from t5x.multi_optimizer import MultiOptimizer
from t5x.optimizer_def import Optimizer
from t5x.optimizer_def import OptimizerDef
from t5x.optimizer_def import OptimizerDefType
from t5x.optimizer_def import OptimizerState
from t5x.param_patterns import PatternTraversal

__all__ = [
    'ModelParamTraversal',
    'MultiOptimizer',
    'OptaxWrapper',
    'Optimizer',
    'OptimizerDef',
    'OptimizerDefType',
    'OptimizerState',
    'PatternTraversal',
    'adabelief',
    'adagrad',
    'adam',
    'adamw',
    'chain',
    'dpsgd',
    'fromage',
    'lamb',
    'lars',
    'lion',
    'noisy_sgd',
    'radam',
    'rmsprop',
    'sgd',
    'wrap_optax_optimizer',
    'yogi',
]


@flax.struct.dataclass
class _OptaxHyperParams:
  """What T5X passes each step; optax keeps its own hyper-parameters."""

  learning_rate: Any = None


class OptaxWrapper(OptimizerDef):
  """An optax transformation as an optimizer definition.

  The learning rate stands inside the transformation: the one that T5X passes
  each step is for the log and has no effect here.

  A subclass may override `trainable_mask`; the transformation then sees
  `optax.MaskedNode()` in place of frozen leaves.

  Attributes:
    optax_optimizer: the transformation.
    state_classes: classes of optimizer states other than optax's own, through
      which logical axes may be derived; subclasses list theirs.
  """

  state_classes: tuple[type, ...] = ()

  def __init__(self, optax_optimizer: optax.GradientTransformation):
    super().__init__(_OptaxHyperParams())
    self.optax_optimizer = optax_optimizer

  def init_state(self, params: Any) -> OptimizerState:
    """Makes the state of the trainable parameters."""
    masked = optax_axes.mask_frozen(params, self.trainable_mask(params))
    return OptimizerState(
        step=jnp.zeros((), jnp.int32),
        param_states=self.optax_optimizer.init(masked),
    )

  def apply_gradient(
      self, hyper_params: Any, params: Any, state: OptimizerState, grads: Any
  ) -> tuple[Any, OptimizerState]:
    """Updates the trainable parameters; see the base class."""
    del hyper_params  # See the class.
    mask = self.trainable_mask(params)
    masked = optax_axes.mask_frozen(params, mask)
    updates, param_states = self.optax_optimizer.update(
        optax_axes.mask_frozen(grads, mask), state.param_states, masked
    )
    updated = optax.apply_updates(masked, updates)
    new_params = optax_axes.unmask_frozen(updated, params, mask)
    return new_params, OptimizerState(state.step + 1, param_states)

  def derive_logical_axes(
      self, optimizer: Optimizer, param_logical_axes: Any
  ) -> Optimizer:
    """Gives moments the axes of their parameters; counters get None."""
    param_states = optax_axes.derive_logical_axes(
        optimizer.state.param_states,
        optimizer.target,
        param_logical_axes,
        self.state_classes,
    )
    return Optimizer(
        self, OptimizerState(None, param_states), param_logical_axes
    )

  def state_dict(self, target: Any, state: OptimizerState) -> dict[str, Any]:
    """Returns nested dicts, without the empty parts of the optax state."""
    param_states = optax_axes.to_state_dict(state.param_states)
    return {
        'target': serialization.to_state_dict(target),
        'state': {'step': state.step, 'param_states': param_states},
    }

  def restore_state(
      self, target: Any, state: OptimizerState, state_dict: Mapping[str, Any]
  ) -> tuple[Any, OptimizerState]:
    """Fills parameters and state, and makes the empty parts again."""
    values = state_dict['state']
    # A state without any number (plain SGD) leaves no entry behind.
    param_states = optax_axes.from_state_dict(
        state.param_states, values.get('param_states', {})
    )
    return (
        serialization.from_state_dict(target, state_dict['target']),
        OptimizerState(values['step'], param_states),
    )


def wrap_optax_optimizer(
    optax_optimizer: Callable[..., optax.GradientTransformation],
) -> Callable[..., OptaxWrapper]:
  """Turns a constructor of optax into one of `OptaxWrapper`."""

  @functools.wraps(optax_optimizer)
  def constructor(*args, **kwargs) -> OptaxWrapper:
    return OptaxWrapper(optax_optimizer(*args, **kwargs))

  return constructor


@wrap_optax_optimizer
def chain(
    transformations: Sequence[optax.GradientTransformation],
) -> optax.GradientTransformation:
  """Chains transformations given as one list, as gin can write it."""
  return optax.chain(*transformations)


adabelief = wrap_optax_optimizer(optax.adabelief)
adagrad = wrap_optax_optimizer(optax.adagrad)
adam = wrap_optax_optimizer(optax.adam)
adamw = wrap_optax_optimizer(optax.adamw)
fromage = wrap_optax_optimizer(optax.fromage)
lars = wrap_optax_optimizer(optax.lars)
lamb = wrap_optax_optimizer(optax.lamb)
lion = wrap_optax_optimizer(optax.lion)
noisy_sgd = wrap_optax_optimizer(optax.noisy_sgd)
radam = wrap_optax_optimizer(optax.radam)
rmsprop = wrap_optax_optimizer(optax.rmsprop)
sgd = wrap_optax_optimizer(optax.sgd)
yogi = wrap_optax_optimizer(optax.yogi)
dpsgd = wrap_optax_optimizer(optax.contrib.dpsgd)
