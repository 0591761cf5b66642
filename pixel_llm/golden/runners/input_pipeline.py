"""Runs the golden cases of the input pipeline.

The pipeline is TensorFlow and lives in `tasks`; both are imported inside the
functions, so that listing the runners needs neither.
"""

from collections.abc import Iterator, Mapping
import contextlib
import json
import pathlib
import re
import tempfile
from typing import Any

import numpy as np

from pixel_llm.golden import case as golden_case

_ROW_FIELDS = ('boxes', 'labels', 'area', 'text_tokens', 'refexp_ids', 'masks')


def _strings(case: golden_case.Case, section: str) -> dict[str, Any]:
  """The strings that go with a case."""
  path = case.directory / 'io_strings.json'
  return json.loads(path.read_text(encoding='utf-8'))[section]


@contextlib.contextmanager
def _vocabularies(case: golden_case.Case) -> Iterator[dict[str, Any]]:
  """The two tiny vocabularies of the `io_*` cases, by the figures' names."""
  from tasks import vocabularies

  strings = _strings(case, 'decode')
  decode = golden_case.load_case(case.directory, 'io_decode')
  special = strings['special_bert']
  with tempfile.TemporaryDirectory() as folder:
    model = pathlib.Path(folder) / 'spiece.model'
    model.write_bytes(decode.inputs['sentencepiece_model'].tobytes())
    words = pathlib.Path(folder) / 'vocab.txt'
    words.write_text('\n'.join(strings['wordpiece_vocab']) + '\n')
    yield {
        'sp': vocabularies.SentencePieces(str(model)),
        'bert': vocabularies.WordPieces(
            str(words),
            lower_case=True,
            start_of_sequence_id=special['bos'],
            end_of_sequence_id=special['eos'],
        ),
    }


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
      'masks': image_ops.resize_masks(label['masks'], hw),
      'size': hw,
  }
  for name in ('boxes', 'prompt_boxes'):
    resized[name] = image_ops.scale_boxes(label[name], old_hw, hw)
  resized['area'] = image_ops.box_areas(resized['boxes'])
  return {**label, **resized}


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


def _geometry(label: dict[str, Any], name: str, op: str) -> dict[str, Any]:
  """Applies the operation that an output is named after."""
  import tensorflow as tf

  from tasks import image_ops

  hw = image_ops.image_hw(label['inputs'])
  if match := re.fullmatch(r'shorter(\d+)(?:_max(\d+))?', op):
    shorter, longest = match.groups()
    longest = None if longest is None else int(longest)
    return _resize(label, image_ops.shorter_side_hw(hw, int(shorter), longest))
  if match := re.fullmatch(r'ratio([\d.]+)', op):
    ratio = tf.constant(float(match[1]))
    return _resize(label, image_ops.ratio_hw(hw, 40, ratio))
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
    # The figure pads to four objects as well.
    missing = 4 - len(label['masks'])
    padded['masks'] = tf.pad(masks, [[0, missing], [0, 0], [0, 0], [0, 0]])
    return padded
  if op == 'chain':
    resized = _geometry(label, name, 'ratio1.25')
    offset = {'wide': [0, 5], 'tall': [2, 0]}[name]
    return _pad(_crop(resized, tf.constant(offset), 40), 40)
  raise ValueError(f'io_geometry names an unknown operation {op!r}.')


def run_io_geometry(case: golden_case.Case) -> dict[str, np.ndarray]:
  """Resizes, crops, mirrors and pads images with their labels."""
  outputs = {}
  ops = {tuple(key.split('/')[1:3]) for key in case.expected}
  for name, op in sorted(ops):
    for key, value in _geometry(_label(case, name), name, op).items():
      part = key if key in ('inputs', 'padding_mask') else f'label/{key}'
      outputs[f'out/{name}/{op}/{part}'] = value.numpy()
  return outputs


def run_io_narratives(case: golden_case.Case) -> dict[str, np.ndarray]:
  """Aligns tokens with utterances and gives them their points."""
  import tensorflow as tf

  from tasks import image_ops
  from tasks import localized_narratives
  from tasks import text_ops

  strings = _strings(case, 'narratives')
  utterances = tf.constant(strings['utterances'])
  centers = tf.constant(case.inputs['center'])
  boxes = tf.constant(case.inputs['bbox'])
  image = image_ops.decode_image(case.inputs['image_jpeg'].tobytes())
  hw = image_ops.image_hw(image)
  traced = localized_narratives.traced_utterances(utterances, centers)
  corners = localized_narratives.to_pixels(boxes, hw)
  low, high = corners[..., :2], corners[..., 2:]
  # Centres of the 2×2 cells of a box, x first.
  cells = [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
  grid = tf.concat([low + (high - low) * cell for cell in cells], axis=-1)
  # Variant: captions, tokens, marks, shape of a token's points.
  variants = {
      'default': (3, 48, corners, (2, 2)),
      'one_caption': (1, 24, corners, (2, 2)),
      'center': (3, 48, localized_narratives.to_pixels(centers, hw), (2,)),
      'grid2': (3, 64, grid, (4, 2)),
      'with_id': (1, 16, corners, (2, 2)),
  }
  outputs = {'out/image': tf.cast(image, tf.float32).numpy()}
  with _vocabularies(case) as both:
    for kind, vocabulary in both.items():
      for variant, (rows, length, marks, shape) in variants.items():
        tokens = text_ops.tokenize(
            tf.constant(strings['captions'][:rows]), vocabulary, length
        )
        points = localized_narratives.token_marks(
            marks[:rows],
            text_ops.text_token_mask(tokens, vocabulary),
            traced[:rows],
        )
        name = f'out/{kind}/{variant}'
        outputs[f'{name}/text_tokens'] = tokens.numpy()
        outputs[f'{name}/points'] = points.numpy().reshape(rows, length, *shape)
        outputs[f'{name}/labels'] = np.ones(rows, np.int32)
        outputs[f'{name}/size'] = hw.numpy()
        outputs[f'{name}/image_id'] = _image_id(variant)
  return outputs


def _image_id(variant: str) -> np.ndarray:
  """The id as the original batches it: 0, or text in 32 bytes.

  The case does not store the id it was made with, so it stands here, and these
  arrays say nothing about our code: our examples carry ids as text.
  """
  if variant != 'with_id':
    return np.array(0, np.int32)
  text = b'000000123456'
  return np.frombuffer(text.ljust(32, b'\0'), np.uint8).astype(np.int32)


def _decode_referring(
    case: golden_case.Case, vocabulary: Any, prefix: str
) -> dict[str, np.ndarray]:
  """Referring expressions: text, context, boxes and masks a row."""
  import tensorflow as tf

  from tasks import image_ops
  from tasks import refcoco
  from tasks import text_ops

  per_object = case.inputs['expressions_per_object']
  objects = np.repeat(np.arange(len(per_object)), per_object)
  expressions = sum(_strings(case, 'decode')['expressions'], [])
  hw = image_ops.image_hw(tf.constant(case.inputs['image']))
  boxes = refcoco.yxyx_to_xyxy(tf.constant(case.inputs['boxes_yxyx']), hw)
  context = refcoco.CONTEXT_PREFIX
  # Variant: rows, tokens, before and after the text, context tokens, before
  # and after the context, its end token.
  variants = {
      'plain': (6, 16, '', '', None, '', '', False),
      'context': (4, 16, '', '', 16, context, '', True),
      'prefix_suffix': (6, 20, 'a photo of ', ' there', 10, '', '?', False),
      'two': (2, 8, '', '', None, '', '', False),
  }
  outputs = {}
  for variant, settings in variants.items():
    rows, length, before, after, context_length, *around, end = settings
    texts = tf.constant([before + e + after for e in expressions[:rows]])
    chosen = objects[:rows]
    fields = {
        'text_tokens': text_ops.tokenize(texts, vocabulary, length),
        'boxes': tf.gather(boxes, chosen),
        'labels': np.ones(rows, np.int32),
        'refexp_ids': case.inputs['refexp_ids'][:rows],
        'size': hw,
    }
    if context_length:
      fields['context_tokens'] = text_ops.tokenize(
          around[0] + texts + around[1],
          vocabulary,
          context_length,
          begin=False,
          end=end,
      )
    # The case stores these once, since no tokenizer touches them.
    if variant == 'two' and prefix.endswith('/sp'):
      fields['masks'] = case.inputs['masks'][chosen]
    for name, value in fields.items():
      outputs[f'{prefix}/{variant}/{name}'] = np.asarray(value)
  return outputs


def _decode_regions(
    case: golden_case.Case, vocabulary: Any, prefix: str
) -> dict[str, np.ndarray]:
  """Region phrases, with and without words before them."""
  import tensorflow as tf

  from tasks import image_ops
  from tasks import refcoco
  from tasks import text_ops

  phrases = _strings(case, 'decode')['phrases']
  hw = image_ops.image_hw(tf.constant(case.inputs['image']))
  boxes = refcoco.yxyx_to_xyxy(
      tf.constant(case.inputs['region_boxes_yxyx']), hw
  )
  outputs = {}
  for variant, rows, before in (
      ('plain', 4, ''),
      ('prefix', 1, 'an object of '),
  ):
    texts = tf.constant([before + phrase for phrase in phrases[:rows]])
    tokens = text_ops.tokenize(texts, vocabulary, 12)
    outputs[f'{prefix}/{variant}/text_tokens'] = tokens.numpy()
    outputs[f'{prefix}/{variant}/boxes'] = boxes[:rows].numpy()
    outputs[f'{prefix}/{variant}/labels'] = np.ones(rows, np.int32)
    outputs[f'{prefix}/{variant}/size'] = hw.numpy()
  return outputs


def run_io_decode(case: golden_case.Case) -> dict[str, np.ndarray]:
  """Tokenizes expressions, phrases, turns and prompts; places their boxes.

  The turns are taken without their image tag, as the case also lists them.
  """
  import tensorflow as tf

  from tasks import text_ops

  strings = _strings(case, 'decode')
  answers = strings['parsed_captions']
  questions = [f'Question: {q}Answer: ' for q in strings['parsed_context']]
  outputs = {}
  with _vocabularies(case) as both:
    for kind, vocabulary in both.items():

      def rows(texts, length, begin=True, end=True, vocabulary=vocabulary):
        return text_ops.tokenize(
            tf.constant(texts), vocabulary, length, begin, end
        ).numpy()

      outputs |= _decode_referring(case, vocabulary, f'out/ref/{kind}')
      outputs |= _decode_regions(case, vocabulary, f'out/regions/{kind}')
      chat = f'out/chat/{kind}'
      outputs[f'{chat}/text_tokens'] = rows(answers, 12)
      outputs[f'{chat}/context_tokens'] = rows(questions, 14, begin=False)
      outputs[f'{chat}/labels'] = np.ones(3, np.int32)
      outputs[f'{chat}/size'] = np.array(case.inputs['image'].shape[:2])
      captions = f'out/captions/{kind}'
      outputs[f'{captions}/text_tokens'] = rows(answers[:2], 10)
      outputs[f'{captions}/labels'] = np.ones(2, np.int32)
      prompts = f'out/prompt_tokens/{kind}'
      outputs[f'{prompts}/eos'] = rows(['a photo of '] * 3, 8, begin=False)
      outputs[f'{prompts}/no_eos'] = rows(
          ['A long image caption: '], 8, begin=False, end=False
      )
      for begin in (False, True):
        for end in (False, True):
          outputs[f'out/tokenize/{kind}/bos{begin:d}_eos{end:d}'] = rows(
              strings['tokenizer_texts'], 12, begin, end
          )
  return outputs


RUNNERS = {
    'io_decode': run_io_decode,
    'io_geometry': run_io_geometry,
    'io_narratives': run_io_narratives,
}
