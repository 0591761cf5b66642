"""Runs the golden cases of whole examples: `io_annotations`, `io_pipeline`.

Rows are prompts: padded or cut to a number, given boxes to look at and losses
to join. The original pads in its input pipeline; here the feature converter
does, and the tasks cut. The pipeline is TensorFlow and lives in `tasks`; it is
imported inside the functions, so that listing the runners needs none of it.
"""

from collections.abc import Mapping, Sequence
import re
from typing import Any

import numpy as np

from pixel_llm import features
from pixel_llm import mask_bits
from pixel_llm.golden import case as golden_case
from pixel_llm.golden.runners import pipeline_case

_Fields = Mapping[str, Any]

# The fields that each of the original's ways of padding touches.
_PADDED = {
    'detection': ('boxes', 'labels', 'text_tokens', 'context_tokens', 'area')
    + ('refexp_ids',),
    'caption': ('labels', 'text_tokens', 'context_tokens', 'refexp_ids'),
    'loco': ('points', 'prompt_points'),
    'masks': ('masks',),
}


def _pad_rows(name: str, value: Any, shape: Sequence[int]) -> np.ndarray:
  """Cuts the rows as a task does and pads as the feature converter does."""
  import tensorflow as tf

  from pixel_llm import feature_converters
  from tasks import outputs

  kept = tf.range(min(shape[0], len(value)))
  cut = outputs.take_rows({name: tf.constant(value)}, (name,), kept)[name]
  return feature_converters.pad_feature(cut, tuple(shape)).numpy()


def _padded(case: golden_case.Case, op: str) -> dict[str, np.ndarray]:
  """The fields of an output such as `caption4_without_labels`."""
  kind, count, missing = re.fullmatch(
      r'([a-z]+)(\d+)(?:_without_(\w+))?', op
  ).groups()
  label = {
      name.removeprefix('label/'): value
      for name, value in case.inputs.items()
      if name.startswith('label/')
  }
  fields = {}
  for name in _PADDED[kind]:
    value = label[name]
    # Our tasks yield every feature, with no row where there is nothing.
    if missing and name in missing.split('_'):
      value = value[:0]
    shape = (int(count), *value.shape[1:])
    if kind == 'masks':
      # Masks are padded in height and width too; no setting says how far.
      shape = case.expected[f'out/{op}/masks'].shape
    fields[name] = _pad_rows(name, value, shape)
  if kind == 'caption':
    fields['boxes'] = label['boxes']
  return fields


def _prompt_boxes(case: golden_case.Case, how: str) -> np.ndarray:
  """Where prompts look: the whole picture, nowhere, or at the true boxes."""
  import tensorflow as tf

  from tasks import image_ops

  boxes = case.inputs['label/boxes']
  rows = len(case.inputs['label/text_tokens'])
  if how == 'gt':
    return boxes
  if how == 'zero':
    return np.zeros((rows, 4), np.float32)
  if how != 'default':
    rows = int(how)
  hw = tf.constant(case.inputs['label/size'])
  return image_ops.image_boxes(hw, rows).numpy()


def _prompt_points(case: golden_case.Case, how: str) -> np.ndarray:
  """Zeros, as in the original; our network makes the points of the boxes."""
  rows, points = case.inputs['label/prompt_points'].shape[:2]
  if how != 'default':
    rows, points = (int(number) for number in how.split('_'))
  return np.zeros((rows, points, 2), np.float32)


def _task_flags(tasks: str) -> np.ndarray:
  """The original's flags of an example: caption, proposal, object caption, point.

  Ours are a weight a prompt; a task with several objectives has the flags of
  all.

  Args:
    tasks: the original's names, such as `point+caption`.

  Returns:
    Four flags.
  """
  import tensorflow as tf

  from tasks import outputs

  joined = {
      'caption': {'caption': 1.0},
      'point': {'point': 1.0},
      'proposal': {'detection': 1.0},
      'object_caption': {'caption': 1.0, 'object_captions': True},
      'detection': {
          'detection': 1.0,
          'caption': 1.0,
          'object_captions': True,
      },
  }
  flags = np.zeros(4, np.int32)
  for task in [] if tasks == '(none)' else tasks.split('+'):
    flags |= _loss_flags(outputs.loss_fields(tf.constant(1), **joined[task]))
  return flags


def _loss_flags(fields: _Fields) -> np.ndarray:
  """Caption, proposal, object caption, point: 1 if some prompt joins."""
  caption, detection, objects, point = (
      np.asarray(fields[name])
      for name in (
          'caption_weights',
          'detection_weights',
          'object_captions',
          'point_weights',
      )
  )
  joins = [caption * ~objects, detection, caption * objects, point]
  return np.asarray([np.any(weights > 0) for weights in joins], np.int32)


def run_io_annotations(case: golden_case.Case) -> dict[str, np.ndarray]:
  """Pads rows, adds prompts, and flags the losses, by the figures' names."""
  outputs = {}
  for op, field in {tuple(key.split('/')[1:3]) for key in case.expected}:
    if op == 'task_mask':
      outputs[f'out/{op}/{field}'] = _task_flags(field)
    elif op.startswith('prompt_boxes_'):
      how = op.removeprefix('prompt_boxes_')
      outputs[f'out/{op}/prompt_boxes'] = _prompt_boxes(case, how)
    elif op.startswith('prompt_points_'):
      how = op.removeprefix('prompt_points_')
      outputs[f'out/{op}/prompt_points'] = _prompt_points(case, how)
    else:
      for name, value in _padded(case, op).items():
        outputs[f'out/{op}/{name}'] = value
  return outputs


def _record(case: golden_case.Case, image_id: int) -> bytes:
  """The example as our converter stores it; no row of it is left out."""
  from tasks.build import example_proto

  strings = pipeline_case.strings(case, 'pipeline')
  height, width = case.inputs['image'].shape[:2]
  num_objects = len(case.inputs['boxes_yxyx'])
  lengths = strings['expressions_per_object']
  masks = [case.inputs[f'mask_png{i}'].tobytes() for i in range(num_objects)]
  return example_proto.serialize(
      {
          'image': case.inputs['image_png'].tobytes(),
          'image/id': image_id,
          'image/file_name': f'{image_id}.png',
          'image/height': height,
          'image/width': width,
          'objects/bbox': case.inputs['boxes_yxyx'],
          'objects/mask': masks,
          'objects/mask_rle': [_run_lengths(mask) for mask in masks],
          'objects/refexp/refexp_id/ragged_flat_values': strings['refexp_ids'],
          'objects/refexp/refexp_id/ragged_row_lengths_0': lengths,
          'objects/refexp/sent/ragged_flat_values': strings['expressions'],
          'objects/refexp/sent/ragged_row_lengths_0': lengths,
      }
  )


def _run_lengths(mask_png: bytes) -> bytes:
  """A mask as the converter adds it to the original's picture."""
  from pycocotools import mask as mask_lib
  import tensorflow as tf

  pixels = tf.io.decode_png(mask_png, channels=1).numpy()[..., 0]
  return mask_lib.encode(np.asfortranarray(pixels > 0))['counts']


def _referring(
    case: golden_case.Case, name: str, vocabulary: Any, training: bool
) -> dict[str, np.ndarray]:
  """The RefCOCO task on one record, down to what the model gets.

  Training draws rows and their order; the figure has them in the order of the
  record, so they are sorted back before the prompts beyond N are cut.
  """
  import tensorflow as tf

  from pixel_llm import feature_converters
  from tasks import outputs
  from tasks import refcoco

  setting = case.settings['ref_eval']
  size, num_prompts, length = (
      pipeline_case.number(setting, pattern)
      for pattern in (r'pad (\d+)', r'pad to (\d+) objects', r'(\d+) tokens')
  )
  _, _, flags = case.settings[name].partition('task flags for ')
  place = {
      'record': tf.constant(
          _record(case, int(case.expected[f'out/{name}/label/image/id']))
      ),
      'seed': tf.constant([0, 0], tf.int64),
      'training': tf.constant(training),
  }
  parsed = refcoco.parse_record(place)
  num_rows = len(parsed['texts'])
  drawn = refcoco.choose_rows(
      parsed,
      pipeline_case.number(setting, r'resize to (\d+)'),
      num_rows,
      (1.0, 1.0),
  )
  where = {row: i for i, row in enumerate(drawn['prompt_ids'].numpy())}
  order = [where[row] for row in parsed['prompt_ids'].numpy()]
  example = outputs.take_rows(drawn, refcoco.ROW_FIELDS, order[:num_prompts])
  lengths = features.feature_lengths(
      size, num_prompts, length, length, with_masks=True
  )
  decoded = refcoco.decode_with_masks(example)
  finished = refcoco.finish_rows(
      decoded,
      features.sizes_of(lengths),
      vocabulary,
      caption_weight=float('caption' in flags),
      with_masks=True,
      context_prefix=pipeline_case.quoted(setting, 'with'),
  )
  converter = feature_converters.PixelLLMMaskFeatureConverter()
  dataset = converter(tf.data.Dataset.from_tensors(finished), lengths)
  batch = next(dataset.as_numpy_iterator())
  return _original_fields(decoded, batch) | {
      f'label/{name}': flag for name, flag in zip(_FLAGS, _loss_flags(finished))
  }


_FLAGS = (
    'cap_loss_valid_mask',
    'proposal_loss_valid_mask',
    'objcap_loss_valid_mask',
    'point_loss_valid_mask',
)


def _original_fields(
    example: _Fields, batch: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """A finished example in the original's names and forms.

  Ours differ in three places: pictures are rounded to uint8, a mask's pixel is
  1 and not 255, and what pads the prompts has no box to look at, which does
  not matter where nothing reads it.
  """
  from tasks import image_ops
  from tasks import views

  view = views.from_fields(example)
  size = batch['image'].shape[0]
  pixels = view.pixels(example['image'], size).numpy()
  assert np.array_equal(np.round(pixels), batch['image']), 'another picture'
  prompts = batch['prompt_mask']
  boxes = image_ops.image_boxes(view.hw, len(prompts)).numpy()
  boxes[prompts] = batch['prompt_boxes'][prompts]
  height, width = batch['image_hw']
  padding_mask = np.zeros((size, size), np.float32)
  padding_mask[:height, :width] = 1
  ids = example['prompt_ids'].numpy().astype(np.int32)
  masks = np.asarray(mask_bits.unpack(batch['masks'], size))
  return {
      'inputs': pixels,
      'padding_mask': padding_mask,
      'label/boxes': batch['boxes'],
      'label/prompt_boxes': boxes,
      'label/text_tokens': batch['text_tokens'],
      'label/context_tokens': batch['context_tokens'],
      'label/labels': prompts.astype(np.int32),
      'label/refexp_ids': np.pad(ids, (0, len(prompts) - len(ids))),
      'label/masks': masks[..., np.newaxis] * 255,
      'label/orig_size': view.orig_hw.numpy(),
      'label/size': batch['image_hw'],
      'label/padded_size': np.asarray([size, size]),
      'label/image/id': np.asarray(int(example['image_id'].numpy())),
  }


def _regions(case: golden_case.Case, vocabulary: Any) -> dict[str, np.ndarray]:
  """Regions with their phrases, seen whole, under one request."""
  import tensorflow as tf

  from tasks import image_ops
  from tasks import text_ops
  from tasks import views

  setting = case.settings['region_eval']
  whole = case.settings['ref_eval']
  decoding, _, prompting = setting.partition('prompt')
  image = tf.constant(case.inputs['image'])
  view = views.fitted_view(
      image_ops.image_hw(image),
      pipeline_case.number(whole, r'resize to (\d+)'),
  )
  size = pipeline_case.number(whole, r'pad (\d+)')
  rows = pipeline_case.number(decoding, r'pad to (\d+)')
  boxes = image_ops.yxyx_to_xyxy(
      tf.constant(case.inputs['boxes_yxyx']), view.orig_hw
  )
  tokens = text_ops.tokenize(
      tf.constant(pipeline_case.strings(case, 'pipeline')['phrases']),
      vocabulary,
      pipeline_case.number(decoding, r'(\d+) tokens'),
  )
  request = pipeline_case.quoted(setting, 'prompt')
  valid = tf.ones([*view.hw.numpy(), 1])
  label = {
      'boxes': _pad_rows('boxes', view.boxes(boxes), (rows, 4)),
      'text_tokens': _pad_rows('text_tokens', tokens, (rows, tokens.shape[1])),
      'labels': _pad_rows('labels', np.ones(len(boxes), np.int32), (rows,)),
      'context_tokens': text_ops.tokenize(
          tf.constant([request] * rows),
          vocabulary,
          pipeline_case.number(prompting, r'(\d+) tokens'),
          begin=False,
          end='end token' in prompting,
      ).numpy(),
      'orig_size': view.orig_hw.numpy(),
      'size': view.hw.numpy(),
      'padded_size': np.asarray([size, size]),
      # Nothing here carries the picture's name.
      'image/id': case.expected['out/region_eval/label/image/id'],
  }
  return {
      'inputs': view.pixels(image, size).numpy(),
      'padding_mask': image_ops.pad_image(valid, size)[..., 0].numpy(),
      **{f'label/{name}': value for name, value in label.items()},
  }


def run_io_pipeline(case: golden_case.Case) -> dict[str, np.ndarray]:
  """Runs the RefCOCO task on one picture, and regions through the same ops."""
  with pipeline_case.vocabularies(case) as both:
    chains = {
        'ref_eval': _referring(case, 'ref_eval', both['sp'], training=False),
        'ref_train_scale1': _referring(
            case, 'ref_train_scale1', both['sp'], training=True
        ),
        'region_eval': _regions(case, both['sp']),
    }
  # Evaluation has no use for flags, and training none for expression ids.
  for flag in _FLAGS:
    del chains['ref_eval'][f'label/{flag}']
  del chains['ref_train_scale1']['label/refexp_ids']
  return {
      f'out/{chain}/{name}': value
      for chain, fields in chains.items()
      for name, value in fields.items()
  }


RUNNERS = {
    'io_annotations': run_io_annotations,
    'io_pipeline': run_io_pipeline,
}
