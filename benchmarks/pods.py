"""Compiles every recipe for pods, and writes the table of docs/pods.md.

    python benchmarks/pods.py compile            # what is missing or has changed
    python benchmarks/pods.py compile --only='t5_refseg.*v4'
    python benchmarks/pods.py table              # docs/pods/*.json -> docs/pods.md

A cell is a recipe's step on a topology. Each is a file of docs/pods with what
`t5x.precompile` reported, the command, and a hash of all that gin made of the
files: a cell is compiled again when that changes. A run that was cut off goes on
with the cells that are missing. Needs libtpu: `pip install 'jax[tpu]'`.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
import re
import shlex
import sys
from typing import Any

import pods_page

import gin
from pixel_llm import mesh_choice
from pixel_llm.mesh_choice import MeshChoice
from t5x import script

ROOT = pathlib.Path(__file__).parents[1]
DIRECTORY = ROOT / 'docs/pods'
PAGE = ROOT / 'docs/pods.md'

JOINT = ('trace_ref_densecap_llava', 'trace_refseg_densecap_llava')
RECIPES = (*JOINT, 'refseg', 'ref', 'trace', 'densecap')
HEADS = ('t5', 'bert')
TOPOLOGIES = ('v5e:8x8', 'v4:2x2x4', 'v5p:2x4x4', 'v6e:8x8')
LARGE = 'v4:8x8x8'

# What a cell has beside gin/mesh/<kind>.gin; the first that fits its name.
CHOICES = (
    # Four times the recipe's batch: two images a pair of chips.
    (r'v4-8x8x8', MeshChoice(num_partitions=2, batch_size=512)),
    # Eight images a chip, two at a time.
    (r't5_trace_ref_.*\.v4-', MeshChoice(num_microbatches=4)),
    (r't5_trace_ref_.*\.v5e-', MeshChoice(parameter_dims=2)),
    # The two chips a copy of v5e.gin, not compiled yet. Its 2.1 GiB of state would
    # fit one, but there the train step crashes libtpu 0.0.42.1 (signal 11).
    (r'^bert_refseg\.v5e-8x8\.train$', MeshChoice()),
    (r'_refseg\.v5e-', MeshChoice(num_partitions=1)),
    (r'^bert_.*\.v5e-', MeshChoice(num_partitions=1)),
)


@dataclasses.dataclass(frozen=True)
class Cell:
  """A step of a recipe on a topology.

  Attributes:
    head: the language model, 't5' or 'bert'.
    recipe: the recipe's name.
    topology: see `t5x.precompile`.
    step: 'train' or 'predict'.
  """

  head: str
  recipe: str
  topology: str
  step: str = 'train'

  @property
  def name(self) -> str:
    """The name of the cell's file, without its ending."""
    topology = self.topology.replace(':', '-')
    return f'{self.head}_{self.recipe}.{topology}.{self.step}'

  @property
  def path(self) -> pathlib.Path:
    return DIRECTORY / f'{self.name}.json'

  @property
  def gin_files(self) -> tuple[str, ...]:
    """The run's file and that of the pod."""
    kind = self.topology.partition(':')[0]
    return (
        f'gin/pixel_llm_{self.head}_{self.recipe}.gin',
        f'gin/mesh/{kind}.gin',
    )

  @property
  def bindings(self) -> tuple[str, ...]:
    """What differs from the pod's file."""
    for pattern, choice in CHOICES:
      if re.search(pattern, self.name):
        return choice.bindings()
    return ()

  @property
  def command(self) -> str:
    """The command that compiles the cell."""
    words = [
        'python -m t5x.precompile',
        *(f'--gin_file={file}' for file in self.gin_files),
        *(
            '--gin.' + shlex.quote(binding.replace(' = ', '='))
            for binding in self.bindings
        ),
        f'--topology={self.topology}',
    ]
    if self.step != 'train':
      words.append(f'--step={self.step}')
    return ' '.join(words)


def cells() -> Iterator[Cell]:
  """Yields all cells, the hardest of each kind of step first."""
  for step in ('train', 'predict'):
    for head in HEADS:
      for recipe in RECIPES:
        for topology in TOPOLOGIES:
          yield Cell(head, recipe, topology, step)
    if step == 'train':
      yield Cell('t5', JOINT[0], LARGE)


def config_hash(cell: Cell) -> str:
  """Returns a hash of what gin makes of a cell's files."""
  gin.clear_config()
  script.parse_gin(cell.gin_files, cell.bindings, [str(ROOT)])
  # Import lines hold the order in which files were read.
  lines = gin.config_str().splitlines()
  text = '\n'.join(line for line in lines if not line.startswith('import'))
  gin.clear_config()
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_current(cell: Cell) -> bool:
  """Tells whether a cell's report is of its gin files as they are."""
  report = stored(cell)
  return report is not None and report['config'] == config_hash(cell)


def stored(cell: Cell) -> Mapping[str, Any] | None:
  """Returns what a cell's file holds; None if there is none."""
  if not cell.path.exists():
    return None
  return json.loads(cell.path.read_text())


def compile_cells(pattern: str, timeout: float) -> int:
  """Compiles the cells that are missing or have changed; returns how many not.

  Args:
    pattern: a regular expression that the names of the cells hold.
    timeout: seconds for each.
  """
  DIRECTORY.mkdir(exist_ok=True)
  num_missing = 0
  for cell in cells():
    if not re.search(pattern, cell.name):
      continue
    if is_current(cell):
      continue
    print(f'{cell.name}: {cell.command}', flush=True)
    try:
      report = mesh_choice.compile_step(
          cell.gin_files, cell.bindings, cell.topology, cell.step, timeout
      )
    except mesh_choice.CompileError as error:
      num_missing += 1
      print(f'{cell.name}: {error}', flush=True)
      continue
    cell.path.write_text(
        json.dumps(
            {
                'command': cell.command,
                'config': config_hash(cell),
                'libtpu': importlib.metadata.version('libtpu'),
                'jax': importlib.metadata.version('jax'),
                **report,
            },
            indent=1,
        )
        + '\n'
    )
    print(f'{cell.name}: {summary(report)}', flush=True)
  return num_missing


def summary(report: Mapping[str, Any]) -> str:
  """Returns a line about a cell, for the log."""
  (step,) = report['steps']
  memory = step['memory']
  return (
      f'{memory["total"] / 2**30:.1f} of {memory["limit"] / 2**30:.0f} GiB,'
      f' {"fits" if step["fits"] else "DOES NOT FIT"}, compiled in'
      f' {step["compile_seconds"]:.0f} s'
  )


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('what', choices=('compile', 'table', 'list'))
  parser.add_argument('--only', default='', metavar='REGEX')
  parser.add_argument(
      '--timeout', type=float, default=3600.0, metavar='SECONDS'
  )
  args = parser.parse_args(argv)
  if args.what == 'compile':
    return min(1, compile_cells(args.only, args.timeout))
  if args.what == 'list':
    for cell in cells():
      if re.search(args.only, cell.name):
        print(cell.name)
    return 0
  changed = [c for c in cells() if c.path.exists() and not is_current(c)]
  PAGE.write_text(pods_page.page(list(cells()), stored, changed))
  return 0


if __name__ == '__main__':
  sys.exit(main())
