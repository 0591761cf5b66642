"""Adafactor, the optimizer of T5: second moments as outer products.

Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory
Cost" (2018, RefA); arguments and state follow T5X's `t5x/adafactor.py` (RefB).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax

from t5x import factor_rules
from t5x.factor_rules import HEURISTIC_RULE
from t5x.factor_rules import FactorDim
from t5x.factor_rules import Factoring
from t5x.factor_rules import FactorRule
from t5x.factor_rules import HeuristicRule
from t5x.factor_rules import HParamMap
from t5x.factor_rules import standard_logical_factor_rules
from t5x.optimizer_def import Optimizer
from t5x.optimizer_def import OptimizerDef
from t5x.optimizer_def import OptimizerState

__all__ = [
    'Adafactor',
    'FactorDim',
    'FactorRule',
    'HEURISTIC_RULE',
    'HParamMap',
    'HeuristicRule',
    'standard_logical_factor_rules',
]

FactorMap = HParamMap | Mapping[str, FactorRule]


@flax.struct.dataclass
class _AdafactorHyperParams:
  """The arguments of `Adafactor`, without the momentum's dtype."""

  learning_rate: Any
  factored: bool
  multiply_by_parameter_scale: bool | HParamMap
  beta1: float | None
  decay_rate: float
  step_offset: int
  clipping_threshold: float | None
  weight_decay_rate: float | None
  min_dim_size_to_factor: int
  epsilon1: float
  epsilon2: float
  factor_map: FactorMap | None = None
  logical_factor_rules: Mapping[str, FactorDim] | None = None
  weight_decay_rate_lr_exponent: float | None = None
  global_norm_clip_threshold: float | None = None
  max_parameter_scale: float | None = None
  skip_nan_updates: bool = False


@flax.struct.dataclass
class _AdafactorParamState:
  """Moments of one parameter; a slot it does not use is zeros of shape (1,).

  Attributes:
    v_row: second moment, mean over COLUMN dimensions.
    v_col: second moment, mean over ROW dimensions.
    v: second moment of a parameter that is not factored.
    m: momentum.
  """

  v_row: Any
  v_col: Any
  v: Any
  m: Any


class Adafactor(OptimizerDef):
  """Adafactor with T5X's rules of factoring.

  Attributes:
    dtype_momentum: dtype of the momentum.
  """

  hyper_params: _AdafactorHyperParams

  def __init__(
      self,
      learning_rate: float | None = None,
      factored: bool = True,
      multiply_by_parameter_scale: bool | HParamMap = True,
      beta1: float | None = None,
      decay_rate: float = 0.8,
      step_offset: int = 0,
      clipping_threshold: float | None = 1.0,
      weight_decay_rate: float | None = None,
      min_dim_size_to_factor: int = 128,
      epsilon1: float = 1e-30,
      epsilon2: float = 1e-3,
      dtype_momentum: Any = jnp.float32,
      factor_map: FactorMap | None = None,
      logical_factor_rules: Mapping[str, FactorDim] | None = None,
      weight_decay_rate_lr_exponent: float | None = None,
      global_norm_clip_threshold: float | None = None,
      max_parameter_scale: float | None = None,
      skip_nan_updates: bool = False,
  ):
    """Makes the definition.

    Args:
      learning_rate: overridden by the trainer's, step by step.
      factored: whether to factor second moments at all.
      multiply_by_parameter_scale: whether the step is relative to the RMS of
        the parameter, for all parameters or by name.
      beta1: decay of the momentum, None for no momentum.
      decay_rate: exponent of the second moments' decay.
      step_offset: the step at which this run (fine-tuning) started.
      clipping_threshold: the largest RMS of an update, None for any.
      weight_decay_rate: share of the parameter taken off each step.
      min_dim_size_to_factor: the heuristic's smallest factored dimension.
      epsilon1: added to the squared gradient.
      epsilon2: the smallest scale of a parameter.
      dtype_momentum: dtype of the momentum.
      factor_map: factor rules by name.
      logical_factor_rules: factor rules by logical axis.
      weight_decay_rate_lr_exponent: multiplies the weight decay by this power
        of the learning rate.
      global_norm_clip_threshold: the largest norm of all gradients together.
      max_parameter_scale: the largest scale of a parameter.
      skip_nan_updates: whether numbers that would become NaN stay as they are.

    Raises:
      ValueError: for factor rules with `factored=False`.
      TypeError: for a parameter scale that is neither bool nor HParamMap.
    """
    if not factored and (factor_map is not None or logical_factor_rules):
      raise ValueError('Adafactor has factor rules but factored=False.')
    if not isinstance(multiply_by_parameter_scale, (bool, HParamMap)):
      raise TypeError(
          'multiply_by_parameter_scale must be a bool or an HParamMap, not'
          f' {type(multiply_by_parameter_scale).__name__}.'
      )
    super().__init__(
        _AdafactorHyperParams(
            learning_rate,
            factored,
            multiply_by_parameter_scale,
            beta1,
            decay_rate,
            step_offset,
            clipping_threshold,
            weight_decay_rate,
            min_dim_size_to_factor,
            epsilon1,
            epsilon2,
            factor_map,
            logical_factor_rules,
            weight_decay_rate_lr_exponent,
            global_norm_clip_threshold,
            max_parameter_scale,
            skip_nan_updates,
        )
    )
    self.dtype_momentum = jax.dtypes.canonicalize_dtype(dtype_momentum)

  def set_param_axes(self, param_logical_axes: Any) -> None:
    """Derives the factor rules by name from the parameters' logical axes."""
    rules = self.hyper_params.logical_factor_rules
    if rules is None:
      return
    leaves = jax.tree_util.tree_leaves_with_path(
        param_logical_axes, is_leaf=lambda node: isinstance(node, tuple)
    )
    factor_map = {}
    for path, axes in leaves:
      name = factor_rules.param_name(path)
      factor_map[name] = factor_rules.rule_of_axes(name, tuple(axes), rules)
    self.hyper_params = self.hyper_params.replace(factor_map=factor_map)

  def check_names(self, names: Sequence[str]) -> None:
    """Checks the patterns of parameter scale and factor map."""
    for field in ('multiply_by_parameter_scale', 'factor_map'):
      value = getattr(self.hyper_params, field)
      if isinstance(value, HParamMap):
        value.check(names, f'Adafactor.{field}')

  def init_state(self, params: Any) -> OptimizerState:
    """Makes zero moments."""

    def init(path: Any, param: Any) -> _AdafactorParamState:
      factoring = self._factoring(path, param)
      unused = jnp.zeros((1,), jnp.float32)
      v_row, v_col, v, m = unused, unused, unused, unused
      if factoring.rows:
        v_row = jnp.zeros(_without(param.shape, factoring.columns))
        v_col = jnp.zeros(_without(param.shape, factoring.rows))
      else:
        v = jnp.zeros(param.shape, jnp.float32)
      if self.hyper_params.beta1 is not None:
        m = jnp.zeros(param.shape, self.dtype_momentum)
      return _AdafactorParamState(v_row, v_col, v, m)

    states = jax.tree_util.tree_map_with_path(init, params)
    return OptimizerState(jnp.zeros((), jnp.int32), states)

  def apply_gradient(
      self,
      hyper_params: _AdafactorHyperParams,
      params: Any,
      state: OptimizerState,
      grads: Any,
  ) -> tuple[Any, OptimizerState]:
    """Updates parameters; see the base class.

    Raises:
      ValueError: without a learning rate.
    """
    if hyper_params.learning_rate is None:
      raise ValueError('Adafactor has no learning rate.')
    threshold = hyper_params.global_norm_clip_threshold
    if threshold is not None:
      norm = optax.tree.norm(grads)
      scale = jnp.minimum(1.0, threshold / norm)
      grads = jax.tree.map(lambda grad: grad * scale, grads)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    updated = [
        self._update(hyper_params, state.step, path, param, param_state, grad)
        for (path, param), param_state, grad in zip(
            leaves,
            treedef.flatten_up_to(state.param_states),
            treedef.flatten_up_to(grads),
        )
    ]
    new_params = treedef.unflatten([param for param, _ in updated])
    new_states = treedef.unflatten([moments for _, moments in updated])
    return new_params, OptimizerState(state.step + 1, new_states)

  def derive_logical_axes(
      self, optimizer: Optimizer, param_logical_axes: Any
  ) -> Optimizer:
    """Full-size moments take the parameter's axes, others are replicated."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(optimizer.target)
    states = []
    for (path, param), axes in zip(
        leaves, treedef.flatten_up_to(param_logical_axes)
    ):
      factored = bool(self._factoring(path, param).rows)
      states.append(
          _AdafactorParamState(
              v_row=None,
              v_col=None,
              v=None if factored else axes,
              m=None if self.hyper_params.beta1 is None else axes,
          )
      )
    state = OptimizerState(None, treedef.unflatten(states))
    return Optimizer(self, state, param_logical_axes)

  def _factoring(self, path: Any, param: Any) -> Factoring:
    hyper_params = self.hyper_params
    if not hyper_params.factored:
      return Factoring(tuple(range(len(param.shape))))
    name = factor_rules.param_name(path)
    factor_map = hyper_params.factor_map
    rule = None if factor_map is None else factor_map[name]
    min_dim_size = hyper_params.min_dim_size_to_factor
    return factor_rules.resolve(name, tuple(param.shape), rule, min_dim_size)

  def _update(
      self,
      hyper_params: _AdafactorHyperParams,
      step: Any,
      path: Any,
      param: Any,
      state: _AdafactorParamState,
      grad: Any,
  ) -> tuple[Any, _AdafactorParamState]:
    """Returns one parameter and its moments after a step."""
    factoring = self._factoring(path, param)
    axes = factoring.averaged
    grad = grad.astype(jnp.float32)
    time = jnp.asarray(step - hyper_params.step_offset + 1, jnp.float32)
    decay = 1.0 - time**-hyper_params.decay_rate
    update, new_state = _precondition(
        grad, state, factoring, decay, hyper_params.epsilon1
    )
    if hyper_params.clipping_threshold is not None:
      rms = _rms(update, axes)
      update /= jnp.maximum(1.0, rms / hyper_params.clipping_threshold)
    scaled = hyper_params.multiply_by_parameter_scale
    if isinstance(scaled, HParamMap):
      scaled = scaled[factor_rules.param_name(path)]
    learning_rate = hyper_params.learning_rate
    if scaled:
      update *= learning_rate * jnp.clip(
          _rms(param.astype(jnp.float32), axes),
          hyper_params.epsilon2,
          hyper_params.max_parameter_scale,
      )
    else:
      update *= learning_rate
    if hyper_params.beta1 is not None:
      beta1 = hyper_params.beta1
      update = beta1 * state.m.astype(jnp.float32) + (1.0 - beta1) * update
      new_state = new_state.replace(m=update.astype(self.dtype_momentum))
    new_param = param.astype(jnp.float32) * _kept_share(hyper_params) - update
    new_param = new_param.astype(param.dtype)
    if hyper_params.skip_nan_updates:
      new_param, new_state = jax.tree.map(
          lambda new, old: jnp.where(jnp.isnan(new), old, new),
          (new_param, new_state),
          (param, state),
      )
    return new_param, new_state


def _precondition(
    grad: Any,
    state: _AdafactorParamState,
    factoring: Factoring,
    decay: Any,
    epsilon: float,
) -> tuple[Any, _AdafactorParamState]:
  """Divides a gradient by the root of its second moment (RefA, algorithm 4)."""
  squared = jnp.square(grad) + epsilon
  if not factoring.rows:
    v = decay * state.v + (1.0 - decay) * squared
    return grad * jax.lax.rsqrt(v), state.replace(v=v)
  rows, columns = factoring.rows, factoring.columns
  v_row = decay * state.v_row + (1.0 - decay) * squared.mean(columns)
  v_col = decay * state.v_col + (1.0 - decay) * squared.mean(rows)
  row = jnp.expand_dims(v_row, columns)
  # Each factor takes its own root: their product can leave float32.
  row_factor = jax.lax.rsqrt(row / row.mean(rows, keepdims=True))
  col_factor = jnp.expand_dims(jax.lax.rsqrt(v_col), rows)
  update = grad * row_factor * col_factor
  return update, state.replace(v_row=v_row, v_col=v_col)


def _kept_share(hyper_params: _AdafactorHyperParams) -> Any:
  """Returns what weight decay leaves of a parameter."""
  rate = hyper_params.weight_decay_rate
  if rate is None:
    return 1.0
  if hyper_params.weight_decay_rate_lr_exponent is not None:
    exponent = hyper_params.weight_decay_rate_lr_exponent
    rate *= hyper_params.learning_rate**exponent
  return 1.0 - rate


def _rms(values: Any, axes: tuple[int, ...]) -> Any:
  """Root mean square over some axes, which stay with size 1."""
  return jnp.sqrt(jnp.mean(jnp.square(values), axes, keepdims=True))


def _without(shape: tuple[int, ...], dims: tuple[int, ...]) -> tuple[int, ...]:
  return tuple(size for i, size in enumerate(shape) if i not in dims)
