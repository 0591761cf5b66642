"""Runs golden cases: `python -m pixel_llm.golden DIR [CASE …]`.

Prints one line a case and a last line with the counts. A case passes when every
array of it was computed and lies within its tolerance; a case without a runner
and a runner that raises count as failed.
"""

import argparse
from collections.abc import Mapping, Sequence
import dataclasses
import difflib
import pathlib
import sys
import traceback

from pixel_llm.golden import case as case_lib
from pixel_llm.golden import compare
from pixel_llm.golden.runners import registry


@dataclasses.dataclass(frozen=True)
class CaseReport:
  """How one case went.

  Attributes:
    name: the case's name.
    arrays: a report for each array; empty if the case did not run.
    message: why the case did not run, or empty.
  """

  name: str
  arrays: Sequence[compare.ArrayReport] = ()
  message: str = ''

  @property
  def passed(self) -> bool:
    """Whether the case ran and all its arrays pass."""
    return bool(self.arrays) and all(a.passed for a in self.arrays)

  def line(self) -> str:
    """The case in one line."""
    verdict = 'pass' if self.passed else 'FAIL'
    if not self.arrays:
      return f'{verdict}  {self.name}: {self.message}'
    # A NaN error is the worst, though it compares as smaller.
    worst = max(
        self.arrays, key=lambda a: (not a.passed, a.error != a.error, a.error)
    )
    line = (
        f'{verdict}  {self.name}: {len(self.arrays)} arrays checked, largest'
        f' error {worst.error:.3g} of its tolerance in {worst.name}'
    )
    num_unstored = sum(
        case_lib.has_unstored_input(self.name, a.name) for a in self.arrays
    )
    if num_unstored:
      line += f'; {num_unstored} arrays take from themselves an unstored input'
    if not self.passed:
      num_failed = sum(not a.passed for a in self.arrays)
      line += f' ({worst.message}); {num_failed} arrays fail'
    return line


def run_case(
    directory: pathlib.Path, name: str, runners: Mapping[str, registry.Runner]
) -> CaseReport:
  """Runs one case and compares every array of it.

  Args:
    directory: the golden folder.
    name: the case's name.
    runners: runner by case name.

  Returns:
    The report. If the runner raises, its traceback goes to stderr, so that the
    other cases still run.
  """
  if name not in runners:
    return CaseReport(name, message='no runner for this case')
  try:
    case = case_lib.load_case(directory, name)
    reports = compare.compare_case(runners[name](case), case.expected)
  except Exception as error:  # pylint: disable=broad-exception-caught
    traceback.print_exc()
    return CaseReport(name, message=f'{type(error).__name__}: {error}')
  return CaseReport(name, reports, 'the case holds no array to check')


def run_folder(
    directory: str | pathlib.Path,
    runners: Mapping[str, registry.Runner],
    names: Sequence[str] = (),
) -> list[CaseReport]:
  """Runs the cases of a folder and prints one line each, then the counts.

  Args:
    directory: the golden folder.
    runners: runner by case name.
    names: the cases to run; all if empty.

  Returns:
    The reports.

  Raises:
    ValueError: if the folder has no cases, or lacks one that is asked for.
  """
  directory = pathlib.Path(directory)
  present = case_lib.case_names(directory)
  if not present:
    raise ValueError(
        f'{directory} holds no golden case: expected *.npz and eval_*.json.'
    )
  for name in names:
    if name not in present:
      near = difflib.get_close_matches(name, present) or present
      raise ValueError(f'No case {name!r} in {directory}; nearest: {near}.')
  reports = []
  for name in names or present:
    report = run_case(directory, name, runners)
    print(' '.join(report.line().split('\n')), flush=True)
    reports.append(report)
  num_passed = sum(r.passed for r in reports)
  print(f'{num_passed} passed, {len(reports) - num_passed} failed')
  return reports


def main(argv: Sequence[str] | None = None) -> int:
  """Command line; returns the exit status, 1 if a case fails."""
  parser = argparse.ArgumentParser(
      prog='python -m pixel_llm.golden', description=__doc__
  )
  parser.add_argument('directory', help='folder of golden cases')
  parser.add_argument('case', nargs='*', help='only these cases')
  args = parser.parse_args(argv)
  reports = run_folder(args.directory, registry.load_runners(), args.case)
  return 0 if all(r.passed for r in reports) else 1


if __name__ == '__main__':
  sys.exit(main())
