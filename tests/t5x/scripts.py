"""Runs the scripts of `t5x` as processes, from the directory of the tests."""

import json
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent


def environment(*first):
  """This process's, with the tests' modules and `t5x` importable.

  Args:
    *first: directories whose modules come before all others.
  """
  root = HERE.parent.parent
  paths = [*map(str, first), str(HERE), str(root)]
  paths.append(os.environ.get('PYTHONPATH', ''))
  return {**os.environ, 'PYTHONPATH': os.pathsep.join(paths)}


def train_command(gin_file, model_dir, *args):
  """The command line of `t5x.train` with a gin file of the tests."""
  return [
      sys.executable,
      '-m',
      't5x.train',
      f'--gin_file={gin_file}',
      f"--gin.MODEL_DIR='{model_dir}'",
      *args,
  ]


def logged(model_dir):
  """Step -> what was logged with its loss; the last writing of a step counts.

  Lines that are cut off are passed over: a process was killed in them.
  """
  found = {}
  for line in (model_dir / 'train-metrics.jsonl').read_text().splitlines():
    try:
      values = json.loads(line)
    except ValueError:
      continue
    if 'loss' in values:
      found[values['step']] = values
  return found


def run(module, *args, cwd=HERE, options=(), timeout=120, first=()):
  """Runs `python options… -m module args…` to its end.

  Args:
    module: by its full name.
    *args: its arguments.
    cwd: the working directory.
    options: of Python.
    timeout: seconds.
    first: see `environment`.
  """
  return subprocess.run(
      [sys.executable, *options, '-m', module, *args],
      cwd=cwd,
      env=environment(*first),
      capture_output=True,
      text=True,
      timeout=timeout,
      check=False,
  )
