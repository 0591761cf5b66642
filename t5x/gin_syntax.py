"""A first look at gin files: that they exist, and that gin can read them.

Nothing that they name is imported, so a misspelt file name or a missing bracket
is told at once; `macro_check` looks at the macros among the statements. Whether
the other names mean anything is for the parser proper, in `gin_utils`.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import os
import tokenize
from typing import Any, NamedTuple

import gin
from gin import config_parser

# `NAME/macro.value = 1` and `@NAME/macro()` are the long form of a macro.
_MACRO_FUNCTIONS = ('macro', 'gin.macro')


class Macro(NamedTuple):
  """A `%NAME` in a value.

  Attributes:
    name: with its scopes, without the sign.
  """

  name: str


class Reference(NamedTuple):
  """An `@name` or `@name()` in a value.

  Attributes:
    name: with scopes and modules, as written.
    evaluate: whether it is called.
  """

  name: str
  evaluate: bool


@dataclasses.dataclass(frozen=True)
class Statement:
  """A statement of a file or of the command line.

  Attributes:
    parsed: gin's own statement; values hold `Macro`s and `Reference`s.
    where: the file's path, or the binding as it was typed.
    is_typed: whether it stands on the command line.
  """

  parsed: Any
  where: str
  is_typed: bool

  @property
  def place(self) -> str:
    """Where a message sends its reader."""
    if self.is_typed:
      return self.where
    return f'{self.where}, line {self.parsed.location.line_num}'

  @property
  def macro(self) -> str | None:
    """The name of the macro that this sets, or None."""
    if not isinstance(self.parsed, config_parser.BindingStatement):
      return None
    scope, selector, argument, *_ = self.parsed
    if not argument:
      return f'{scope}/{selector}' if scope else selector
    # As older files spell it.
    is_macro = selector in _MACRO_FUNCTIONS and argument == 'value'
    return scope if is_macro else None

  @property
  def configurable(self) -> str | None:
    """The function or class that this configures, without modules, or None."""
    is_block = isinstance(self.parsed, config_parser.BlockDeclaration)
    is_binding = isinstance(self.parsed, config_parser.BindingStatement)
    if is_block or (is_binding and self.macro is None):
      return self.parsed.selector.rsplit('.', 1)[-1]
    return None

  def macros_read(self) -> Iterator[str]:
    """Yields the names of the macros in the value."""
    for value in leaves(getattr(self.parsed, 'value', None)):
      if isinstance(value, Macro):
        yield value.name
      elif isinstance(value, Reference):
        scope, _, selector = value.name.rpartition('/')
        if selector in _MACRO_FUNCTIONS:
          yield scope


class _Unresolved(config_parser.ParserDelegate):
  """Notes references: what they refer to is not imported yet."""

  def configurable_reference(self, scoped_configurable_name, evaluate):
    return Reference(scoped_configurable_name, evaluate)

  def macro(self, macro_name):
    return Macro(macro_name)


def leaves(value: Any) -> Iterator[Any]:
  """Yields what lists, tuples and dicts hold, keys included."""
  if isinstance(value, (Macro, Reference)):
    yield value
  elif isinstance(value, dict):
    for pair in value.items():
      yield from leaves(pair)
  elif isinstance(value, (list, tuple)):
    for item in value:
      yield from leaves(item)
  else:
    yield value


def read(
    gin_files: Sequence[str],
    gin_bindings: Sequence[str],
    gin_search_paths: Sequence[str],
) -> list[Statement]:
  """Reads gin files, what they include, and bindings.

  Args:
    gin_files: names as given on the command line.
    gin_bindings: gin statements.
    gin_search_paths: directories to look in, in order.

  Returns:
    The statements in the order in which they take effect, those of includes in
    place.

  Raises:
    FileNotFoundError: for a file or an include, naming the paths tried.
    ValueError: with file, line and text, where gin cannot read a statement, or
      for a file that includes itself.
  """
  statements = []
  for name in gin_files:
    statements += _statements_of_file(name, gin_search_paths, ())
  for binding in gin_bindings:
    where = f'The gin binding {binding!r}'
    statements += _statements(binding, where, gin_search_paths, ())
  return statements


def configured(statements: Sequence[Statement]) -> set[str]:
  """Returns the functions and classes that get a parameter somewhere.

  Args:
    statements: as `read` returns them.

  Returns:
    Their names, without modules and scopes.
  """
  return {s.configurable for s in statements if s.configurable is not None}


def find_gin_file(
    name: str, gin_search_paths: Sequence[str]
) -> tuple[str, Any]:
  """Returns the path of a gin file and the function that opens it.

  Looks where gin does: as named, in the search paths, in Python packages.

  Args:
    name: as given on the command line or in an include.
    gin_search_paths: directories to look in, in order.

  Raises:
    FileNotFoundError: naming the paths that were tried.
  """
  # gin gives no public view of the prefixes and readers that were added to it.
  prefixes = ['', *gin_search_paths, *gin.config._LOCATION_PREFIXES]
  paths = [os.path.normpath(os.path.join(p, name)) for p in prefixes]
  tried = list(dict.fromkeys(paths))
  for path in tried:
    for opener, exists in gin.config._FILE_READERS:
      if exists(path):
        return path, opener
  raise FileNotFoundError(
      f'Gin file {name!r} not found. Tried: {", ".join(tried)}. '
      'Add its directory with --gin_search_paths.'
  )


def _statements_of_file(
    name: str, gin_search_paths: Sequence[str], including: tuple[str, ...]
) -> Iterator[Statement]:
  path, opener = find_gin_file(name, gin_search_paths)
  if path in including:
    raise ValueError(
        f'Gin file {path} includes itself: {" -> ".join((*including, path))}.'
    )
  with opener(path) as file:
    yield from _statements(file, path, gin_search_paths, (*including, path))


def _statements(
    text: Any,
    where: str,
    gin_search_paths: Sequence[str],
    including: tuple[str, ...],
) -> Iterator[Statement]:
  """Yields the statements of a file or string, those of includes in place."""
  with _placed_errors(where):
    statements = list(config_parser.ConfigParser(text, _Unresolved()))
  for statement in statements:
    if not isinstance(statement, config_parser.IncludeStatement):
      yield Statement(statement, where, is_typed=not including)
      continue
    try:
      yield from _statements_of_file(
          statement.filename, gin_search_paths, including
      )
    except FileNotFoundError as error:
      if including and 'Included by' not in str(error):
        line = statement.location.line_num
        raise FileNotFoundError(
            f'{error}\n  Included by {where}, line {line}.'
        ) from error
      raise


@contextlib.contextmanager
def _placed_errors(where: str) -> Iterator[None]:
  """Says in what file, and at what line, gin gave up.

  Raises:
    ValueError: for a syntax error.
  """
  try:
    yield
  except tokenize.TokenError as error:
    message, (line, _) = error.args
    raise ValueError(f'{where}, line {line}: {message}.') from error
  except SyntaxError as error:
    # Python's tokenizer leaves out the text of the line.
    text = f'\n  {error.text.strip()}' if error.text else ''
    raise ValueError(
        f'{where}, line {error.lineno}: {error.msg}{text}'
    ) from error
