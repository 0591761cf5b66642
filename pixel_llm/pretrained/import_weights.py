r"""Turns weights of other projects into a checkpoint that a run starts from.

    python -m pixel_llm.pretrained.import_weights \
      --gin_file gin/pixel_llm_t5_refseg.gin \
      --source sam_vit_h.pth --source flan-t5-xl/ --source eva02.safetensors \
      --output weights/start
    python -m t5x.train --gin_file gin/pixel_llm_t5_refseg.gin … \
      --gin.INITIAL_CHECKPOINT_PATH='"weights/start"'

The format of each source is detected. Every name is reported: renamed, left out
with the reason, unknown, or misshapen. The last two are errors, and nothing is
written then; --allow_unknown leaves unknown names out. A parameter that two
sources give is an error too; with --first_wins it is that of the first. The
model to fit is that of gin files, which take --gin.NAME=VALUE as a run does, or
of a checkpoint.

Exit status: 0 written; 1 something was unknown or misshapen, or failed; 2 wrong
arguments.
"""

import argparse
from collections.abc import Mapping, Sequence
import os
import re
import sys
from typing import Any

from flax import traverse_util
import numpy as np
import orbax.checkpoint as ocp

from pixel_llm import command_line
from pixel_llm import layer_layout
from pixel_llm.pretrained import fitting
from pixel_llm.pretrained import formats
from pixel_llm.pretrained import name_rules
from pixel_llm.pretrained import peft_adapters
from pixel_llm.pretrained import sources
from pixel_llm.pretrained import target_model
from t5x import checkpoint_dirs
from t5x import checkpoint_reader
from t5x import checkpoints


def _parser() -> argparse.ArgumentParser:
  parser = command_line.new_parser(
      'python -m pixel_llm.pretrained.import_weights', __doc__
  )
  parser.add_argument(
      '--source',
      action='append',
      required=True,
      metavar='[FORMAT=]PATH[:PLACE]',
      help='a file or directory of weights; may be repeated. FORMAT is one of'
      f' {", ".join(formats.FORMATS)}, if detection is wrong; PLACE is the part'
      ' of the network, such as textual/t5_module, if it is not the usual one',
  )
  parser.add_argument(
      '--output',
      metavar='DIR',
      help='where the checkpoint goes, as DIR/checkpoint_0; none: only report',
  )
  model = parser.add_mutually_exclusive_group()
  model.add_argument(
      '--gin_file',
      action='append',
      metavar='FILE',
      help='a gin file of the run; may be repeated. Names and shapes are checked'
      ' against its model, and stacks become scanned or unrolled as they are'
      ' there',
  )
  model.add_argument(
      '--like',
      metavar='CHECKPOINT',
      help='a checkpoint of the model, instead of gin files',
  )
  command_line.add_gin_bindings(parser)
  parser.add_argument(
      '--gin_search_paths',
      default='.',
      metavar='DIR,DIR',
      help='directories in which gin files are looked up (.)',
  )
  parser.add_argument(
      '--allow_unknown',
      action='append',
      default=[],
      metavar='REGEX',
      help='names that are left out where no rule or not the model knows them:'
      " the source's or ours; may be repeated",
  )
  parser.add_argument(
      '--first_wins',
      action='store_true',
      help='a parameter that several sources give is that of the first of them,'
      ' instead of an error: a run, and from SAM what the run lacks',
  )
  parser.add_argument(
      '--dtype',
      choices=('float32', 'bfloat16'),
      help="type of what is written; the source's own without it",
  )
  return parser


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the command line; wrong arguments end the process."""
  parser = _parser()
  args = command_line.parse(parser, argv)
  if args.gin_bindings and not args.gin_file:
    parser.error('Gin bindings say nothing without --gin_file.')
  return args


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  return command_line.run(_run, _parse(argv))


def _run(args: argparse.Namespace) -> int:
  target = _target(args)
  merged: dict[str, Any] = {}
  origin: dict[str, str] = {}
  old_names: dict[str, str] = {}
  num_errors = 0
  for text in args.source:
    chosen, path, place = _parse_source(text)
    source = sources.open_source(path)
    name = chosen or formats.detect(source)
    result = formats.convert(source, name, place)
    print(f'{path}: {formats.FORMATS[name].title}, {source.container}')
    num_errors += _report(source, result, args.allow_unknown)
    if source.config is not None:
      _report_scales(source)
    layers = _layers(result)
    for one in result.renamed:
      given = [layer for layer in layers[one.name] if layer in origin]
      if given and args.first_wins and len(given) == len(layers[one.name]):
        print(f'  {one.source} left out: {origin[given[0]]} came first')
        continue
      if given:
        raise ValueError(
            f'{given[0]} comes from both {origin[given[0]]} and {path}.'
            ' --first_wins takes the one of the first source.'
        )
      merged[one.name], old_names[one.name] = one.array, one.source
      origin |= dict.fromkeys(layers[one.name], path)
  if target is not None:
    result = fitting.fit(merged, target.params)
    num_errors += _report_fit(
        result, target.title, old_names, args.allow_unknown
    )
    merged = result.params
  size = sum(array.size for array in merged.values())
  print(f'Together: {len(merged)} arrays, {size:,} numbers.')
  if num_errors:
    print(
        f'error: {num_errors} names are unknown or misshapen; nothing is'
        ' written. Leave unknown ones out with --allow_unknown.',
        file=sys.stderr,
    )
    return 1
  if args.output:
    path = checkpoints.get_checkpoint_dir(
        checkpoint_dirs.absolute(args.output), 0
    )
    save(path, merged, args.dtype)
    print(f'Written: {path}')
  return 0


def _target(args: argparse.Namespace) -> target_model.TargetModel | None:
  """Reads the model to fit, if there is one."""
  if args.like:
    return target_model.from_checkpoint(args.like)
  if args.gin_file:
    return target_model.from_gin(
        args.gin_file, args.gin_bindings, args.gin_search_paths.split(',')
    )
  return None


def _layers(result: name_rules.Result) -> dict[str, tuple[str, ...]]:
  """Names each parameter as the unrolled form does, one name a layer."""
  flat = {one.name: one.array for one in result.renamed}
  return layer_layout.layer_names(traverse_util.unflatten_dict(flat, sep='/'))


def _parse_source(text: str) -> tuple[str | None, str, str | None]:
  """Splits `[FORMAT=]PATH[:PLACE]`."""
  chosen = None
  head, equals, rest = text.partition('=')
  if equals and head in formats.FORMATS:
    chosen, text = head, rest
  path, colon, place = text.rpartition(':')
  if not colon or '://' in text[len(path) :] or os.path.exists(text):
    return chosen, text, None
  return chosen, path, place


def _report(
    source: sources.Source,
    result: name_rules.Result,
    allowed: Sequence[str],
) -> int:
  """Prints what becomes of every name; returns the number of errors."""
  for one in result.renamed:
    print(f'  {one.source} -> {one.name} {_shape(one.array)}')
  for name, reason in {**source.left_out, **result.left_out}.items():
    print(f'  {name} left out: {reason}')
  num_errors = 0
  for name in result.unknown:
    if _is_allowed(allowed, name):
      print(f'  {name} left out: --allow_unknown')
    else:
      print(f'  {name} UNKNOWN {_shape(source.arrays[name])}')
      num_errors += 1
  for name, what in result.misshapen.items():
    print(f'  {name} MISSHAPEN: {what}')
  return num_errors + len(result.misshapen)


def _report_scales(source: sources.Source) -> None:
  _, scales = peft_adapters.to_ours(source.arrays, source.config)
  for stack, scale in scales.items():
    print(f'  T5TextConfig.{stack}_lora_scale must be {scale}')


def _shape(array: Any) -> str:
  return f'({", ".join(map(str, array.shape))}) {array.dtype}'


def _report_fit(
    result: fitting.Fit,
    title: str,
    old_names: Mapping[str, str],
    allowed: Sequence[str],
) -> int:
  """Prints what does not fit the model; returns the number of errors."""
  num_errors = len(result.wrong)
  for name, reason in result.left_out.items():
    print(f'  {name} left out: {reason}')
  for name, mend in result.unknown.items():
    if _is_allowed(allowed, name, old_names.get(name, name)):
      print(f'  {name} left out: --allow_unknown')
    else:
      print(f'  {name} UNKNOWN to {title}{mend}')
      num_errors += 1
  for name, what in result.wrong.items():
    print(f'  {name} {what}')
  for name in result.fresh:
    print(f'  {name} is in no source: a run starts it fresh')
  return num_errors


def _is_allowed(allowed: Sequence[str], *names: str) -> bool:
  return any(re.fullmatch(p, name) for p in allowed for name in names)


def save(path: str, params: dict[str, Any], dtype: str | None = None) -> None:
  """Writes parameters as an Orbax checkpoint of step 0.

  Args:
    path: the `checkpoint_0` directory.
    params: arrays, lazy or not, by full name.
    dtype: of floating parameters; None keeps theirs.
  """

  def value(array):
    floating = np.issubdtype(array.dtype, np.floating) or (
        np.dtype(array.dtype).name == 'bfloat16'
    )
    array = np.asarray(array)
    return array.astype(dtype) if dtype and floating else array

  state = {
      'target': traverse_util.unflatten_dict(
          {name: value(array) for name, array in params.items()}, sep='/'
      ),
      'state': {'step': np.zeros((), np.int32)},
  }
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    checkpointer.save(
        os.path.join(path, checkpoint_reader.STATE_ITEM),
        args=ocp.args.PyTreeSave(state),
    )


if __name__ == '__main__':
  sys.exit(main())
