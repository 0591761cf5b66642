"""Gin on the command line: files, `--gin.NAME=VALUE`, and errors that help."""

from collections.abc import Callable, Sequence
import difflib
import inspect
import pkgutil
import re
import sys
from typing import Any

from absl import app
from absl import logging

import gin
from t5x import config_check
from t5x import gin_syntax
from t5x import macro_check

# gin's own message, with the place, is kept; these find the unknown word.
_UNKNOWN_ATTRIBUTE = re.compile(
    r"Couldn't resolve selector (?P<selector>\S+); <(?:module|class) "
    r"'(?P<owner>[^']+)'.*? has no attribute (?P<name>\w+)"
)
_UNKNOWN_PARAMETER = re.compile(
    r"Configurable '(?P<owner>[^']+)' doesn't have a parameter named "
    r"'(?P<name>[^']+)'"
)
_UNKNOWN_CONFIGURABLE = re.compile(
    r"No configurable matching (?:reference )?'@?(?P<name>[\w./]+)"
)
_UNKNOWN_MODULE = re.compile(r"No module named '(?P<name>[\w.]+)'")
_UNSET_MACRO = re.compile(
    r"In call to configurable 'macro'.* in scope '(?P<name>\w+)'"
)

_parsed_files: list[str] = []
_parsed_bindings: list[str] = []


def rewrite_gin_args(args: Sequence[str]) -> list[str]:
  """Rewrites `--gin.NAME=VALUE` to `--gin_bindings=NAME = VALUE`.

  Args:
    args: the command line; the program's name comes first.

  Returns:
    The command line that absl understands. The value is kept verbatim.

  Raises:
    ValueError: if such an argument has no `=`.
  """

  def rewrite(arg: str) -> str:
    if not arg.startswith('--gin.'):
      return arg
    if '=' not in arg:
      raise ValueError(
          f'Gin bindings must be of the form --gin.NAME=VALUE, got {arg!r}.'
      )
    name, value = arg.removeprefix('--gin.').split('=', maxsplit=1)
    return f'--gin_bindings={name} = {value}'

  return [*args[:1], *map(rewrite, args[1:])]


def run(main: Callable[[Sequence[str]], Any]) -> None:
  """Runs `main` as an absl app that understands `--gin.NAME=VALUE`."""

  def parse(args: Sequence[str]) -> list[str]:
    try:
      return app.parse_flags_with_usage(rewrite_gin_args(args))
    except ValueError as error:
      sys.exit(f'error: {error}')

  app.run(main, flags_parser=parse)


def parse_gin_flags(
    gin_search_paths: Sequence[str],
    gin_files: Sequence[str],
    gin_bindings: Sequence[str],
    skip_unknown: bool | Sequence[str] = False,
    finalize_config: bool = True,
) -> None:
  """Parses gin files, then bindings; later ones win.

  Args:
    gin_search_paths: directories tried for files and includes, in order.
    gin_files: paths of gin files.
    gin_bindings: gin statements.
    skip_unknown: whether (or which) unknown configurables are skipped.
    finalize_config: whether to check and lock the config.

  Raises:
    FileNotFoundError: if a file is in none of the search paths.
    ImportError: for a module that is not there, with its place and the nearest.
    ValueError: for what gin cannot read, for an unknown name, with its place
      and the nearest known ones, or for what `macro_check` and `config_check`
      find in a configuration that is to be final.
  """
  for path in gin_search_paths:
    gin.add_config_file_search_path(path)
  statements = gin_syntax.read(gin_files, gin_bindings, gin_search_paths)
  macro_check.check(statements, is_whole=finalize_config)
  macro_check.warn(statements)
  try:
    gin.parse_config_files_and_bindings(
        list(gin_files),
        list(gin_bindings),
        skip_unknown=skip_unknown,
        finalize_config=False,
    )
    if finalize_config:
      config_check.check(statements)
      gin.finalize()
  except (NameError, AttributeError, ValueError) as error:
    raise ValueError(explain(error)) from error
  except ImportError as error:
    raise ImportError(explain(error)) from error
  _parsed_files[:] = gin_files
  _parsed_bindings[:] = gin_bindings
  logging.info('Gin configuration:\n%s', get_gin_config_str())


def explain(error: Exception) -> str:
  """Returns gin's message with the nearest known names added."""
  text = str(error)
  near = _near_names(text)
  if near:
    text += f'\n  Nearest known names: {", ".join(near)}.'
  if match := _UNSET_MACRO.search(text):
    text = macro_check.must_be_set(match['name'])
  if 'was not provided by an import statement' in text:
    text += (
        '\n  Add an import to the gin file (after '
        '`from __gin__ import dynamic_registration`), or mend the spelling.'
    )
  return text


def without_addresses(text: str) -> str:
  """Returns gin's message without the memory addresses of functions."""
  return re.sub(r' \(<(function|class|bound method)[^\n]*>\)', '', text)


def _near_names(text: str) -> list[str]:
  """Returns known names like the unknown one that gin's message holds."""
  if match := _UNKNOWN_ATTRIBUTE.search(text):
    owner = sys.modules.get(match['owner'])
    known = [name for name in dir(owner) if not name.startswith('_')]
    prefix = match['selector'].rsplit(match['name'], 1)[0]
    near = difflib.get_close_matches(match['name'], known, n=3, cutoff=0.5)
    return [prefix + name for name in near]
  if match := _UNKNOWN_PARAMETER.search(text):
    known = _parameters(match['owner'])
    return difflib.get_close_matches(match['name'], known, n=3, cutoff=0.5)
  if match := _UNKNOWN_CONFIGURABLE.search(text):
    # gin keeps no public list of what is registered.
    known = list(gin.config._REGISTRY._selector_map)
    short = {name.rsplit('.', 1)[-1]: name for name in known}
    near = difflib.get_close_matches(
        match['name'].rsplit('.', 1)[-1], short, n=3, cutoff=0.5
    )
    return [short[name] for name in near]
  if match := _UNKNOWN_MODULE.search(text):
    return _near_modules(match['name'])
  return []


def _near_modules(name: str) -> list[str]:
  """Returns names of modules like an unknown one, beside it."""
  parent, _, last = name.rpartition('.')
  # None for what lies on the path itself.
  paths = getattr(sys.modules.get(parent), '__path__', None)
  if parent and paths is None:
    return []
  known = [module.name for module in pkgutil.iter_modules(paths)]
  near = difflib.get_close_matches(last, known, n=3, cutoff=0.6)
  return [f'{parent}.{found}' if parent else found for found in near]


def _parameters(selector: str) -> list[str]:
  """Returns the parameter names of a registered function or class.

  Args:
    selector: what a gin file calls it; another file may have registered it
      under the name of another module.
  """
  name = selector.rsplit('.', 1)[-1]
  # gin keeps no public list of what is registered.
  return [
      parameter
      for known, configurable in gin.config._REGISTRY._selector_map.items()
      if known.rsplit('.', 1)[-1] == name
      for parameter in inspect.signature(configurable.wrapped).parameters
  ]


def get_gin_config_str(show_provenance: bool = False) -> str:
  """Returns the parsed configuration as gin text.

  Args:
    show_provenance: whether to open with comments that list the files and
      bindings it was parsed from, in order.
  """
  text = gin.config_str(max_line_length=80, continuation_indent=4)
  if show_provenance:
    origin = [f'# file: {name}' for name in _parsed_files]
    for binding in _parsed_bindings:
      origin += [f'# binding: {line}' for line in binding.splitlines()]
    text = '\n'.join(['# Parsed from, in order:', *origin, '', text])
  return text


def summarize_gin_config(
    model_dir: str | None, summary_writer: Any | None, step: int
) -> None:
  """Writes the config to `config.gin` and as text summary `config`.

  Only process 0 writes.

  Args:
    model_dir: where `config.gin` goes, or None.
    summary_writer: a CLU metric writer, or None.
    step: the step of the summary.
  """
  import jax

  if jax.process_index() != 0:
    return
  if summary_writer is not None:
    summary_writer.write_texts(
        step, {'config': gin.markdown(get_gin_config_str())}
    )
    summary_writer.flush()
  if model_dir:
    from etils import epath

    directory = epath.Path(model_dir)
    directory.mkdir(parents=True, exist_ok=True)
    text = get_gin_config_str(show_provenance=True)
    (directory / 'config.gin').write_text(text)


def sum_fn(var1: Any = gin.REQUIRED, var2: Any = gin.REQUIRED) -> Any:
  """Returns the sum, for use inside gin files."""
  return var1 + var2


def bool_fn(var1: Any = gin.REQUIRED) -> bool:
  """Returns the truth of a value, for use inside gin files."""
  return bool(var1)


def string_split_fn(
    text: str = gin.REQUIRED,
    separator: str = gin.REQUIRED,
    maxsplit: int = -1,
) -> list[str]:
  """Returns the parts of a string, for use inside gin files."""
  return text.split(separator, maxsplit)
