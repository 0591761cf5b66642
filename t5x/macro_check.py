"""Macros of gin files: set but not read, to be set but not set.

gin takes a misspelt macro for a new one, which nothing reads, and tells of one
missing macro at a time. All of it stands in the statements, so it is told
before anything that they name is imported.

A macro that nothing reads is

  on the command line: an error, for whoever typed it wants an effect;
  in a file, spelt nearly like one that is read: an error, unless the file sets
    that one as well (`ENCODER_LAYERS` beside `DECODER_LAYERS`);
  in a file otherwise: a warning. Files are shared: what is read depends on the
    others of a run, and upstream T5X let it be.

A macro counts as read where any statement names it, even one that a later file
overrides.
"""

from collections.abc import Iterator, Sequence
import difflib

from absl import logging

from t5x import gin_syntax

# gin's own constant; a macro with this value has to be set by a later file.
_REQUIRED = 'gin.REQUIRED'


def check(
    statements: Sequence[gin_syntax.Statement], *, is_whole: bool = True
) -> None:
  """Looks at the macros of a configuration.

  Args:
    statements: of files, then of the command line.
    is_whole: whether what is missing is an error.

  Raises:
    ValueError: naming every macro that has to be set, and every one that seems
      misspelt, with its place and the nearest that is read.
  """
  faults = [told for told, is_fault in _unread(statements) if is_fault]
  if is_whole:
    last_set = {s.macro for s in statements if s.macro is not None}
    required = still_required(statements)
    # What nothing sets may be a constant (`gin.constant`) of a module that the
    # files import; alone it is left to the parser.
    unset = _in_force(statements) - last_set if required else set()
    missing = sorted(required | unset)
    faults += [must_be_set(*missing)] if missing else []
  if faults:
    raise ValueError('\n'.join(faults))


def still_required(statements: Sequence[gin_syntax.Statement]) -> set[str]:
  """Returns the macros that a file requires and no later statement sets."""
  last_set = {s.macro: s for s in statements if s.macro is not None}
  return {n for n, s in last_set.items() if _REQUIRED in s.macros_read()}


def must_be_set(*names: str) -> str:
  """Says how to set what has to be."""
  *others, name = names
  listed = f'{", ".join(others)} and {name}' if others else name
  return (
      f'{listed} must be set: in a gin file, or on the command line with '
      f'--gin.{names[0]}=VALUE (a string in quotes, as in '
      f'--gin.{names[0]}=\'"…"\').'
  )


def _in_force(statements: Sequence[gin_syntax.Statement]) -> set[str]:
  """Returns the macros read by statements that no later one overrides.

  Names with a dot are constants, such as members of enumerations.
  """
  last = {}
  for statement in statements:
    if statement.macro is not None:
      last[statement.macro] = statement
    elif statement.configurable is not None:
      scope, _, argument, *_ = statement.parsed
      last[scope, statement.configurable, argument] = statement
  return {
      name
      for statement in last.values()
      for name in statement.macros_read()
      if '.' not in name
  }


def warn(statements: Sequence[gin_syntax.Statement]) -> None:
  """Logs the macros that nothing reads, but for those that `check` refuses."""
  for told, is_fault in _unread(statements):
    if not is_fault:
      logging.warning('%s It is ignored.', told)


def _unread(
    statements: Sequence[gin_syntax.Statement],
) -> Iterator[tuple[str, bool]]:
  """Yields a sentence on each macro that nothing reads, and if it is a fault."""
  read = {name for s in statements for name in s.macros_read()} - {_REQUIRED}
  last_set = {s.macro: s for s in statements if s.macro is not None}
  by_file: dict[str, set[str]] = {}
  for statement in statements:
    if statement.macro is not None:
      by_file.setdefault(statement.where, set()).add(statement.macro)
  for name, statement in last_set.items():
    if name in read:
      continue
    near = difflib.get_close_matches(name, sorted(read), n=3, cutoff=0.8)
    told = f'{statement.place}: no gin file reads the macro {name!r}.'
    if near:
      told += f'\n  Nearest that are read: {", ".join(near)}.'
    is_misspelt = bool(near) and by_file[statement.where].isdisjoint(near)
    yield told, statement.is_typed or is_misspelt
