"""Matrix work of single instructions of a compiled program."""

import math
import re

from t5x import hlo_text
from t5x import matmul_flops

_WINDOW = re.compile(r'window=\{([^}]*)\}')


def flops_of(
    computation: hlo_text.Computation, instruction: hlo_text.Instruction
) -> float:
  """Returns FLOPs of a product or convolution, 0 for all else.

  Args:
    computation: where the instruction stands.
    instruction: not a fusion, whose inner instructions do its work.
  """
  if instruction.opcode == 'dot':
    return _dot_flops(computation, instruction)
  if instruction.opcode == 'convolution':
    return _convolution_flops(computation, instruction)
  return 0.0


def _dims(instruction: hlo_text.Instruction, name: str) -> list[int]:
  """Returns an attribute such as `lhs_contracting_dims={1,2}`."""
  match = re.search(rf'\b{name}=\{{([\d,]*)\}}', instruction.attributes)
  return [int(n) for n in match[1].split(',') if n] if match else []


def _dot_flops(
    computation: hlo_text.Computation, dot: hlo_text.Instruction
) -> float:
  lhs = computation.operand_arrays(dot)[0].dims
  contracted = math.prod(lhs[d] for d in _dims(dot, 'lhs_contracting_dims'))
  return 2.0 * contracted * math.prod(dot.arrays[0].dims)


def _convolution_flops(
    computation: hlo_text.Computation, convolution: hlo_text.Instruction
) -> float:
  """TPUs write every product as a convolution, batches as dilated windows."""
  lhs, rhs = (a.dims for a in computation.operand_arrays(convolution)[:2])
  out = convolution.arrays[0].dims
  labels = convolution.attribute('dim_labels')
  inputs, kernel, outputs = re.split('_|->', labels)
  window = _window(convolution)
  pairs = 1
  for spatial in sorted(set(inputs) - set('bf')):
    place = int(spatial)
    pairs *= matmul_flops.meeting_pairs(
        size=lhs[inputs.index(spatial)],
        kernel=rhs[kernel.index(spatial)],
        out=out[outputs.index(spatial)],
        stride=window.get('stride', {}).get(place, 1),
        padding=window.get('pad', {}).get(place, 0),
        dilation=window.get('lhs_dilate', {}).get(place, 1),
        kernel_dilation=window.get('rhs_dilate', {}).get(place, 1),
    )
  plane = out[outputs.index('b')] * out[outputs.index('f')]
  return 2.0 * pairs * plane * rhs[kernel.index('i')]


def _window(convolution: hlo_text.Instruction) -> dict[str, dict[int, int]]:
  """Returns settings by spatial dimension; of padding, what stands before."""
  match = _WINDOW.search(convolution.attributes)
  return {
      name: {
          place: int(part.split('_')[0])
          for place, part in enumerate(value.split('x'))
      }
      for name, value in (
          item.split('=') for item in (match[1].split() if match else ())
      )
  }
