"""The commands of `python -m tasks.build` that convert original downloads."""

import argparse
from collections.abc import Callable
import dataclasses
import functools
import glob
import pathlib
import sys
from typing import Any

from tasks.build import beam_pipelines
from tasks.build import coco_captions
from tasks.build import field_audit
from tasks.build import llava
from tasks.build import localized_narratives
from tasks.build import original_records
from tasks.build import refcoco
from tasks.build import reports
from tasks.build import shards
from tasks.build import uninext
from tasks.build import visual_genome
from tasks.build import workers


@dataclasses.dataclass(frozen=True)
class _Source:
  """A converter as the command line shows it.

  Attributes:
    read_split: reads annotation files into the plan of a split.
    summary: what it reads.
    parts: what a part of a file is, empty where files have none.
    takes_data_source: whether rows of one data source can be chosen.
    takes_images: whether the pictures are files of their own.
  """

  read_split: Callable[..., shards.Split]
  summary: str
  parts: str = ''
  takes_data_source: bool = False
  takes_images: bool = True


_SOURCES = {
    'ln': _Source(
        localized_narratives.read_split, 'Localized Narratives (JSONL)'
    ),
    'vg': _Source(
        visual_genome.read_split, "Visual Genome regions (GRiT's JSON)"
    ),
    'refcoco': _Source(
        refcoco.read_split, 'RefCOCO, RefCOCO+, RefCOCOg (MDETR JSON)'
    ),
    'uninext': _Source(
        uninext.read_split,
        'RefCOCO-like lists of UNINEXT: mixed COCO and VG, Flickr30k',
        parts='a list of the file, such as train',
        takes_data_source=True,
    ),
    'llava': _Source(llava.read_split, 'LLaVA-Instruct (mix665k JSON)'),
    'coco_captions': _Source(
        coco_captions.read_split,
        "COCO captions (COCO's JSON, or Karpathy's splits)",
        parts="a split of Karpathy's, such as val or train+restval",
    ),
    'tfrecord': _Source(
        original_records.read_split,
        'TFRecords of the original PixelLLM scripts',
        takes_images=False,
    ),
}


def add_commands(commands: Any) -> None:
  """Adds a command for every source.

  Args:
    commands: as `ArgumentParser.add_subparsers` gives them.
  """
  for name, kind in _SOURCES.items():
    source = commands.add_parser(
        name, help=kind.summary, description=kind.summary
    )
    part = f'; #PART is {kind.parts}' if kind.parts else ''
    source.add_argument(
        '--split',
        action='append',
        required=True,
        metavar=f'NAME=FILE[,FILE...]{"[#PART]" if kind.parts else ""}',
        help='a split and its annotation files, * for any letters; may be given'
        ' several times'
        + part,
    )
    if kind.takes_data_source:
      source.add_argument(
          '--data_source',
          choices=uninext.DATA_SOURCES,
          help='convert the rows of this source only; also the source of rows'
          ' that name none',
      )
    if kind.takes_images:
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
    source.add_argument(
        '--runner',
        help='write the shards as an Apache Beam pipeline with this runner,'
        ' such as DirectRunner',
    )
    source.add_argument(
        '--beam_flags',
        default='',
        metavar='TEXT',
        help='further flags of Beam, all in one text',
    )
    source.set_defaults(run=functools.partial(_convert, source))


def _parse_splits(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace
) -> dict[str, tuple[list[pathlib.Path], str | None]]:
  """Checks the arguments; returns split name to files and part."""
  has_parts = bool(_SOURCES[arguments.command].parts)
  splits: dict[str, tuple[list[pathlib.Path], str | None]] = {}
  for text in arguments.split:
    name, _, files = text.partition('=')
    part = None
    if has_parts:
      files, _, part = files.partition('#')
    if not name or not files or '/' in name or name in splits:
      parser.error(
          f'--split {text!r}: expected NAME=FILE[,FILE...] with a name that is'
          f' new and has no slash; names so far: {sorted(splits)}'
      )
    paths = [path for file in files.split(',') for path in _paths(file)]
    splits[name] = (paths, part or None)
    for file in paths:
      if not file.is_file():
        parser.error(f'--split {name}: {file} is not a file')
  for folder in getattr(arguments, 'images', []):
    if not folder.is_dir():
      parser.error(f'--images: {folder} is not a folder')
  for option in ('workers', 'shards'):
    number = getattr(arguments, option)
    if number is not None and number < 1:
      parser.error(f'--{option} is {number}; expected at least 1')
  if arguments.runner and (arguments.strict or arguments.workers != 1):
    parser.error(
        '--runner: leave out --strict and --workers; the machines of a pipeline'
        ' rename each shard as soon as it is written, and Beam has its own'
        ' flags for their number'
    )
  if arguments.beam_flags and not arguments.runner:
    parser.error('--beam_flags: name a --runner')
  return splits


def _paths(file: str) -> list[pathlib.Path]:
  """A file, or all that a pattern with * matches, in the order of names."""
  if '*' not in file:
    return [pathlib.Path(file)]
  # A pattern that matches nothing is named as a file that is not there.
  return sorted(map(pathlib.Path, glob.glob(file))) or [pathlib.Path(file)]


def _writer(arguments: argparse.Namespace) -> shards.WriteAll:
  """What writes the shards."""
  if not arguments.runner:
    return functools.partial(workers.write_all, workers=arguments.workers)
  pipeline = beam_pipelines.Pipeline(arguments.runner, arguments.beam_flags)
  pipeline.check_installed()
  return pipeline.write_all


def _summary(name: str, tally: reports.Tally) -> str:
  lines = [f'{name}:']
  for level, counts in tally.counts().items():
    numbers = ', '.join(f'{key} {value}' for key, value in counts.items())
    lines.append(f'  {level}: {numbers}')
    for action, reasons in tally.reasons().get(level, {}).items():
      numbers = ', '.join(f'{key} {value}' for key, value in reasons.items())
      lines.append(f'    {action}: {numbers}')
  if tally.fields:
    lines.append(field_audit.table(tally.fields))
  return '\n'.join(lines)


def _convert(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace
) -> int:
  """Converts what the arguments name; returns the exit status."""
  splits = _parse_splits(parser, arguments)
  source = _SOURCES[arguments.command]
  try:
    write_all = _writer(arguments)
  except beam_pipelines.BeamError as e:
    print(e, file=sys.stderr)
    return 1
  rejected = 0
  for name, (files, part) in splits.items():
    options: dict[str, Any] = {'part': part} if source.parts else {}
    if source.takes_data_source:
      options['data_source'] = arguments.data_source
    if source.takes_images:
      options['folders'] = arguments.images
    split = source.read_split(
        directory=arguments.output / name,
        files=files,
        num_shards=arguments.shards,
        **options,
    )
    if not split.units:
      details = '; '.join(note.detail for note in split.tally.notes[:5])
      print(f'{name}: nothing to convert. {details}', file=sys.stderr)
      return 1
    try:
      tally = shards.build_split(split, write_all, arguments.strict)
    except (
        shards.RejectError,
        shards.BusyError,
        beam_pipelines.BeamError,
    ) as e:
      print(f'{name}: {e}', file=sys.stderr)
      return 1
    print(_summary(name, tally))
    rejected += tally.rejected.total()
  if rejected:
    print(f'{rejected} left out; see {shards.REJECTS} of each split.')
    return 3
  return 0

