"""The commands of `python -m tasks.build` that look at built sets."""

import argparse
import functools
import pathlib
import sys
from typing import Any

from tasks.build import built_sets
from tasks.build import contact_sheets
from tasks.build import verification


def add_commands(commands: Any) -> None:
  """Adds `verify`, `stats` and `show`.

  Args:
    commands: as `ArgumentParser.add_subparsers` gives them.
  """
  verify = commands.add_parser(
      'verify',
      help='whether every byte, record, picture, box and mask is as it was'
      ' written',
  )
  verify.add_argument('--workers', type=int, default=1, help='processes (1)')
  verify.set_defaults(run=_verify)
  stats = commands.add_parser(
      'stats', help='counts of texts, boxes, masks and lengths'
  )
  stats.set_defaults(run=_stats)
  show = commands.add_parser(
      'show', help='a contact sheet with boxes, masks and traces drawn'
  )
  show.add_argument(
      '--output',
      required=True,
      type=pathlib.Path,
      metavar='FILE',
      help='.html (holds its pictures itself) or .png',
  )
  show.add_argument(
      '--count', type=int, default=24, help='records, drawn by --seed (24)'
  )
  show.add_argument('--seed', type=int, default=0, help='of the draw (0)')
  show.add_argument(
      '--id', action='append', default=[], help='show these records instead'
  )
  show.set_defaults(run=functools.partial(_show, show))
  for command in (verify, stats, show):
    command.add_argument(
        'directory',
        type=pathlib.Path,
        metavar='DIR',
        help='a built split, or a folder with some',
    )


def _verify(arguments: argparse.Namespace) -> int:
  try:
    faults = verification.verify(arguments.directory, arguments.workers)
  except built_sets.BuiltSetError as e:
    print(e, file=sys.stderr)
    return 1
  for fault in faults:
    print(fault)
  if faults:
    print(f'{len(faults)} faults.', file=sys.stderr)
    return 1
  print(f'{arguments.directory}: all is whole.')
  return 0


def _stats(arguments: argparse.Namespace) -> int:
  try:
    splits = built_sets.find_splits(arguments.directory)
    for split in splits:
      print(_table(split, built_sets.read_manifest(split)))
  except built_sets.BuiltSetError as e:
    print(e, file=sys.stderr)
    return 1
  return 0


def _show(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace
) -> int:
  output = arguments.output
  if output.suffix not in ('.html', '.png'):
    parser.error(f'--output {output}: expected a name in .html or .png')
  if arguments.count < 1:
    parser.error(f'--count is {arguments.count}; expected at least 1')
  try:
    cells = contact_sheets.choose(
        arguments.directory, arguments.count, arguments.seed, arguments.id
    )
  except built_sets.BuiltSetError as e:
    print(e, file=sys.stderr)
    return 1
  if output.suffix == '.html':
    output.write_text(contact_sheets.page(cells), encoding='utf-8')
  else:
    contact_sheets.sheet(cells).save(output)
  print(f'{output}: {len(cells)} records')
  return 0


def _table(split: pathlib.Path, manifest: dict[str, Any]) -> str:
  """The statistics of a split as text."""
  figures = manifest['statistics']
  columns = list(next(iter(figures.values()), {}))
  shards = manifest['shards']
  lines = [
      f'{split}: {manifest["num_records"]} records in {len(shards)} shards',
      f'  {"":22}' + ''.join(f'{column:>14}' for column in columns),
  ]
  for name, row in figures.items():
    numbers = ''.join(f'{row[column]:>14,}' for column in columns)
    lines.append(f'  {name:22}{numbers}')
  return '\n'.join(lines)
