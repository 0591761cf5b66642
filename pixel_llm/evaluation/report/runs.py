"""What a run left in its folder: configuration, metric lines, predictions.

Metric files hold one JSON object a line, {"step": 10, "loss": 2.5, …}, and are
called `<task>-metrics.jsonl`, the trainer's and SeqIO's alike. Predictions
files are those of `pixel_llm.evaluation.predictions`.
"""

from collections.abc import Iterator
import dataclasses
import json
import math
import os
import pathlib
import re
from typing import Any

_PREDICTIONS = re.compile(r'(?P<task>.+)-predictions-(?P<step>-?\d+)\.json')
_METRICS = re.compile(r'(?P<task>.+)-metrics\.jsonl')

# Step and value, by metric.
Curves = dict[str, list[tuple[int, float]]]


@dataclasses.dataclass(frozen=True)
class Predictions:
  """The newest predictions file of a task.

  Attributes:
    task: the task's name.
    step: training step of the model; -1 if it was not told.
    rows: one a prompt.
  """

  task: str
  step: int
  rows: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Run:
  """One run.

  Attributes:
    name: the folder's name.
    folder: the folder as it was given.
    config: text of `config.gin`, or empty.
    curves: metrics by group, such as `train` or `inference_eval/<task>`.
    predictions: the newest ones of every task.
    notes: what could not be read, for the reader of the report.
  """

  name: str
  folder: str
  config: str
  curves: dict[str, Curves]
  predictions: list[Predictions]
  notes: list[str]

  @property
  def last_step(self) -> int | None:
    """The last step that left a metric, or None."""
    steps = [
        step
        for group in self.curves.values()
        for points in group.values()
        for step, _ in points
    ]
    return max(steps, default=None)


def _files(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """All files but those of checkpoints, in order of their names."""
  for parent, folders, names in os.walk(folder):
    # A checkpoint has thousands of files and nothing to tell.
    folders[:] = sorted(d for d in folders if not d.startswith('checkpoint'))
    for name in sorted(names):
      yield pathlib.Path(parent, name)


def read_curves(path: pathlib.Path) -> tuple[Curves, list[str]]:
  """Reads a metrics file.

  Args:
    path: a JSON-lines file.

  Returns:
    The finite numbers by metric in order of steps, a step's last line counting
    (a resumed run repeats steps); and notes on what was left out.
  """
  values: dict[str, dict[int, float]] = {}
  bad_lines = 0
  not_finite: dict[str, int] = {}
  with open(path, encoding='utf-8') as f:
    for line in filter(str.strip, f):
      try:
        row = json.loads(line)
        step = int(row['step'])
      except (ValueError, KeyError, TypeError):
        # The last line of a run that was killed is often cut off.
        bad_lines += 1
        continue
      for name, value in row.items():
        if name == 'step' or isinstance(value, bool):
          continue
        if not isinstance(value, (int, float)):
          continue
        if math.isfinite(value):
          values.setdefault(name, {})[step] = float(value)
        else:
          not_finite[name] = not_finite.get(name, 0) + 1
  notes = []
  if bad_lines:
    notes.append(f'{path}: {bad_lines} unreadable lines were left out.')
  notes += [
      f'{path}: {name} is not a finite number in {count} lines.'
      for name, count in not_finite.items()
  ]
  return {name: sorted(v.items()) for name, v in values.items()}, notes


def load_run(folder: str) -> Run:
  """Reads the folder of a run.

  Args:
    folder: the run's model directory.

  Returns:
    The run.

  Raises:
    FileNotFoundError: if there is no such folder.
    ValueError: if it holds neither metrics nor predictions.
  """
  root = pathlib.Path(folder)
  if not root.is_dir():
    raise FileNotFoundError(f'--model_dir={folder}: no such folder.')
  curves: dict[str, Curves] = {}
  newest: dict[str, tuple[int, pathlib.Path]] = {}
  notes: list[str] = []
  config = ''
  for path in _files(root):
    group = path.parent.relative_to(root).as_posix()
    if path.name == 'config.gin' and not config:
      config = path.read_text(encoding='utf-8')
    elif match := _METRICS.fullmatch(path.name):
      name = f'{group}/{match["task"]}'.removeprefix('./')
      curves[name], new_notes = read_curves(path)
      notes += new_notes
    elif match := _PREDICTIONS.fullmatch(path.name):
      step = int(match['step'])
      if step >= newest.get(match['task'], (step, path))[0]:
        newest[match['task']] = (step, path)
  if not curves and not newest:
    raise ValueError(
        f'--model_dir={folder} holds no <task>-metrics.jsonl'
        ' and no <task>-predictions-<step>.json; is it the folder of a run?'
    )
  predictions = [
      Predictions(task, step, json.loads(path.read_text(encoding='utf-8')))
      for task, (step, path) in sorted(newest.items())
  ]
  return Run(
      name=root.resolve().name,
      folder=folder,
      config=config,
      curves=curves,
      predictions=predictions,
      notes=notes,
  )
