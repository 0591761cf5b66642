"""All golden runners by case name.

Each runner module answers for one part of the model and lists its cases in
`RUNNERS`; this module only joins the lists, so that one place knows which case
has no runner yet.
"""

from collections.abc import Callable, Mapping, Sequence
import importlib

import numpy as np

from pixel_llm.golden import case as case_lib

Runner = Callable[[case_lib.Case], Mapping[str, np.ndarray]]

MODULES = (
    'vision',
    'geometry',
    'text',
    'bert',
    'detection',
    'losses',
    'optimizer',
    'whole_model',
    'input_geometry',
    'input_text',
    'input_rows',
    'evaluation',
    'captioning',
)


def merge(
    runners: Sequence[tuple[str, Mapping[str, Runner]]],
) -> dict[str, Runner]:
  """Joins the runners of several modules.

  Args:
    runners: module name and its runners by case name.

  Returns:
    The runners by case name.

  Raises:
    ValueError: if two modules claim one case.
  """
  merged: dict[str, Runner] = {}
  owners: dict[str, str] = {}
  for module, by_case in runners:
    for case_name, runner in by_case.items():
      if case_name in merged:
        raise ValueError(
            f'Golden case {case_name!r} has a runner in {owners[case_name]!r}'
            f' and in {module!r}; drop one of them.'
        )
      merged[case_name] = runner
      owners[case_name] = module
  return merged


def load_runners(modules: Sequence[str] = MODULES) -> dict[str, Runner]:
  """Imports runner modules, each only when asked for, and joins them.

  Args:
    modules: names of modules beside this one.

  Returns:
    The runners by case name.

  Raises:
    ImportError: if a module or what it needs is not there.
    ValueError: if two modules claim one case.
  """
  loaded = []
  for name in modules:
    module = importlib.import_module(f'pixel_llm.golden.runners.{name}')
    loaded.append((name, module.RUNNERS))
  return merge(loaded)
