"""A first look at gin files: that they exist, and that gin can read them.

Nothing that they name is imported, so a misspelt file name or a missing bracket
is told at once. Whether the names mean anything is for the parser proper, in
`gin_utils`.
"""

from collections.abc import Iterator, Sequence
import contextlib
import os
import tokenize
from typing import Any

import gin
from gin import config_parser


class _Unresolved(config_parser.ParserDelegate):
  """Lets references be: what they refer to is not imported yet."""

  def configurable_reference(self, scoped_configurable_name, evaluate):
    return None

  def macro(self, macro_name):
    return None


def check(
    gin_files: Sequence[str],
    gin_bindings: Sequence[str],
    gin_search_paths: Sequence[str],
) -> set[str]:
  """Reads gin files, what they include, and bindings.

  Args:
    gin_files: names as given on the command line.
    gin_bindings: gin statements.
    gin_search_paths: directories to look in, in order.

  Returns:
    The names, without modules and scopes, of the functions and classes that
    get a parameter somewhere.

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
  return {
      statement.selector.rsplit('.', 1)[-1]
      for statement in statements
      if isinstance(statement, config_parser.BlockDeclaration)
      or (
          isinstance(statement, config_parser.BindingStatement)
          and statement.arg_name
      )
  }


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
) -> Iterator[Any]:
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
) -> Iterator[Any]:
  """Yields the statements of a file or string, those of includes in place."""
  with _placed_errors(where):
    statements = list(config_parser.ConfigParser(text, _Unresolved()))
  for statement in statements:
    if not isinstance(statement, config_parser.IncludeStatement):
      yield statement
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
