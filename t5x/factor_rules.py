"""Which dimensions of a parameter Adafactor factors, and who says so.

A rule is a tuple with one `FactorDim` a dimension, or `HEURISTIC_RULE`.
"""

from collections.abc import Mapping, Sequence
import enum
from typing import Any, NamedTuple

import jax
import numpy as np

from t5x import param_patterns


class FactorDim(enum.Enum):
  """What Adafactor does with a dimension.

  BATCH dimensions hold separate parameters (a stack of layers): no mean goes
  over them. `v_row` keeps ROW and `v_col` keeps COLUMN dimensions.
  """

  NONE = 'none'
  BATCH = 'batch'
  ROW = 'row'
  COLUMN = 'column'


class HeuristicRule(enum.Enum):
  """The type of `HEURISTIC_RULE`."""

  TOKEN = 'heuristic'


# Factors the two largest dimensions, if both are large enough.
HEURISTIC_RULE = HeuristicRule.TOKEN

FactorRule = tuple[FactorDim, ...] | HeuristicRule


class HParamMap:
  """A hyper-parameter by parameter name: the first regex found in it wins."""

  def __init__(self, rules: Sequence[tuple[str, Any]]):
    self._rules = [
        (param_patterns.compile_pattern(pattern), value)
        for pattern, value in rules
    ]

  def check(self, names: Sequence[str], field: str) -> None:
    """Raises ValueError if a pattern is found in none of the names."""
    for pattern, _ in self._rules:
      param_patterns.find(names, pattern.pattern, field)

  def __getitem__(self, name: str) -> Any:
    for pattern, value in self._rules:
      if pattern.search(name):
        return value
    patterns = [pattern.pattern for pattern, _ in self._rules]
    raise KeyError(f'No rule for parameter {name!r}; rules are {patterns}.')

  def __call__(self, params: Any) -> Any:
    """Returns a tree like `params` of the values."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: self[param_name(path)], params
    )


class Factoring(NamedTuple):
  """A rule resolved for one shape.

  Attributes:
    averaged: dimensions that means go over: all but BATCH.
    rows: dimensions only `v_row` keeps; empty if not factored.
    columns: dimensions only `v_col` keeps; empty if not factored.
  """

  averaged: tuple[int, ...]
  rows: tuple[int, ...] = ()
  columns: tuple[int, ...] = ()


def param_name(path: Any) -> str:
  """Returns the name of a parameter from its path in the tree."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def standard_logical_factor_rules() -> dict[str, FactorDim]:
  """Returns what T5's logical axes are to Adafactor."""
  columns = (
      'vocab',
      'mlp',
      'heads',
      'kv',
      'joined_kv',
      'q_wi_fused',
      'o_wo_fused',
      'multiquery_heads',
      'kv_fused',
      'mlp_activations',
  )
  return {
      'embed': FactorDim.ROW,
      **dict.fromkeys(columns, FactorDim.COLUMN),
      'relpos_buckets': FactorDim.NONE,
      'layer_norm_scale': FactorDim.NONE,
      'layers': FactorDim.BATCH,
      'stack': FactorDim.BATCH,
  }


def rule_of_axes(
    name: str,
    axes: Sequence[str | None],
    logical_factor_rules: Mapping[str, FactorDim],
) -> tuple[FactorDim, ...]:
  """Returns the rule of a parameter from its logical axes.

  Args:
    name: the parameter, for errors.
    axes: its logical axes.
    logical_factor_rules: what each logical axis is.

  Raises:
    ValueError: for an axis without a rule, or unfactored dimensions beside
      factored ones.
  """
  unknown = [axis for axis in axes if axis not in logical_factor_rules]
  if unknown:
    raise ValueError(
        f'No logical factor rule for axes {unknown} of {name!r}; rules are for'
        f' {sorted(logical_factor_rules)}.'
    )
  rule = tuple(logical_factor_rules[axis] for axis in axes)
  if FactorDim.ROW in rule and FactorDim.COLUMN in rule:
    _check_no_plain_dims(name, rule)
    return rule
  # Rows alone have nothing to be factored against: only BATCH remains.
  return tuple(
      dim if dim is FactorDim.BATCH else FactorDim.NONE for dim in rule
  )


def resolve(
    name: str,
    shape: tuple[int, ...],
    rule: FactorRule | None,
    min_dim_size: int,
) -> Factoring:
  """Resolves a rule for one shape.

  Args:
    name: the parameter, for errors.
    shape: its shape.
    rule: its rule; None if nobody gave one.
    min_dim_size: the heuristic leaves smaller dimensions unfactored.

  Raises:
    ValueError: for more than two dimensions without a rule, a rule of another
      rank, or unfactored dimensions beside factored ones.
  """
  if rule is None:
    if len(shape) > 2:
      raise ValueError(
          f'Parameter {name!r} of shape {shape} has more than two dimensions:'
          ' Adafactor needs a rule for it (factor_map or logical_factor_rules).'
      )
    return _heuristic(shape, min_dim_size)
  if rule is HEURISTIC_RULE:
    return _heuristic(shape, min_dim_size)
  rule = tuple(rule)
  if len(rule) != len(shape):
    raise ValueError(
        f'Factor rule {rule} for {name!r} has rank {len(rule)}, the parameter'
        f' has shape {shape}.'
    )
  if len(shape) <= 2 and FactorDim.BATCH not in rule:
    return _heuristic(shape, min_dim_size)
  averaged = _where(rule, FactorDim.NONE, FactorDim.ROW, FactorDim.COLUMN)
  rows = _where(rule, FactorDim.ROW)
  columns = _where(rule, FactorDim.COLUMN)
  if not (rows and columns):
    return Factoring(averaged)
  _check_no_plain_dims(name, rule)
  return Factoring(averaged, rows, columns)


def _where(rule: tuple[FactorDim, ...], *dims: FactorDim) -> tuple[int, ...]:
  return tuple(i for i, dim in enumerate(rule) if dim in dims)


def _check_no_plain_dims(name: str, rule: tuple[FactorDim, ...]) -> None:
  if FactorDim.NONE in rule:
    raise ValueError(
        f'Factor rule {rule} for {name!r} mixes NONE with ROW and COLUMN; mark'
        ' every dimension of a factored parameter ROW, COLUMN or BATCH.'
    )


def _heuristic(shape: tuple[int, ...], min_dim_size: int) -> Factoring:
  """Factors the two largest dimensions, the largest as column."""
  averaged = tuple(range(len(shape)))
  if len(shape) < 2:
    return Factoring(averaged)
  *_, second, largest = np.argsort(shape, kind='stable').tolist()
  if shape[second] < min_dim_size:
    return Factoring(averaged)
  return Factoring(averaged, (second,), (largest,))
