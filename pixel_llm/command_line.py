"""What the commands of this package share, beside the scripts of t5x.

A command's module docstring is its `--help`. What a user can mend ends it with
one message and status 1, wrong arguments with status 2.
"""

import argparse
from collections.abc import Callable, Sequence
import sys

from t5x import exit_status
from t5x import gin_utils


def new_parser(prog: str, docstring: str) -> argparse.ArgumentParser:
  """Returns a parser without arguments.

  Args:
    prog: what a user types.
    docstring: of the command's module: a summary, a blank line, the rest.
  """
  summary, _, rest = docstring.partition('\n\n')
  return argparse.ArgumentParser(
      prog=prog,
      description=summary,
      epilog=rest,
      formatter_class=argparse.RawDescriptionHelpFormatter,
  )


def add_gin_bindings(parser: argparse.ArgumentParser) -> None:
  """Adds `--gin_bindings`, of which `parse` knows a short form."""
  parser.add_argument(
      '--gin_bindings',
      action='append',
      default=[],
      metavar='STATEMENT',
      help='a gin statement, applied after the files; may be repeated.'
      ' --gin.NAME=VALUE is short for it',
  )


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> argparse.Namespace:
  """Parses a command line with gin bindings; wrong arguments end the process.

  Args:
    parser: with `add_gin_bindings`.
    argv: the arguments; None takes those of the process.
  """
  words = sys.argv[1:] if argv is None else argv
  try:
    _, *words = gin_utils.rewrite_gin_args([parser.prog, *words])
  except ValueError as error:
    parser.error(str(error))
  return parser.parse_args(words)


def run(
    function: Callable[[argparse.Namespace], int], args: argparse.Namespace
) -> int:
  """Returns the exit status of a command: its own, or that of an error."""
  try:
    return function(args)
  except (ValueError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return exit_status.ERROR
