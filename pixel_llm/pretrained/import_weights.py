r"""Turns weights of other projects into a checkpoint that a run starts from.

    python -m pixel_llm.pretrained.import_weights \
      --source sam_vit_h.pth --source flan-t5-xl/ --source eva02.safetensors \
      --output weights/start
    python -m t5x.train … --gin.INITIAL_CHECKPOINT_PATH='"weights/start"'

The format of each source is detected. Every name is reported: renamed, left out
with the reason, unknown, or misshapen. The last two are errors, and nothing is
written then; --allow_unknown leaves unknown names out.

Exit status: 0 written; 1 something was unknown or misshapen, or failed; 2 wrong
arguments.
"""

import argparse
from collections.abc import Sequence
import os
import re
import sys
from typing import Any

from flax import traverse_util
import numpy as np
import orbax.checkpoint as ocp

from pixel_llm import layer_layout
from pixel_llm.pretrained import formats
from pixel_llm.pretrained import name_rules
from pixel_llm.pretrained import peft_adapters
from pixel_llm.pretrained import sources
from t5x import checkpoint_reader
from t5x import checkpoints


def _parser() -> argparse.ArgumentParser:
  summary, _, rest = __doc__.partition('\n\n')
  parser = argparse.ArgumentParser(
      prog='python -m pixel_llm.pretrained.import_weights',
      description=summary,
      epilog=rest,
      formatter_class=argparse.RawDescriptionHelpFormatter,
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
  parser.add_argument(
      '--like',
      metavar='CHECKPOINT',
      help='a checkpoint of the model: names and shapes are checked against it,'
      ' and stacks become scanned or unrolled as they are there',
  )
  parser.add_argument(
      '--allow_unknown',
      action='append',
      default=[],
      metavar='REGEX',
      help='unknown names of the sources that are left out; may be repeated',
  )
  parser.add_argument(
      '--dtype',
      choices=('float32', 'bfloat16'),
      help="type of what is written; the source's own without it",
  )
  return parser


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  args = _parser().parse_args(argv)
  try:
    return _run(args)
  except (ValueError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 1


def _run(args: argparse.Namespace) -> int:
  merged: dict[str, Any] = {}
  origin: dict[str, str] = {}
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
    for one in result.renamed:
      if one.name in merged:
        raise ValueError(
            f'{one.name} comes from both {origin[one.name]} and {path}.'
        )
      merged[one.name], origin[one.name] = one.array, path
  if args.like:
    merged, num_wrong = _fit(merged, args.like)
    num_errors += num_wrong
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
    path = checkpoints.get_checkpoint_dir(os.path.abspath(args.output), 0)
    save(path, merged, args.dtype)
    print(f'Written: {path}')
  return 0


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
    if any(re.fullmatch(pattern, name) for pattern in allowed):
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


def _fit(merged: dict[str, Any], like: str) -> tuple[dict[str, Any], int]:
  """Brings parameters into a model's form; reports what does not fit."""
  tree = checkpoint_reader.read_tree(checkpoints.find_checkpoint(like))
  target = tree['target']
  wanted = traverse_util.flatten_dict(target, sep='/')
  nested = traverse_util.unflatten_dict(merged, sep='/')
  fitted = traverse_util.flatten_dict(
      layer_layout.to_layout_of(nested, target), sep='/'
  )
  num_wrong = 0
  for name, array in fitted.items():
    if name not in wanted:
      print(f'  {name} UNKNOWN to {like}')
      num_wrong += 1
    elif tuple(wanted[name].shape) != tuple(array.shape):
      print(
          f'  {name} MISSHAPEN: {tuple(array.shape)}, {like} has'
          f' {tuple(wanted[name].shape)}'
      )
      num_wrong += 1
  for name in wanted:
    if name not in fitted:
      print(f'  {name} is in no source: a run starts it fresh')
  return fitted, num_wrong


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
