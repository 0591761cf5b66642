"""Runs the golden case of the input pipeline's geometry.

The pipeline is TensorFlow and lives in `tasks`; both are imported inside the
functions, so that listing the runners needs neither.
"""

from collections.abc import Mapping
import re
from typing import Any

import numpy as np

from pixel_llm.golden import case as golden_case
from pixel_llm.golden.runners import pipeline_case

_ROW_FIELDS = ('boxes', 'labels', 'area', 'text_tokens', 'refexp_ids', 'masks')


def _label(case: golden_case.Case, name: str) -> dict[str, Any]:
  """An image of `io_geometry` and its labels as tensors."""
  import tensorflow as tf

  prefix = f'{name}/'
  return {
      key.removeprefix(prefix).removeprefix('label/'): tf.constant(value)
      for key, value in case.inputs.items()
      if key.startswith(prefix)
  }


def _resize(label: Mapping[str, Any], hw: Any) -> dict[str, Any]:
  """Resizes an image and all its labels."""
  from tasks import image_ops

  old_hw = image_ops.image_hw(label['inputs'])
  resized = {
      'inputs': image_ops.resize_image(label['inputs'], hw),
      'points': image_ops.scale_points(label['points'], old_hw, hw),
      'masks': _resized_masks(label['masks'], hw),
      'size': hw,
  }
  for name in ('boxes', 'prompt_boxes'):
    resized[name] = image_ops.scale_boxes(label[name], old_hw, hw)
  resized['area'] = image_ops.box_areas(resized['boxes'])
  return {**label, **resized}


def _resized_masks(masks: Any, hw: Any) -> Any:
  """Resizes masks as the tasks do, who read them as run lengths."""
  from pycocotools import mask as mask_lib
  import tensorflow as tf

  from tasks import image_ops
  from tasks import run_lengths

  columns_first = np.asfortranarray(np.moveaxis(masks[..., 0], 0, -1) > 0)
  counts = [rle['counts'] for rle in mask_lib.encode(columns_first)]
  old_hw = image_ops.image_hw(masks)
  ends = run_lengths.run_ends(tf.constant(counts), old_hw)
  rows, columns = (
      image_ops.nearest_pixels(old_hw[axis], hw[axis]) for axis in (0, 1)
  )
  resized = run_lengths.sample(ends, old_hw[0], rows, columns)
  return resized[..., tf.newaxis] * tf.uint8.max


def _crop(label: Mapping[str, Any], offset: Any, side: int) -> dict[str, Any]:
  """Crops, and drops the objects that are no longer seen."""
  import tensorflow as tf

  from tasks import image_ops

  crop_hw = tf.minimum(image_ops.image_hw(label['inputs']), side)
  cropped = {
      **label,
      'inputs': image_ops.crop_image(label['inputs'], offset, crop_hw),
      'points': image_ops.crop_points(label['points'], offset, crop_hw),
      'masks': image_ops.crop_image(label['masks'], offset, crop_hw),
      'size': crop_hw,
  }
  for name in ('boxes', 'prompt_boxes'):
    cropped[name] = image_ops.crop_boxes(label[name], offset, crop_hw)
  cropped['area'] = image_ops.box_areas(cropped['boxes'])
  seen = image_ops.has_area(cropped['boxes'])
  for name in _ROW_FIELDS:
    cropped[name] = tf.boolean_mask(cropped[name], seen)
  return cropped


def _flip(label: Mapping[str, Any]) -> dict[str, Any]:
  """Mirrors an image and all its labels."""
  from tasks import image_ops

  width = image_ops.image_hw(label['inputs'])[1]
  return {
      **label,
      'inputs': label['inputs'][:, ::-1],
      'masks': label['masks'][:, :, ::-1],
      'points': image_ops.flip_points(label['points'], width),
      'boxes': image_ops.flip_boxes(label['boxes'], width),
      'prompt_boxes': image_ops.flip_boxes(label['prompt_boxes'], width),
  }


def _pad(label: Mapping[str, Any], side: int) -> dict[str, Any]:
  """Pads an image and says which part of it is valid."""
  import tensorflow as tf

  from tasks import image_ops

  valid = tf.ones_like(label['inputs'][..., :1])
  return {
      **label,
      'inputs': image_ops.pad_image(label['inputs'], side),
      'padding_mask': image_ops.pad_image(valid, side)[..., 0],
      'padded_size': tf.constant([side, side]),
  }


def _geometry(
    case: golden_case.Case, label: dict[str, Any], name: str, op: str
) -> dict[str, Any]:
  """Applies the operation that an output is named after."""
  import tensorflow as tf

  from tasks import image_ops

  chain = case.settings['chain']
  hw = image_ops.image_hw(label['inputs'])
  if match := re.fullmatch(r'shorter(\d+)(?:_max(\d+))?', op):
    shorter, longest = match.groups()
    longest = None if longest is None else int(longest)
    return _resize(label, image_ops.shorter_side_hw(hw, int(shorter), longest))
  if match := re.fullmatch(r'ratio([\d.]+)', op):
    ratio = tf.constant(float(match[1]))
    size = pipeline_case.number(chain, r'ratio resize [\d.]+ to (\d+)')
    return _resize(label, image_ops.ratio_hw(hw, size, ratio))
  if match := re.fullmatch(r'crop(\d+)_at(\d+)_(\d+)', op):
    side, row, column = (int(number) for number in match.groups())
    return _crop(label, tf.constant([row, column]), side)
  if match := re.fullmatch(r'center_crop(\d+)', op):
    side = int(match[1])
    return _crop(label, image_ops.center_crop_offset(hw, side), side)
  if op == 'hflip':
    return _flip(label)
  if match := re.fullmatch(r'pad(\d+)', op):
    side = int(match[1])
    padded = _pad(label, side)
    masks = image_ops.pad_image(label['masks'], side)
    # The figure pads the number of objects as well.
    rows = len(case.expected[f'out/{name}/{op}/label/masks'])
    missing = rows - len(label['masks'])
    padded['masks'] = tf.pad(masks, [[0, missing], [0, 0], [0, 0], [0, 0]])
    return padded
  if op == 'chain':
    ratio = pipeline_case.search(chain, r'ratio resize ([\d.]+)')[1]
    resized = _geometry(case, label, name, f'ratio{ratio}')
    offset = [
        pipeline_case.number(chain, rf'\({number}\) for {name}')
        for number in (r'(\d+), \d+', r'\d+, (\d+)')
    ]
    side = pipeline_case.number(chain, r'crop (\d+)')
    cropped = _crop(resized, tf.constant(offset), side)
    return _pad(cropped, pipeline_case.number(chain, r'pad to (\d+)'))
  raise ValueError(f'io_geometry names an unknown operation {op!r}.')


def run_io_geometry(case: golden_case.Case) -> dict[str, np.ndarray]:
  """Resizes, crops, mirrors and pads images with their labels."""
  outputs = {}
  ops = {tuple(key.split('/')[1:3]) for key in case.expected}
  for name, op in sorted(ops):
    moved = _geometry(case, _label(case, name), name, op)
    for key, value in moved.items():
      part = key if key in ('inputs', 'padding_mask') else f'label/{key}'
      outputs[f'out/{name}/{op}/{part}'] = value.numpy()
  return outputs


RUNNERS = {'io_geometry': run_io_geometry}
