"""AdamW with frozen parameters, rate multipliers and layer-wise decay.

RefA: the published recipes of "Pixel Aligned Language Models" (arXiv
2312.09237); RefB: decoupled weight decay (arXiv 1711.05101); RefC: layer-wise
learning rates as in BEiT (arXiv 2106.08254).

Parameters are named by their path joined with slashes, and those of a scanned
stack layer by layer, with their names in the unrolled form: a recipe means the
same in both. Every pattern of a recipe is checked against the parameter tree,
so that a misspelt one fails before the first step instead of training what
should be frozen.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
import re
from typing import Any
import warnings

import jax
import jax.numpy as jnp
import optax

from pixel_llm import layer_layout
from t5x import optimizers
from t5x import param_patterns


@dataclasses.dataclass(frozen=True)
class LayerDecay:
  """Smaller rates for earlier blocks of a tower (RefC).

  The factor is rate^(num_layers + 1 - id): id 0 for the stem, i + 1 for block
  i, and num_layers + 1 (factor 1) for everything else.

  Attributes:
    num_layers: blocks of the tower.
    rate: factor between neighbouring blocks.
    block_prefix: regular expression from the start of the name to the block's
      number.
    stems: parts of names, matched anywhere: as in the original a position
      table of another tower counts as stem too.
  """

  num_layers: int
  rate: float = 0.8
  block_prefix: str = r'git_backbone/blocks\.'
  stems: tuple[str, ...] = ('patch_embed.proj', 'pos_embed')

  def __post_init__(self):
    param_patterns.compile_pattern(self.block_prefix)

  def layer_id(self, name: str) -> int:
    """Gives a parameter's layer, 0 to num_layers + 1.

    Args:
      name: parameter name.

    Returns:
      The layer.

    Raises:
      ValueError: if the name's block is not below `num_layers`.
    """
    if any(stem in name for stem in self.stems):
      return 0
    found = re.match(f'(?:{self.block_prefix})([0-9]+)', name)
    if not found:
      return self.num_layers + 1
    block = int(found.groups()[-1])
    if block >= self.num_layers:
      raise ValueError(
          f'Parameter {name!r} is in block {block}, but LayerDecay has'
          f' num_layers={self.num_layers}: set it to the depth of the tower.'
      )
    return block + 1

  def factor(self, name: str) -> float:
    """Gives the factor of a parameter's rate."""
    return self.rate ** (self.num_layers + 1 - self.layer_id(name))

  def check(self, names: Sequence[str]):
    """Checks that prefix and stems match something.

    Args:
      names: all parameter names.

    Raises:
      ValueError: if they do not, or a block's number is too large.
    """
    ids = {self.layer_id(name) for name in names}
    if not ids & set(range(1, self.num_layers + 1)):
      raise ValueError(
          f'LayerDecay: block_prefix {self.block_prefix!r} matches no'
          ' parameter. Nearest:'
          f' {param_patterns.nearest(self.block_prefix, names)}.'
      )
    for stem in self.stems:
      if not any(stem in name for name in names):
        raise ValueError(
            f'LayerDecay: stem {stem!r} is part of no parameter name.'
            f' Nearest: {param_patterns.nearest(stem, names)}.'
        )


@dataclasses.dataclass(frozen=True)
class ParamRow:
  """How one parameter trains.

  Attributes:
    name: path joined with slashes.
    shape: its shape.
    count: its number of values.
    trained: whether it trains.
    lr_factor: factor of its learning rate.
    decays: whether weight decay applies.
  """

  name: str
  shape: tuple[int, ...]
  count: int
  trained: bool
  lr_factor: float
  decays: bool


def _decays(num_axes: int) -> bool:
  """Tells whether weight decay applies: one dimension is exempt (RefA)."""
  return num_axes != 1


class ParamGroupOptimizer(optimizers.OptaxWrapper):
  """AdamW (RefB) whose settings depend on the parameter's name.

  The learning rate stands in the optax transformation; the one T5X passes each
  step is for the log only. Weight decay skips parameters with one dimension and
  nothing else: position tables and learned tokens decay (RefA). Rate factors
  scale the decay too.
  """

  def __init__(
      self,
      learning_rate: float | Callable[[Any], Any],
      *,
      b1: float = 0.9,
      b2: float = 0.999,
      eps: float = 1e-8,
      weight_decay: float = 0.0,
      frozen: Sequence[str] = (),
      lr_multipliers: Sequence[tuple[str, float]] = (),
      layer_decay: LayerDecay | None = None,
      clip_norm: float | None = None,
      frozen_dtype: Any = None,
  ):
    """Makes the optimizer.

    Args:
      learning_rate: the rate, or a function from the step to it.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      weight_decay: decoupled weight decay, times the rate.
      frozen: regular expressions; parameters that one matches anywhere in their
        name do not train and have no optimizer state.
      lr_multipliers: pairs of such an expression and a factor of the rate.
      layer_decay: layer-wise rates; they multiply with `lr_multipliers`.
      clip_norm: largest global norm of the gradients, None for no limit.
      frozen_dtype: type in which the train state keeps frozen parameters, such
        as 'bfloat16'; None keeps theirs.
    """
    self.frozen = tuple(frozen)
    self.lr_multipliers = tuple((p, float(f)) for p, f in lr_multipliers)
    self.layer_decay = layer_decay
    self.weight_decay = weight_decay
    self.frozen_dtype = (
        None if frozen_dtype is None else jnp.dtype(frozen_dtype)
    )
    for pattern in (*self.frozen, *dict(self.lr_multipliers)):
      param_patterns.compile_pattern(pattern)
    steps = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
    steps += [
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.stateless(self._decay_and_scale),
        optax.scale_by_learning_rate(learning_rate),
    ]
    super().__init__(optax.chain(*steps))

  def lr_factor(self, name: str) -> float:
    """Gives the factor of a parameter's learning rate."""
    factor = self.layer_decay.factor(name) if self.layer_decay else 1.0
    for pattern, multiplier in self.lr_multipliers:
      if re.search(pattern, name):
        factor *= multiplier
    return factor

  def _decay_and_scale(self, updates: Any, params: Any) -> Any:
    """Adds weight decay and applies each parameter's rate factor."""
    layers = layer_layout.layer_names(params)

    def one(path, update, param):
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      is_scanned = layers[name] != (name,)
      if self.weight_decay and _decays(param.ndim - is_scanned):
        update = update + self.weight_decay * param
      factors = [self.lr_factor(layer) for layer in layers[name]]
      if all(factor == 1.0 for factor in factors):
        return update
      if len(set(factors)) == 1:
        return factors[0] * update
      return layer_layout.per_layer(factors, update) * update

    return jax.tree.map_with_path(one, updates, params)

  def _frozen_names(self, params: Any) -> Mapping[str, str]:
    """Checks all patterns and returns the frozen names with their pattern."""
    names = [n for ns in layer_layout.layer_names(params).values() for n in ns]
    frozen = param_patterns.match(
        names, self.frozen, 'ParamGroupOptimizer.frozen'
    )
    if len(frozen) == len(names):
      raise ValueError(
          f'ParamGroupOptimizer.frozen={self.frozen} freezes all'
          f' {len(names)} parameters; leave some to train.'
      )
    multiplied = param_patterns.match(
        names,
        [pattern for pattern, _ in self.lr_multipliers],
        'ParamGroupOptimizer.lr_multipliers',
    )
    trained = {p for name, p in multiplied.items() if name not in frozen}
    for pattern in dict(self.lr_multipliers):
      if pattern not in trained:
        warnings.warn(
            f'ParamGroupOptimizer.lr_multipliers: {pattern!r} matches frozen'
            ' parameters only and has no effect.',
            stacklevel=2,
        )
    if self.layer_decay:
      self.layer_decay.check(names)
    return frozen

  def trainable_mask(self, params: Any) -> Any:
    """Tells which parameters train.

    Args:
      params: parameters, or anything of their structure with shapes.

    Returns:
      A tree of bool.

    Raises:
      ValueError: if a pattern matches nothing, two match one parameter, nothing
        is left to train, or some layers of a scanned parameter are frozen and
        others not.
    """
    frozen = self._frozen_names(params)
    layers = layer_layout.layer_names(params)
    flags = []
    for name in param_patterns.param_names(params):
      trained = [layer not in frozen for layer in layers[name]]
      if len(set(trained)) > 1:
        kept = layers[name][trained.index(False)]
        raise ValueError(
            f'ParamGroupOptimizer.frozen: pattern {frozen[kept]!r} freezes'
            f' {kept!r}, but {layers[name][trained.index(True)]!r} trains. One'
            ' array holds both, because the stack is scanned: freeze all layers'
            ' alike, or set scan_layers of the tower to False.'
        )
      flags.append(trained[0])
    return jax.tree.unflatten(jax.tree.structure(params), flags)

  def create(self, target: Any) -> optimizers.Optimizer:
    """Binds to parameters; see `frozen_dtype`."""
    if self.frozen_dtype is not None:
      target = jax.tree.map(
          lambda trains, x: x
          if trains or not jnp.issubdtype(x.dtype, jnp.floating)
          else x.astype(self.frozen_dtype),
          self.trainable_mask(target),
          target,
      )
    return super().create(target)

  def table(self, params: Any) -> list[ParamRow]:
    """Tells how each parameter trains, for a dry run.

    Args:
      params: parameters or their shapes (`jax.eval_shape`).

    Returns:
      A row a parameter, and one a layer of scanned ones, in the tree's order.
    """
    frozen = self._frozen_names(params)
    params = layer_layout.to_unrolled(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    )
    return [
        ParamRow(
            name=name,
            shape=tuple(param.shape),
            count=math.prod(param.shape),
            trained=name not in frozen,
            lr_factor=self.lr_factor(name),
            decays=bool(self.weight_decay) and _decays(len(param.shape)),
        )
        for name, param in zip(
            param_patterns.param_names(params), jax.tree.leaves(params)
        )
    ]


def format_table(rows: Sequence[ParamRow]) -> str:
  """Formats a table of parameters as text, with the totals at the end."""
  width = max((len(row.name) for row in rows), default=0)
  lines = []
  for row in rows:
    if row.trained:
      decay = 'decays' if row.decays else 'no decay'
      how = f'trained, rate x {row.lr_factor:g}, {decay}'
    else:
      how = 'frozen'
    lines.append(
        f'{row.name:<{width}}  {str(row.shape):<20} {row.count:>13,}  {how}'
    )
  total = sum(row.count for row in rows)
  trained = sum(row.count for row in rows if row.trained)
  lines.append(f'{trained:,} of {total:,} values are trained.')
  return '\n'.join(lines)
