"""Several optimizers, each for its own part of the parameters."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax
from flax.traverse_util import ModelParamTraversal
import jax
import jax.numpy as jnp
import optax

from t5x import param_patterns
from t5x.optimizer_def import Optimizer
from t5x.optimizer_def import OptimizerDef
from t5x.optimizer_def import OptimizerState

# Owner of a parameter that no traversal matches: it is frozen.
_FROZEN = -1


@flax.struct.dataclass
class _MultiHyperParams:
  """The hyper-parameters of each optimizer, in order."""

  parts: tuple[Any, ...]


class _Matched:
  """Marks a value that a traversal selects."""

  def __init__(self, value: Any):
    self.value = value


class MultiOptimizer(OptimizerDef):
  """Runs one optimizer per traversal; unmatched parameters stay frozen.

  If every part keeps one state a parameter (as Adafactor does), the states
  form one tree like the parameters, None at frozen ones, as in upstream T5X.
  Optax states are not of that form; then `param_states` is a tuple, a part
  each, without the parameters of other parts.

  Attributes:
    traversals: which parameters each optimizer owns; each owns some.
    sub_optimizers: the optimizer definitions, in the same order.
    clip_norm: largest norm of the gradients of all parts together; a part's own
      clipping sees that part alone.
  """

  def __init__(
      self,
      traversals_and_optimizers: Sequence[
          tuple[
              ModelParamTraversal | param_patterns.PatternTraversal,
              OptimizerDef,
          ]
      ],
      clip_norm: float | None = None,
  ):
    if not traversals_and_optimizers:
      raise ValueError(
          'MultiOptimizer needs at least one (ModelParamTraversal, optimizer).'
      )
    self.traversals, self.sub_optimizers = zip(*traversals_and_optimizers)
    self.clip_norm = clip_norm
    super().__init__(self.update_hyper_params())
    if any(hasattr(sub, 'set_param_axes') for sub in self.sub_optimizers):
      # Only then is the method there: it makes `params_axes` a must.
      self.set_param_axes = self._set_param_axes

  def _set_param_axes(self, param_logical_axes: Any) -> None:
    for sub in self.sub_optimizers:
      if hasattr(sub, 'set_param_axes'):
        sub.set_param_axes(param_logical_axes)
    self.hyper_params = self.update_hyper_params()

  def update_hyper_params(self, **overrides: Any) -> _MultiHyperParams:
    """Replaces hyper-parameters of all parts alike."""
    return _MultiHyperParams(
        tuple(
            sub.update_hyper_params(**overrides) for sub in self.sub_optimizers
        )
    )

  def _owners(self, params: Any) -> Any:
    """Returns a tree like `params` of the number of the owning optimizer.

    Raises:
      ValueError: if a traversal matches nothing, or two the same parameter.
    """
    names = param_patterns.param_names(params)
    treedef = jax.tree.structure(params)
    owners = [_FROZEN] * len(names)
    for owner, traversal in enumerate(self.traversals):
      marked = treedef.flatten_up_to(traversal.update(_Matched, params))
      matched = [
          i for i, leaf in enumerate(marked) if isinstance(leaf, _Matched)
      ]
      self._check_matches(owner, len(matched), names)
      for number in matched:
        if owners[number] != _FROZEN:
          raise ValueError(
              f'Optimizers {owners[number]} and {owner} of the MultiOptimizer'
              f' both match {names[number]!r}; make their traversals exclusive.'
          )
        owners[number] = owner
    return jax.tree.unflatten(treedef, owners)

  def _check_matches(
      self, owner: int, num_matched: int, names: Sequence[str]
  ) -> None:
    """Refuses a traversal without a parameter, and patterns without one."""
    traversal = self.traversals[owner]
    field = f'Optimizer {owner} of the MultiOptimizer'
    if isinstance(traversal, param_patterns.PatternTraversal):
      for pattern in traversal.patterns:
        param_patterns.find(names, pattern, field)
    if not num_matched:
      raise ValueError(
          f'{field}: its traversal matches none of the {len(names)} parameters,'
          f' such as {names[:3]}. Flax puts a slash in front of the names; a'
          ' param_patterns.PatternTraversal tells which pattern is misspelt.'
      )

  def check_names(self, names: Sequence[str]) -> None:
    """Checks the parts' own patterns, which they may share, with all names."""
    for sub in self.sub_optimizers:
      sub.check_names(names)

  def trainable_mask(self, params: Any) -> Any:
    """Tells which parameters a traversal matches and its optimizer trains."""
    owners = self._owners(params)
    masks = [sub.trainable_mask(params) for sub in self.sub_optimizers]
    return jax.tree.map(
        lambda owner, *trains: owner != _FROZEN and trains[owner],
        owners,
        *masks,
    )

  def init_state(self, params: Any) -> OptimizerState:
    """Makes the states of all parts; see the class."""
    owners = self._owners(params)
    parts = tuple(
        sub.init_state(_part(owners, i, params)).param_states
        for i, sub in enumerate(self.sub_optimizers)
    )
    return OptimizerState(jnp.zeros((), jnp.int32), _join(owners, parts))

  def apply_gradient(
      self, hyper_params: Any, params: Any, state: OptimizerState, grads: Any
  ) -> tuple[Any, OptimizerState]:
    """Updates each part with its optimizer; see the base class."""
    owners = self._owners(params)
    if self.clip_norm is not None:
      grads = self._clipped(grads, params)
    states = self._split(owners, state.param_states)
    new_params, new_states = params, []
    for i, sub in enumerate(self.sub_optimizers):
      part, sub_state = sub.apply_gradient(
          hyper_params.parts[i],
          _part(owners, i, params),
          OptimizerState(state.step, states[i]),
          _part(owners, i, grads),
      )
      new_states.append(sub_state.param_states)
      new_params = jax.tree.map(
          lambda owner, old, new, i=i: new if owner == i else old,
          owners,
          new_params,
          part,
      )
    param_states = _join(owners, tuple(new_states))
    return new_params, OptimizerState(state.step + 1, param_states)

  def _clipped(self, grads: Any, params: Any) -> Any:
    """Scales the gradients of what trains down to `clip_norm`."""
    trained = jax.tree.map(
        lambda trains, grad: grad if trains else None,
        self.trainable_mask(params),
        grads,
    )
    clip = optax.clip_by_global_norm(self.clip_norm)
    return clip.update(trained, clip.init(trained))[0]

  def derive_logical_axes(
      self, optimizer: Optimizer, param_logical_axes: Any
  ) -> Optimizer:
    """Lets each part derive the axes of its states."""
    owners = self._owners(optimizer.target)
    states = self._split(owners, optimizer.state.param_states)
    parts = tuple(
        sub.derive_logical_axes(
            Optimizer(
                sub,
                OptimizerState(optimizer.state.step, states[i]),
                _part(owners, i, optimizer.target),
            ),
            _part(owners, i, param_logical_axes),
        ).state.param_states
        for i, sub in enumerate(self.sub_optimizers)
    )
    state = OptimizerState(None, _join(owners, parts))
    return Optimizer(self, state, param_logical_axes)

  def state_dict(self, target: Any, state: OptimizerState) -> dict[str, Any]:
    """Returns nested dicts; a tuple of parts is a dict of their numbers."""
    if not isinstance(state.param_states, _Parts):
      return super().state_dict(target, state)
    result = super().state_dict(target, OptimizerState(state.step, None))
    dicts = [
        sub.state_dict({}, OptimizerState(state.step, part))
        for sub, part in zip(self.sub_optimizers, state.param_states)
    ]
    # Parts without any number (plain SGD) leave no entry behind.
    result['state']['param_states'] = {
        str(i): part['state']['param_states']
        for i, part in enumerate(dicts)
        if part['state']['param_states']
    }
    return result

  def restore_state(
      self, target: Any, state: OptimizerState, state_dict: Mapping[str, Any]
  ) -> tuple[Any, OptimizerState]:
    """Fills parameters and the states of all parts."""
    if not isinstance(state.param_states, _Parts):
      return super().restore_state(target, state, state_dict)
    values = state_dict['state']
    new_target, new_state = super().restore_state(
        target,
        OptimizerState(state.step, None),
        {**state_dict, 'state': {'step': values['step'], 'param_states': None}},
    )
    parts = [
        sub.restore_state(
            {},
            OptimizerState(state.step, part),
            {
                'target': {},
                'state': {
                    'step': values['step'],
                    'param_states': values['param_states'].get(str(i), {}),
                },
            },
        )[1].param_states
        for i, (sub, part) in enumerate(
            zip(self.sub_optimizers, state.param_states)
        )
    ]
    return new_target, new_state.replace(param_states=_Parts(parts))

  def _split(self, owners: Any, param_states: Any) -> Sequence[Any]:
    """Undoes `_join`: the states of each optimizer."""
    if isinstance(param_states, _Parts):
      return param_states
    return [
        _part(owners, i, param_states) for i in range(len(self.sub_optimizers))
    ]


@jax.tree_util.register_pytree_with_keys_class
class _Parts(tuple):
  """The states of several optimizers, not one tree like the parameters."""

  def tree_flatten_with_keys(self):
    """Lists the parts by number."""
    keys = map(jax.tree_util.SequenceKey, range(len(self)))
    return tuple(zip(keys, self)), None

  @classmethod
  def tree_unflatten(cls, _, children):
    """Makes the tuple again."""
    return cls(children)


def _part(owners: Any, number: int, tree: Any) -> Any:
  """Keeps what one optimizer owns; None elsewhere (no leaf, for JAX)."""
  return jax.tree.map(
      lambda owner, leaf: leaf if owner == number else None, owners, tree
  )


def _join(owners: Any, parts: tuple[Any, ...]) -> Any:
  """Joins states to one tree like the parameters, or else to `_Parts`."""
  treedef = jax.tree.structure(owners)
  try:
    columns = [treedef.flatten_up_to(part) for part in parts]
  except ValueError:
    # The states are not one a parameter: optax's.
    return _Parts(parts)
  leaves = [
      None if owner == _FROZEN else columns[owner][i]
      for i, owner in enumerate(jax.tree.leaves(owners))
  ]
  return jax.tree.unflatten(treedef, leaves)
