r"""Writes the weights of a checkpoint in the layouts of other projects.

    python -m pixel_llm.pretrained.export_weights --checkpoint runs/mine \
      --format t5_hf --output weights/flan --merge_lora --encoder_lora_scale 2 \
      --decoder_lora_scale 2

    pixel_llm  all parameters under our names, one safetensors file
    t5_hf      the T5 text head as Hugging Face T5
    git_hf     the BERT text head as Hugging Face GIT, without its image tower
    peft       the low-rank adapters as peft's two files
    sam        SAM's networks as Meta's `.pth` names them, as safetensors
    sam_hf     the same as Hugging Face SAM

`import_weights` reads each of them back. Exit status: 0 written; 1 failed.
"""

import argparse
from collections.abc import Mapping, Sequence
import json
import pathlib
import sys
from typing import Any

from flax import traverse_util
import numpy as np

from pixel_llm import command_line
from pixel_llm import layer_layout
from pixel_llm.modules import lora
from pixel_llm.pretrained import bert_hf
from pixel_llm.pretrained import name_rules
from pixel_llm.pretrained import peft_adapters
from pixel_llm.pretrained import sam
from pixel_llm.pretrained import t5_hf
from t5x import checkpoints

_WEIGHTS_FILE = 'model.safetensors'
_T5 = 'textual/t5_module/'
_BERT = 'textual/'
_SAM = ('sam_backbone/', 'prompt_encoder/', 'mask_decoder/')
_FORMATS = ('pixel_llm', 't5_hf', 'git_hf', 'peft', 'sam', 'sam_hf')

_CONVERTERS = {
    'git_hf': bert_hf.to_git,
    't5_hf': t5_hf.TABLE.to_theirs,
    'sam': sam.META_TABLE.to_theirs,
    'sam_hf': sam.HF_TABLE.to_theirs,
}


def _parser() -> argparse.ArgumentParser:
  parser = command_line.new_parser(
      'python -m pixel_llm.pretrained.export_weights', __doc__
  )
  parser.add_argument('--checkpoint', required=True, metavar='DIR')
  parser.add_argument('--format', required=True, choices=_FORMATS)
  parser.add_argument('--output', required=True, metavar='DIR')
  parser.add_argument(
      '--merge_lora',
      action='store_true',
      help='fold the adapters into the kernels; without it an export of T5'
      ' refuses them',
  )
  for stack in ('encoder', 'decoder'):
    parser.add_argument(
        f'--{stack}_lora_scale',
        type=float,
        default=2.0,
        help=f'T5TextConfig.{stack}_lora_scale of the run (2.0)',
    )
  return parser


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  return command_line.run(_run, _parser().parse_args(argv))


def _run(args: argparse.Namespace) -> int:
  params = read_params(args.checkpoint)
  scales = {
      'encoder': args.encoder_lora_scale,
      'decoder': args.decoder_lora_scale,
  }
  if args.merge_lora:
    params = merge_adapters(params, scales)
  _write(args.format, params, scales, pathlib.Path(args.output))
  return 0


def read_params(checkpoint: str) -> dict[str, Any]:
  """Returns the parameters of a run by name, unrolled and not yet read."""
  tree = checkpoints.load_t5x_checkpoint(checkpoint, lazy_parameters=True)
  return traverse_util.flatten_dict(
      layer_layout.to_unrolled(tree['target']), sep='/'
  )


def merge_adapters(
    params: Mapping[str, Any], scales: Mapping[str, float]
) -> dict[str, Any]:
  """Folds the adapters of the T5 text head into its kernels.

  Args:
    params: parameters by full name.
    scales: scale of the adapters in `encoder` and `decoder`.

  Returns:
    The parameters without adapters.
  """
  merged = {k: v for k, v in params.items() if not peft_adapters.is_adapter(k)}
  for stack, scale in scales.items():
    prefix = f'{_T5}{stack}/'
    nested = traverse_util.unflatten_dict(
        {
            name.removeprefix(prefix): value
            for name, value in params.items()
            if name.startswith(prefix) and _has_adapter(name, params)
        },
        sep='/',
    )
    for name, value in traverse_util.flatten_dict(
        lora.merge(nested, scale), sep='/'
    ).items():
      merged[prefix + name] = value
  return merged


def _has_adapter(name: str, params: Mapping[str, Any]) -> bool:
  parent = name.rpartition('/')[0]
  return f'{parent}/{lora.LEFT}' in params or f'{parent}/{lora.RIGHT}' in params


def _write(
    kind: str,
    params: Mapping[str, Any],
    scales: Mapping[str, float],
    output: pathlib.Path,
) -> None:
  output.mkdir(parents=True, exist_ok=True)
  if kind == 'pixel_llm':
    save_safetensors(output / _WEIGHTS_FILE, params)
    return
  # SAM's networks lie side by side, so their names stay whole.
  prefix = {'git_hf': _BERT, 'sam': '', 'sam_hf': ''}.get(kind, _T5)
  below = prefix or _SAM
  part = {
      name.removeprefix(prefix): value
      for name, value in params.items()
      if name.startswith(below)
  }
  if not part:
    raise ValueError(f'The checkpoint has no parameters below {below}.')
  if kind == 'peft':
    result, config = peft_adapters.to_peft(part, scales)
    (output / peft_adapters.CONFIG_FILE).write_text(
        json.dumps(config, indent=2) + '\n'
    )
    file = output / peft_adapters.TENSORS_FILE
  else:
    result = _CONVERTERS[kind](part)
    file = output / _WEIGHTS_FILE
  _check_all_known(kind, result)
  save_safetensors(file, result.arrays())


def _check_all_known(kind: str, result: name_rules.Result) -> None:
  """Refuses to leave parameters out of an export."""
  names = [*result.unknown, *result.misshapen]
  adapters = [name for name in names if peft_adapters.is_adapter(name)]
  if adapters:
    raise ValueError(
        f'{kind} has no place for {len(adapters)} adapters, such as'
        f' {adapters[0]}: merge them with --merge_lora, or write them with'
        ' --format peft.'
    )
  if names:
    raise ValueError(f'{kind} has no place for {names}.')


def save_safetensors(path: pathlib.Path, arrays: Mapping[str, Any]) -> None:
  """Writes arrays, lazy or not, in the layout that PyTorch reads."""
  from safetensors import numpy as safetensors_numpy

  safetensors_numpy.save_file(
      {
          # A transposed view would be written as it lies in memory.
          name: np.ascontiguousarray(array)
          for name, array in arrays.items()
      },
      path,
      metadata={'format': 'pt'},
  )
  print(f'Written: {path} ({len(arrays)} arrays)')


if __name__ == '__main__':
  sys.exit(main())
