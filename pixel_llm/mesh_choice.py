"""A way to cut a run over a pod, and what the compiler makes of it.

A choice is the macros that `gin/mesh/data.gin` defines. Its step is compiled by
`t5x.precompile` in a process of its own, so that the next one starts afresh,
whatever became of this one. Used by `pixel_llm.plan` and `benchmarks/pods.py`.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from typing import Any

MESH_FILE = 'gin/mesh/data.gin'

# What the scripts of t5x write before what a user can mend.
_ERROR = 'error: '
# Last lines of a process that ended without it.
_TAIL = 8


@dataclasses.dataclass(frozen=True)
class MeshChoice:
  """Macros of `gin/mesh/data.gin`; None leaves one as the gin files have it.

  Attributes:
    num_partitions: devices that share a copy of the model.
    parameter_dims: 2 cuts parameters over the devices of the batch too.
    num_microbatches: parts of a batch, one after the other.
    remat_policy: what the backward pass computes again.
    batch_size: examples of a step.
  """

  num_partitions: int | None = None
  parameter_dims: int | None = None
  num_microbatches: int | None = None
  remat_policy: str | None = None
  batch_size: int | None = None

  def bindings(self) -> tuple[str, ...]:
    """Returns the choice as gin statements."""
    return tuple(f'{name} = {value!r}' for name, value in self._set())

  def flags(self) -> str:
    """Returns the choice as flags of a run, for a shell."""
    return ' '.join(
        f'--gin.{name}="{value!r}"'
        if isinstance(value, str)
        else f'--gin.{name}={value!r}'
        for name, value in self._set()
    )

  def _set(self) -> list[tuple[str, int | str]]:
    values = {
        'NUM_PARTITIONS': self.num_partitions,
        'PARAMETER_DIMS': self.parameter_dims,
        'NUM_MICROBATCHES': self.num_microbatches,
        'REMAT_POLICY': self.remat_policy,
        'BATCH_SIZE': self.batch_size,
    }
    return [(n, value) for n, value in values.items() if value is not None]


class CompileError(ValueError):
  """A step that could not be compiled at all, with the compiler's words."""


def compile_step(
    gin_files: Sequence[str],
    bindings: Sequence[str],
    topology: str,
    step: str = 'train',
    timeout: float | None = None,
) -> Mapping[str, Any]:
  """Compiles a step of a run for a topology, in a process of its own.

  Args:
    gin_files: of the run, and of `gin/mesh`.
    bindings: gin statements, applied after the files.
    topology: see `t5x.precompile`.
    step: 'train' or 'predict'.
    timeout: seconds that it may take; None for any.

  Returns:
    The report (`t5x/compile_report.py`), also of a step that does not fit.

  Raises:
    CompileError: if there is no report.
  """
  with tempfile.TemporaryDirectory() as directory:
    path = os.path.join(directory, 'report.json')
    command = [
        sys.executable,
        *('-m', 't5x.precompile'),
        *(f'--gin_file={file}' for file in gin_files),
        *(f'--gin_bindings={binding}' for binding in bindings),
        "--gin_bindings=MODEL_DIR = 'runs/nowhere'",
        f'--topology={topology}',
        f'--step={step}',
        f'--json={path}',
        '--verbosity=-1',
    ]
    try:
      done = subprocess.run(
          command, capture_output=True, text=True, timeout=timeout, check=False
      )
    except subprocess.TimeoutExpired as error:
      raise CompileError(f'not compiled in {timeout:.0f} s') from error
    if not os.path.exists(path):
      settings = ', '.join(bindings) or 'no bindings'
      raise CompileError(
          _reason(done.stderr, done.returncode, f'{topology}, {settings}')
      )
    with open(path, encoding='utf-8') as file:
      return json.load(file)


def _reason(stderr: str, status: int, compiled: str) -> str:
  """Returns the message that a process ended with, or how it ended.

  Args:
    stderr: what it wrote.
    status: its exit status; minus the number of the signal that ended it.
    compiled: for what, and with which settings.
  """
  lines = stderr.strip().splitlines()
  told = [line for line in lines if line.startswith(_ERROR)]
  if told:
    return told[0].removeprefix(_ERROR)
  end = f'with status {status}'
  if status < 0:
    end = f'by signal {-status} ({signal.strsignal(-status)})'
  head = f't5x.precompile for {compiled} ended {end}, without a report'
  if not lines:
    return f'{head} or a word'
  return '\n  '.join((f'{head}; its last lines:', *lines[-_TAIL:]))


def describe_mesh(report: Mapping[str, Any]) -> str:
  """Returns the mesh of a report, as `data 32 x model 2`."""
  return ' x '.join(f'{axis} {n}' for axis, n in report['mesh'].items())


def num_devices(topology: str) -> int:
  """Returns how many chips a topology has: `v5e:8x8` 64."""
  return math.prod(int(part) for part in topology.partition(':')[2].split('x'))
