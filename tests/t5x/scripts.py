"""Runs the scripts of `t5x` as processes, from the directory of the tests."""

import json
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent


def environment():
  """This process's, with the tests' modules and `t5x` importable."""
  root = HERE.parent.parent
  paths = [str(HERE), str(root), os.environ.get('PYTHONPATH', '')]
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


def run(module, *args, cwd=HERE, options=(), timeout=120):
  """Runs `python options… -m module args…` to its end."""
  return subprocess.run(
      [sys.executable, *options, '-m', module, *args],
      cwd=cwd,
      env=environment(),
      capture_output=True,
      text=True,
      timeout=timeout,
      check=False,
  )
