"""Small mends to a model's parameters: vocabulary sizes and axis names."""

from collections.abc import Mapping, Sequence
import re
from typing import Any

from flax import traverse_util
import flax.core
from flax.linen import partitioning as flax_partitioning


def round_vocab_size_to_multiple(vocabulary: Any, divisor: int = 128) -> int:
  """Returns the vocabulary's size rounded up to a multiple of `divisor`."""
  size = vocabulary.vocab_size
  return -(-size // divisor) * divisor


def override_params_axes_names(
    model_variables: Mapping[str, Any],
    params_axes_names_override: Sequence[tuple[str, Sequence[str | None]]] = (),
) -> Mapping[str, Any]:
  """Renames the logical axes of parameters.

  Args:
    model_variables: collections with `params` and `params_axes`.
    params_axes_names_override: (regex of a parameter's full name, its axes);
      the first that matches the whole name wins.

  Returns:
    The variables with changed `params_axes`.

  Raises:
    ValueError: without `params_axes`, or if the axes have another rank than
      the parameter.
  """
  if 'params_axes' not in model_variables:
    raise ValueError(
        'Model variables have no collection `params_axes`: create parameters '
        'with flax.linen.partitioning.param_with_axes.'
    )
  frozen = isinstance(model_variables, flax.core.FrozenDict)
  variables = flax.core.unfreeze(model_variables)
  params = traverse_util.flatten_dict(variables['params'], sep='/')
  axes = traverse_util.flatten_dict(variables['params_axes'], sep='/')
  for name, value in params.items():
    for pattern, names in params_axes_names_override:
      if not re.fullmatch(pattern, name):
        continue
      if len(names) != len(value.shape):
        raise ValueError(
            f'Axes {tuple(names)} for {name} (rule {pattern!r}) have rank '
            f'{len(names)}, the parameter has shape {tuple(value.shape)}.'
        )
      axes[f'{name}_axes'] = flax_partitioning.AxisMetadata(names=tuple(names))
      break
  variables['params_axes'] = traverse_util.unflatten_dict(axes, sep='/')
  return flax.core.freeze(variables) if frozen else variables


def flatten_dict_string_keys(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a flat dict with the parts of each key joined by '/'."""
  return traverse_util.flatten_dict(flax.core.unfreeze(tree), sep='/')
