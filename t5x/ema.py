"""An exponential moving average (EMA) of the parameters that train.

`EmaOptimizer` wraps any optimizer and keeps the average in its state, so it is
saved, restored and placed on the mesh like a moment; what is frozen has none. A
run without it pays nothing.

    OPTIMIZER = @ema.EmaOptimizer()
    ema.EmaOptimizer.optimizer = @adafactor.Adafactor()

The run's own evaluations take the average, unless `evaluate_average` is False.
`use_ema`, a transformation of checkpoints, puts the average where the
parameters were: for `t5x.eval`, inference or a run that starts from it.

RefA: Polyak and Juditsky, "Acceleration of stochastic approximation by
averaging" (1992); RefB: TensorFlow's `ExponentialMovingAverage`, whose decay
grows with the number of updates.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from flax import serialization
import jax
import jax.numpy as jnp

from t5x import multihost
from t5x import state_matching
from t5x import stored_state
from t5x.optimizer_def import Optimizer
from t5x.optimizer_def import OptimizerDef
from t5x.optimizer_def import OptimizerState

# Where a checkpoint holds the average.
_STORED = ('state', 'param_states', 'ema')


class EmaOptimizer(OptimizerDef):
  """An optimizer that also averages what it trains.

  Its `param_states` are a dict: `optimizer`, those of the optimizer; `ema`,
  like the parameters, None at frozen ones; `ema_count`, updates averaged.

  Attributes:
    optimizer: the optimizer.
    decay: share of the old average that an update keeps, after enough updates.
    evaluate_average: whether the run's own evaluations take the average.
  """

  def __init__(
      self,
      optimizer: OptimizerDef,
      decay: float = 0.9999,
      evaluate_average: bool = True,
  ):
    """Wraps an optimizer.

    The decay of update n (from 0) is the smaller of `decay` and n / (n + 9)
    (RefB): the first average is the parameters after the first update, whatever
    they were before, so that it may start in the middle of a run.

    Args:
      optimizer: the optimizer.
      decay: see the class; between 0 and 1.
      evaluate_average: see the class.

    Raises:
      ValueError: for a decay that is not.
    """
    if not 0 < decay < 1:
      raise ValueError(
          f'EmaOptimizer.decay must be between 0 and 1, got {decay}; 0.9999'
          ' averages over about 10,000 steps.'
      )
    self.optimizer, self.decay = optimizer, decay
    self.evaluate_average = evaluate_average
    super().__init__(optimizer.hyper_params)
    if hasattr(optimizer, 'set_param_axes'):
      # Only then is the method there: it makes `params_axes` a must.
      self.set_param_axes = optimizer.set_param_axes

  def update_hyper_params(self, **overrides: Any) -> Any:
    """Returns the optimizer's hyper-parameters with some replaced."""
    return self.optimizer.update_hyper_params(**overrides)

  def check_names(self, names: Sequence[str]) -> None:
    """Checks what the optimizer says of parameters by name."""
    self.optimizer.check_names(names)

  def trainable_mask(self, params: Any) -> Any:
    """Tells which parameters train, and are averaged."""
    return self.optimizer.trainable_mask(params)

  def params_to_evaluate(self, params: Any, state: OptimizerState) -> Any:
    """Returns the average, and what is frozen; see the base class.

    Before the first update these are the parameters: the average may be of
    others, which a checkpoint has replaced since.
    """
    count = multihost.get_local_data(state.param_states['ema_count'])
    if not self.evaluate_average or not int(count):
      return params
    return jax.tree.map(
        lambda trains, average, param: average if trains else param,
        self.trainable_mask(params),
        state.param_states['ema'],
        params,
    )

  def create(self, target: Any) -> Optimizer:
    """Binds to parameters, as the optimizer would keep them."""
    bound = self.optimizer.create(target)
    state = self._with_average(bound.target, bound.state)
    return Optimizer(self, state, bound.target)

  def init_state(self, params: Any) -> OptimizerState:
    """Makes the optimizer's state and an average of no update."""
    return self._with_average(params, self.optimizer.init_state(params))

  def _with_average(self, params: Any, state: OptimizerState) -> OptimizerState:
    # A copy: the train state donates every buffer once.
    average = self._trained(jax.tree.map(jnp.copy, params), params)
    return state.replace(
        param_states={
            'optimizer': state.param_states,
            'ema': average,
            'ema_count': jnp.zeros((), jnp.int32),
        }
    )

  def _trained(self, tree: Any, params: Any) -> Any:
    """Keeps what belongs to parameters that train; None elsewhere."""
    return jax.tree.map(
        lambda trains, leaf: leaf if trains else None,
        self.trainable_mask(params),
        tree,
    )

  def _inner(self, state: OptimizerState) -> OptimizerState:
    return OptimizerState(state.step, state.param_states['optimizer'])

  def apply_gradient(
      self, hyper_params: Any, params: Any, state: OptimizerState, grads: Any
  ) -> tuple[Any, OptimizerState]:
    """Updates the parameters, then the average; see the base class."""
    params, inner = self.optimizer.apply_gradient(
        hyper_params, params, self._inner(state), grads
    )
    count = state.param_states['ema_count']
    kept = jnp.minimum(self.decay, count / (count + 9))

    def average(old: jax.Array, new: jax.Array) -> jax.Array:
      return (kept * old + (1 - kept) * new).astype(old.dtype)

    param_states = {
        'optimizer': inner.param_states,
        'ema': jax.tree.map(
            average, state.param_states['ema'], self._trained(params, params)
        ),
        'ema_count': count + 1,
    }
    return params, OptimizerState(inner.step, param_states)

  def derive_logical_axes(
      self, optimizer: Optimizer, param_logical_axes: Any
  ) -> Optimizer:
    """Gives the average the axes of its parameters."""
    bound = self.optimizer.derive_logical_axes(
        Optimizer(
            self.optimizer, self._inner(optimizer.state), optimizer.target
        ),
        param_logical_axes,
    )
    param_states = {
        'optimizer': bound.state.param_states,
        'ema': self._trained(param_logical_axes, optimizer.target),
        'ema_count': None,
    }
    return Optimizer(
        self, OptimizerState(None, param_states), param_logical_axes
    )

  def state_dict(self, target: Any, state: OptimizerState) -> dict[str, Any]:
    """Returns nested dicts: the optimizer's, and beside it the average."""
    result = self.optimizer.state_dict(target, self._inner(state))
    average = serialization.to_state_dict(state.param_states['ema'])
    inner = result['state'].get('param_states', {})
    result['state']['param_states'] = {
        # Nothing is stored of what is frozen.
        'ema': state_matching.nest(stored_state.flatten(average)),
        'ema_count': state.param_states['ema_count'],
        # Plain SGD leaves no entry behind.
        **({'optimizer': inner} if inner else {}),
    }
    return result

  def restore_state(
      self, target: Any, state: OptimizerState, state_dict: Mapping[str, Any]
  ) -> tuple[Any, OptimizerState]:
    """Fills parameters, the optimizer's state and the average."""
    values = state_dict['state']
    stored = values['param_states']
    inner_values = {
        'step': values['step'],
        'param_states': stored.get('optimizer', {}),
    }
    new_target, inner = self.optimizer.restore_state(
        target, self._inner(state), {**state_dict, 'state': inner_values}
    )
    average = state.param_states['ema']
    names = serialization.to_state_dict(average)
    leaves = stored_state.flatten(stored['ema'])
    param_states = {
        'optimizer': inner.param_states,
        'ema': serialization.from_state_dict(
            average, stored_state.fill(names, leaves)
        ),
        'ema_count': stored['ema_count'],
    }
    return new_target, OptimizerState(inner.step, param_states)


def use_ema(
    stored: Mapping[str, Any], target: Mapping[str, Any]
) -> dict[str, Any]:
  """Puts the average in place of the parameters that it is of.

  For `RestoreCheckpointConfig.state_transformation_fns`, as the first of them.

  Args:
    stored: the tree of stored arrays.
    target: the state dict to restore, which does not matter here.

  Returns:
    The tree with the average as `target`.

  Raises:
    ValueError: if the checkpoint holds no average.
  """
  del target
  leaves = stored_state.flatten(stored)
  average = {
      ('target', *path[len(_STORED) :]): leaf
      for path, leaf in leaves.items()
      if path[: len(_STORED)] == _STORED
  }
  if not average:
    raise ValueError(
        'ema.use_ema: the checkpoint holds no average; it was trained without'
        ' ema.EmaOptimizer. Leave use_ema out to take its parameters.'
    )
  return state_matching.nest({**leaves, **average})
