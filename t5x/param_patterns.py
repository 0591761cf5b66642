"""Regular expressions over parameter names, checked against the parameters.

A name is the path to a parameter, joined with slashes. A pattern is searched
anywhere in it: 'sam_backbone' matches 'sam_backbone/neck/0/kernel'. One that
matches nothing is misspelt, and would train what should be frozen, or at
another rate: it is an error that names what it may have meant.
"""

from collections.abc import Callable, Sequence
import difflib
import re
from typing import Any

import jax


def param_names(params: Any) -> list[str]:
  """Names the leaves of a parameter tree, in the tree's order."""
  return [
      jax.tree_util.keystr(path, simple=True, separator='/')
      for path, _ in jax.tree.leaves_with_path(params)
  ]


def compile_pattern(pattern: str) -> re.Pattern:
  """Compiles a pattern, and names it if it is no regular expression."""
  try:
    return re.compile(pattern)
  except re.error as e:
    raise ValueError(
        f'{pattern!r} is not a regular expression: {e}. Escape dots and'
        ' brackets of parameter names with a backslash.'
    ) from e


def nearest(pattern: str, names: Sequence[str]) -> list[str]:
  """Finds names, or parts of names, that look like a pattern."""
  plain = re.sub(r'[\\^$()?:!|*+\[\]{}]', '', pattern).strip('/')
  parts = set()
  for name in names:
    words = name.split('/')
    parts.update(words)
    parts.update('/'.join(words[:i]) for i in range(1, len(words) + 1))
  return difflib.get_close_matches(plain, sorted(parts), n=3, cutoff=0.3)


def find(names: Sequence[str], pattern: str, field: str) -> list[str]:
  """Finds the parameters that a pattern matches.

  Args:
    names: parameter names.
    pattern: see the module.
    field: what the pattern is for, for messages.

  Returns:
    The names, in order.

  Raises:
    ValueError: if there is none.
  """
  regex = compile_pattern(pattern)
  found = [name for name in names if regex.search(name)]
  if not found:
    raise ValueError(
        f'{field}: pattern {pattern!r} matches none of the {len(names)}'
        f' parameters. Nearest: {nearest(pattern, names)}.'
    )
  return found


def match(
    names: Sequence[str], patterns: Sequence[str], field: str
) -> dict[str, str]:
  """Finds the pattern of each parameter.

  Args:
    names: parameter names.
    patterns: see the module.
    field: what the patterns are for, for messages.

  Returns:
    Name to pattern, for the names that one matches.

  Raises:
    ValueError: if a pattern matches nothing or two match one parameter.
  """
  owners: dict[str, str] = {}
  for pattern in patterns:
    for name in find(names, pattern, field):
      if name in owners:
        raise ValueError(
            f'{field}: patterns {owners[name]!r} and {pattern!r} both match'
            f' parameter {name!r}; make them exclusive.'
        )
      owners[name] = pattern
  return owners


class PatternTraversal:
  """Selects the parameters that one of some patterns matches.

  `MultiOptimizer` takes it wherever it takes flax's `ModelParamTraversal`, and
  checks each pattern.

  Attributes:
    patterns: see the module.
  """

  def __init__(self, patterns: Sequence[str]):
    self.patterns = tuple(patterns)
    self._regexes = [compile_pattern(pattern) for pattern in patterns]

  def update(self, fn: Callable[[Any], Any], params: Any) -> Any:
    """Returns the parameters with `fn` applied to those selected."""

    def one(path: Any, param: Any) -> Any:
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      selected = any(regex.search(name) for regex in self._regexes)
      return fn(param) if selected else param

    return jax.tree.map_with_path(one, params)
