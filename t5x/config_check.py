"""Looks at the values of a parsed configuration, before devices are touched.

gin hands any value to any parameter, and tells of a missing one when it gets
there. Here all of them are compared with what the parameters are annotated
with, and a run's mesh with its batch sizes; every fault is told at once, with
its place. Macros that are set but not read are `macro_check`'s.
"""

from collections.abc import Iterator, Sequence
import inspect
from typing import Any

import gin
from t5x import gin_syntax
from t5x import macro_check
from t5x import run_sizes
from t5x import value_types

# gin gives no public view of its bindings and constants.
_MACRO = 'gin.macro'


def check(statements: Sequence[gin_syntax.Statement]) -> None:
  """Looks at what gin has parsed.

  Args:
    statements: what it was parsed from: they tell the places.

  Raises:
    ValueError: naming all that has to be set, has another type than its
      parameter, or asks for a mesh or a batch that cannot be.
  """
  unset = _unset()
  faults = [macro_check.must_be_set(*unset)] if unset else []
  places = _Places(statements)
  for (scope, selector), bindings in gin.config._CONFIG.items():
    if selector == _MACRO:
      continue
    configurable = gin.config._REGISTRY[selector]
    hints = value_types.get_hints(configurable.wrapped)
    for name, value in bindings.items():
      if name not in hints:
        continue
      known = _known(value)
      if not value_types.fits(known, hints[name]):
        where, told = places.of(scope, selector, name, value)
        faults.append(f'{where}: {told} {_wrong(known, hints[name])}')
    faults += _sizes(places, scope, selector, bindings)
  if faults:
    raise ValueError('\n'.join(faults))


def _wrong(value: Any, hint: Any) -> str:
  given = (
      'a function' if isinstance(value, value_types.Unknown) else repr(value)
  )
  told = f'takes {value_types.in_words(hint)}, not {given}.'
  near = value_types.mend(value, hint)
  return f'{told} Write {near}.' if near else told


def _known(value: Any) -> Any:
  """Returns a value with its macros looked up, and references as `Unknown`."""
  if isinstance(value, dict):
    return {_known(k): _known(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return type(value)(map(_known, value))
  if not isinstance(value, gin.config.ConfigurableReference):
    return value
  name = _macro_name(value)
  if name is None:
    return value_types.Unknown(is_callable=not value.evaluate)
  bound = gin.config._CONFIG.get((name, _MACRO), {})
  if 'value' not in bound:
    return value_types.Unknown(is_callable=False)
  return _known(bound['value'])


def _macro_name(value: Any) -> str | None:
  """Returns the name of the macro that a value is, or None."""
  is_macro = (
      isinstance(value, gin.config.ConfigurableReference)
      and value.configurable.wrapped is gin.config.macro
  )
  return '/'.join(value.scopes) if is_macro else None


def _is_required(value: Any) -> bool:
  return (
      isinstance(value, gin.config.ConfigurableReference)
      and value.configurable.wrapped is gin.config._retrieve_constant
      and value.scoped_configurable_fn() is gin.REQUIRED
  )


def _unset() -> list[str]:
  """Returns what has to be set: macros and parameters."""
  config = gin.config._CONFIG
  unset = set()
  for (scope, selector), bindings in config.items():
    for name, value in bindings.items():
      for reference in gin.config.iterate_references({'': value}):
        macro = _macro_name(reference)
        if macro is not None and (macro, _MACRO) not in config:
          unset.add(macro)
      if _is_required(value):
        unset.add(
            scope
            if selector == _MACRO
            else gin.config._format_binding_key(scope, selector, name)
        )
  return sorted(unset)


def _sizes(
    places: '_Places', scope: str, selector: str, bindings: dict[str, Any]
) -> Iterator[str]:
  """Yields what is wrong with the mesh and the batches of a run."""
  # gin files are also parsed where JAX is not wanted.
  from t5x import partitioning

  partitioner = bindings.get('partitioner')
  if (
      not isinstance(partitioner, gin.config.ConfigurableReference)
      or partitioner.configurable.wrapped is not partitioning.PjitPartitioner
  ):
    return
  arguments = {
      name: _arguments(value)
      for name, value in bindings.items()
      if isinstance(value, gin.config.ConfigurableReference)
  }
  batch_sizes = {
      name: given['batch_size']
      for name, given in arguments.items()
      if 'batch_size' in given
  }
  found = run_sizes.faults(
      arguments['partitioner'],
      batch_sizes,
      arguments.get('trainer_cls', {}).get('num_microbatches'),
  )
  where, _ = places.of(scope, selector, 'partitioner', partitioner)
  for fault in found:
    yield f'{selector.rsplit(".", 1)[-1]} ({where}): {fault}'


def _arguments(reference: Any) -> dict[str, Any]:
  """Returns the arguments of a referenced function, as far as known."""
  wrapped = reference.configurable.wrapped
  if _macro_name(reference) is not None:
    return {}
  defaults = {
      name: parameter.default
      for name, parameter in inspect.signature(wrapped).parameters.items()
      if parameter.default is not parameter.empty
  }
  bound = gin.config._get_bindings(
      reference.configurable.selector, reference.scopes
  )
  return defaults | {name: _known(value) for name, value in bound.items()}


class _Places:
  """Where bindings stand in the files and on the command line."""

  def __init__(self, statements: Sequence[gin_syntax.Statement]):
    self._macros = {s.macro: s for s in statements if s.macro is not None}
    self._bindings = {}
    for statement in statements:
      if statement.macro is None and statement.configurable is not None:
        scope, _, argument, *_ = statement.parsed
        key = scope or '', statement.configurable, argument
        self._bindings[key] = statement

  def of(
      self, scope: str, selector: str, name: str, value: Any
  ) -> tuple[str, str]:
    """Returns a binding's place, and its name with the macros it comes from."""
    statement = self._bindings.get((scope, selector.rsplit('.', 1)[-1], name))
    told = gin.config._format_binding_key(scope, selector, name)
    macro = _macro_name(value)
    while macro is not None:
      told += f' = %{macro}'
      statement = self._macros.get(macro, statement)
      bound = gin.config._CONFIG.get((macro, _MACRO), {})
      macro = _macro_name(bound.get('value'))
    return statement.place if statement else 'The gin configuration', told
