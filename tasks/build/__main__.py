"""`python -m tasks.build`: converts original downloads to ArrayRecord.

Exit status: 0 all fine; 1 failed, or something would have been left out and
the run is strict; 2 wrong arguments; 3 done, but something was left out.
"""

import argparse
from collections.abc import Sequence
import pathlib
import sys

from tasks.build import localized_narratives
from tasks.build import refcoco
from tasks.build import reports
from tasks.build import shards

_READERS = {
    'refcoco': (refcoco.read_split, 'RefCOCO, RefCOCO+, RefCOCOg (MDETR JSON)'),
    'ln': (localized_narratives.read_split, 'Localized Narratives (JSONL)'),
}


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
      prog='python -m tasks.build', description=__doc__.partition('\n\n')[0],
      epilog=__doc__.partition('\n\n')[2],
  )
  sources = parser.add_subparsers(dest='source', required=True)
  for name, (_, summary) in _READERS.items():
    source = sources.add_parser(name, help=summary, description=summary)
    source.add_argument(
        '--split',
        action='append',
        required=True,
        metavar='NAME=FILE[,FILE...]',
        help='a split and its annotation files; may be given several times',
    )
    source.add_argument(
        '--images',
        nargs='+',
        required=True,
        type=pathlib.Path,
        metavar='DIR',
        help='folders with the pictures, searched in this order',
    )
    source.add_argument(
        '--output',
        required=True,
        type=pathlib.Path,
        metavar='DIR',
        help='each split goes to DIR/NAME',
    )
    source.add_argument(
        '--shards',
        type=int,
        help="number of shards of each split; the reference's if not given",
    )
    source.add_argument(
        '--workers', type=int, default=1, help='processes (1)'
    )
    source.add_argument(
        '--strict',
        action='store_true',
        help='fail, and rename nothing, if anything would be left out',
    )
  return parser


def _parse_splits(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace
) -> dict[str, list[pathlib.Path]]:
  """Checks the arguments; returns split name to files."""
  splits: dict[str, list[pathlib.Path]] = {}
  for text in arguments.split:
    name, _, files = text.partition('=')
    if not name or not files or '/' in name or name in splits:
      parser.error(
          f'--split {text!r}: expected NAME=FILE[,FILE...] with a name that is'
          f' new and has no slash; names so far: {sorted(splits)}'
      )
    splits[name] = [pathlib.Path(file) for file in files.split(',')]
    for file in splits[name]:
      if not file.is_file():
        parser.error(f'--split {name}: {file} is not a file')
  for folder in arguments.images:
    if not folder.is_dir():
      parser.error(f'--images: {folder} is not a folder')
  for option in ('workers', 'shards'):
    number = getattr(arguments, option)
    if number is not None and number < 1:
      parser.error(f'--{option} is {number}; expected at least 1')
  return splits


def _summary(name: str, tally: reports.Tally) -> str:
  lines = [f'{name}:']
  for level, counts in tally.counts().items():
    numbers = ', '.join(f'{key} {value}' for key, value in counts.items())
    lines.append(f'  {level}: {numbers}')
  return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> int:
  """Converts what the arguments name; returns the exit status."""
  parser = _parser()
  arguments = parser.parse_args(argv)
  splits = _parse_splits(parser, arguments)
  read_split, _ = _READERS[arguments.source]
  rejected = 0
  for name, files in splits.items():
    split = read_split(
        arguments.output / name, files, arguments.images, arguments.shards
    )
    if not split.units:
      details = '; '.join(note.detail for note in split.tally.notes[:5])
      print(f'{name}: nothing to convert. {details}', file=sys.stderr)
      return 1
    try:
      tally = shards.build_split(split, arguments.workers, arguments.strict)
    except shards.RejectError as e:
      print(f'{name}: {e}', file=sys.stderr)
      return 1
    print(_summary(name, tally))
    rejected += tally.rejected.total()
  if rejected:
    print(f'{rejected} left out; see {shards.REJECTS} of each split.')
    return 3
  return 0


if __name__ == '__main__':
  sys.exit(main())
