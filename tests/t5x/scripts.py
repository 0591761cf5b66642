"""Runs the scripts of `t5x` as processes, from the directory of the tests."""

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
