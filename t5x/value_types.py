"""Whether a value of a gin file has the type that a parameter is annotated with.

Only what Python's simple annotations say is judged: numbers, strings, sequences,
mappings, unions and literals of them, callables. A class, a type variable or an
annotation that is a mere string may take anything. Where people are generous,
this is: an int is a float, a list is a tuple, 0 and 1 are bools.
"""

import ast
import collections.abc
import dataclasses
import inspect
import types
import typing
from typing import Any

_SEQUENCES = (
    list,
    tuple,
    set,
    frozenset,
    collections.abc.Sequence,
    collections.abc.MutableSequence,
    collections.abc.Iterable,
    collections.abc.Collection,
    collections.abc.Set,
)
_MAPPINGS = (
    dict,
    collections.abc.Mapping,
    collections.abc.MutableMapping,
)
_SCALARS = (bool, int, float, str, bytes)


@dataclasses.dataclass(frozen=True)
class Unknown:
  """A value that nobody has computed yet.

  Attributes:
    is_callable: whether it is known to be a function or a class; else it may be
      anything.
  """

  is_callable: bool


def fits(value: Any, hint: Any) -> bool:
  """Tells whether a value has the type of an annotation.

  Args:
    value: of numbers, strings, None, lists, tuples, dicts and `Unknown`s.
    hint: an annotation; one that is not understood fits everything.
  """
  origin = typing.get_origin(hint) or hint
  arguments = typing.get_args(hint)
  if isinstance(value, Unknown) and not value.is_callable:
    return True
  if origin in (typing.Union, types.UnionType):
    return any(fits(value, argument) for argument in arguments)
  if origin is typing.Annotated:
    return fits(value, arguments[0])
  if origin is typing.Literal:
    return value in arguments
  if origin in (None, type(None)):
    return value is None
  if origin in (type, collections.abc.Callable):
    return callable(value) or isinstance(value, Unknown)
  if origin in _SCALARS:
    return _fits_scalar(value, origin)
  if origin in _SEQUENCES:
    return _fits_sequence(value, origin, arguments)
  if origin in _MAPPINGS:
    return isinstance(value, dict) and all(
        fits(part, argument)
        for pair in value.items()
        for part, argument in zip(pair, arguments)
    )
  return True


def _fits_scalar(value: Any, scalar: type) -> bool:
  if scalar is bool:
    return isinstance(value, bool) or (type(value) is int and value in (0, 1))
  if isinstance(value, bool):
    return False
  return isinstance(value, (int, float) if scalar is float else scalar)


def _fits_sequence(value: Any, origin: Any, arguments: tuple[Any, ...]) -> bool:
  if not isinstance(value, (list, tuple, set, frozenset)):
    return False
  if origin is tuple and arguments and arguments[-1] is not ...:
    return len(value) == len(arguments) and all(map(fits, value, arguments))
  return not arguments or all(fits(item, arguments[0]) for item in value)


def get_hints(fn: Any) -> dict[str, Any]:
  """Returns the annotations of the parameters of a function or class.

  Those that cannot be read, or that the parameter's own default breaks, are
  left out; a default of None allows None.

  Args:
    fn: a function, a class or another callable.
  """
  try:
    parameters = inspect.signature(fn).parameters
  except (TypeError, ValueError):  # builtins tell nothing
    return {}
  written = _evaluated(fn.__init__ if inspect.isclass(fn) else fn)
  hints = {}
  for name, parameter in parameters.items():
    hint = written.get(name, parameter.annotation)
    if hint is parameter.empty or parameter.kind is parameter.VAR_KEYWORD:
      continue
    if parameter.default is None:
      hint = typing.Optional[hint]  # noqa: UP045  (`|` refuses strings)
    elif parameter.default is not parameter.empty:
      if not fits(parameter.default, hint):
        continue
    hints[name] = hint
  return hints


def _evaluated(fn: Any) -> dict[str, Any]:
  try:
    return typing.get_type_hints(fn)
  # Users' annotations: reading one runs whatever it says, names that only a
  # type checker imports included.
  except Exception:
    return {}


def in_words(hint: Any) -> str:
  """Returns an annotation as a reader writes it."""
  if isinstance(hint, type) and not typing.get_args(hint):
    return hint.__name__
  text = str(hint).replace('typing.', '').replace('collections.abc.', '')
  return text.replace('NoneType', 'None')


def mend(value: Any, hint: Any) -> str:
  """Returns a value near this one that fits, as gin text, or ''."""
  if isinstance(value, float) and value.is_integer() and fits(1, hint):
    return str(int(value))
  if not isinstance(value, str):
    text = repr(str(value))
    return text if isinstance(value, (int, float)) and fits('', hint) else ''
  if fits((value,), hint):
    return f'({value!r},)'
  try:
    unquoted = ast.literal_eval(value)
  except (ValueError, SyntaxError):
    return ''
  return repr(unquoted) if fits(unquoted, hint) else ''
