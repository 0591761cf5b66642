"""Runs the golden cases of the input pipeline's texts: `io_narratives`, `io_decode`.

The pipeline is TensorFlow and lives in `tasks`; both are imported inside the
functions, so that listing the runners needs neither.
"""

from typing import Any

import numpy as np

from pixel_llm import geometry
from pixel_llm.golden import case as golden_case
from pixel_llm.golden.runners import pipeline_case

_TOKENS = r'(\d+) (?:text )?tokens'


def _marks(
    setting: str, corners: Any, centers: Any, num_points: int
) -> tuple[Any, tuple[int, ...]]:
  """What marks an utterance, [n, U, d], and the shape of a token's points."""
  import tensorflow as tf

  if 'utterance centre' in setting:
    return centers, (2,)
  side = pipeline_case.find_number(setting, r'(\d+)x\d+ cell-centre grid')
  if side is None:
    return corners, (num_points, 2)
  low, high = corners[..., :2], corners[..., 2:]
  cells = np.asarray(geometry.solid_grid(side, cell_centres=True))
  grid = tf.concat([low + (high - low) * cell for cell in cells], axis=-1)
  return grid, (len(cells), 2)


def _image_id(setting: str, expected: np.ndarray) -> np.ndarray:
  """The id as the original batches it: none is 0, else text in so many bytes.

  The case does not store the text, so it is read off the figure
  (`case.UNSTORED_INPUTS`); our examples carry ids as text.
  """
  width = pipeline_case.find_number(setting, r'image id as (\d+) bytes')
  if width is None:
    return np.array(0, np.int32)
  text = expected.astype(np.uint8).tobytes().rstrip(b'\0').decode('ascii')
  padded = text.encode('ascii').ljust(width, b'\0')
  return np.frombuffer(padded, np.uint8).astype(np.int32)


def run_io_narratives(case: golden_case.Case) -> dict[str, np.ndarray]:
  """Aligns tokens with utterances and gives them their points."""
  import tensorflow as tf

  from tasks import image_ops
  from tasks import localized_narratives
  from tasks import text_ops

  strings = pipeline_case.strings(case, 'narratives')
  centers = tf.constant(case.inputs['center'])
  image = image_ops.decode_image(case.inputs['image_jpeg'].tobytes())
  hw = image_ops.image_hw(image)
  traced = localized_narratives.traced_utterances(
      tf.constant(strings['utterances']), centers
  )
  corners = localized_narratives.to_pixels(tf.constant(case.inputs['bbox']), hw)
  center_pixels = localized_narratives.to_pixels(centers, hw)
  outputs = {'out/image': tf.cast(image, tf.float32).numpy()}
  with pipeline_case.vocabularies(case) as both:
    for kind, vocabulary in both.items():
      for variant, setting in case.settings.items():
        if variant == 'strings':
          continue
        name = f'out/{kind}/{variant}'
        rows, length = case.expected[f'{name}/text_tokens'].shape
        rows = pipeline_case.find_number(setting, r'(\d+) caption') or rows
        length = pipeline_case.find_number(setting, _TOKENS) or length
        marks, shape = _marks(setting, corners, center_pixels, num_points=2)
        tokens = text_ops.tokenize(
            tf.constant(strings['captions'][:rows]), vocabulary, length
        )
        points = localized_narratives.token_marks(
            marks[:rows],
            text_ops.text_token_mask(tokens, vocabulary),
            traced[:rows],
        )
        outputs |= {
            f'{name}/text_tokens': tokens.numpy(),
            f'{name}/points': points.numpy().reshape(rows, length, *shape),
            f'{name}/labels': np.ones(rows, np.int32),
            f'{name}/size': hw.numpy(),
            f'{name}/image_id': _image_id(
                setting, case.expected[f'{name}/image_id']
            ),
        }
  return outputs


def _context(setting: str, texts: Any, vocabulary: Any) -> Any | None:
  """Tokens of the context that a referring variant asks for, or None."""
  from tasks import text_ops

  _, named, context = setting.partition('context')
  if not named:
    return None
  length = pipeline_case.find_number(context, _TOKENS)
  return text_ops.tokenize(
      pipeline_case.quoted(context, 'prefix')
      + texts
      + pipeline_case.quoted(context, 'plus'),
      vocabulary,
      length or pipeline_case.number(setting, _TOKENS),
      begin=False,
      end='no end token' not in context,
  )


def _decode_referring(
    case: golden_case.Case, vocabulary: Any, prefix: str
) -> dict[str, np.ndarray]:
  """Referring expressions: text, context, boxes and masks a row."""
  import tensorflow as tf

  from tasks import image_ops
  from tasks import text_ops

  per_object = case.inputs['expressions_per_object']
  objects = np.repeat(np.arange(len(per_object)), per_object)
  expressions = sum(pipeline_case.strings(case, 'decode')['expressions'], [])
  hw = image_ops.image_hw(tf.constant(case.inputs['image']))
  boxes = image_ops.yxyx_to_xyxy(tf.constant(case.inputs['boxes_yxyx']), hw)
  outputs = {}
  for name, setting in case.settings.items():
    if not name.startswith('ref '):
      continue
    variant = name.removeprefix('ref ')
    rows = pipeline_case.find_number(setting, r'(\d+) expressions')
    caption = setting.partition('context')[0]
    before = pipeline_case.quoted(caption, 'prefix')
    after = pipeline_case.quoted(caption, 'suffix')
    texts = tf.constant([before + e + after for e in expressions[:rows]])
    chosen = objects[:rows]
    fields = {
        'text_tokens': text_ops.tokenize(
            texts, vocabulary, pipeline_case.number(caption, _TOKENS)
        ),
        'boxes': tf.gather(boxes, chosen),
        'labels': np.ones(len(chosen), np.int32),
        'refexp_ids': case.inputs['refexp_ids'][:rows],
        'size': hw,
    }
    context = _context(setting, texts, vocabulary)
    if context is not None:
      fields['context_tokens'] = context
    # Stored for one variant and tokenizer, since no tokenizer touches them.
    if f'{prefix}/{variant}/masks' in case.expected:
      fields['masks'] = case.inputs['masks'][chosen]
    for field, value in fields.items():
      outputs[f'{prefix}/{variant}/{field}'] = np.asarray(value)
  return outputs


def _decode_regions(
    case: golden_case.Case, vocabulary: Any, prefix: str
) -> dict[str, np.ndarray]:
  """Region phrases, with and without words before them."""
  import tensorflow as tf

  from tasks import image_ops
  from tasks import text_ops

  phrases = pipeline_case.strings(case, 'decode')['phrases']
  setting = case.settings['regions plain / prefix']
  length = pipeline_case.number(setting, _TOKENS)
  hw = image_ops.image_hw(tf.constant(case.inputs['image']))
  boxes = image_ops.yxyx_to_xyxy(
      tf.constant(case.inputs['region_boxes_yxyx']), hw
  )
  outputs = {}
  for variant, rows, before in (
      ('plain', len(phrases), ''),
      (
          'prefix',
          pipeline_case.number(setting, r'(\d+) region'),
          pipeline_case.quoted(setting, 'prefix'),
      ),
  ):
    texts = tf.constant([before + phrase for phrase in phrases[:rows]])
    tokens = text_ops.tokenize(texts, vocabulary, length)
    outputs[f'{prefix}/{variant}/text_tokens'] = tokens.numpy()
    outputs[f'{prefix}/{variant}/boxes'] = boxes[:rows].numpy()
    outputs[f'{prefix}/{variant}/labels'] = np.ones(rows, np.int32)
    outputs[f'{prefix}/{variant}/size'] = hw.numpy()
  return outputs


def _decode_turns(
    case: golden_case.Case, rows: Any, kind: str
) -> dict[str, np.ndarray]:
  """Question and answer pairs, and the answers alone as captions.

  The turns are taken without their image tag, as the case also lists them.
  """
  strings = pipeline_case.strings(case, 'decode')
  answers = strings['parsed_captions']
  chat = case.settings['chat']
  pairs = pipeline_case.number(chat, r'(\d+) pairs')
  before = pipeline_case.quoted(chat, 'context prefix')
  after = pipeline_case.quoted(chat, 'suffix')
  questions = [before + q + after for q in strings['parsed_context'][:pairs]]
  captions = case.settings['captions']
  num_captions = pipeline_case.number(captions, r'(\d+) captions')
  return {
      f'out/chat/{kind}/text_tokens': rows(
          answers[:pairs], pipeline_case.number(chat, _TOKENS)
      ),
      f'out/chat/{kind}/context_tokens': rows(
          questions,
          pipeline_case.number(chat, r'(\d+) context tokens'),
          begin=False,
      ),
      f'out/chat/{kind}/labels': np.ones(pairs, np.int32),
      f'out/chat/{kind}/size': np.array(case.inputs['image'].shape[:2]),
      f'out/captions/{kind}/text_tokens': rows(
          answers[:num_captions], pipeline_case.number(captions, _TOKENS)
      ),
      f'out/captions/{kind}/labels': np.ones(num_captions, np.int32),
  }


def _decode_prompts(
    case: golden_case.Case, rows: Any, kind: str
) -> dict[str, np.ndarray]:
  """Requests as context, with and without an end token."""
  setting = case.settings['prompt_tokens']
  length = pipeline_case.number(setting, _TOKENS)
  prompt, repeats, other = pipeline_case.search(
      setting, r'"([^"]*)" x(\d+) with end token; "([^"]*)" without'
  ).groups()
  return {
      f'out/prompt_tokens/{kind}/eos': rows(
          [prompt] * int(repeats), length, begin=False
      ),
      f'out/prompt_tokens/{kind}/no_eos': rows(
          [other], length, begin=False, end=False
      ),
  }


def run_io_decode(case: golden_case.Case) -> dict[str, np.ndarray]:
  """Tokenizes expressions, phrases, turns and prompts; places their boxes."""
  import tensorflow as tf

  from tasks import text_ops

  texts = pipeline_case.strings(case, 'decode')['tokenizer_texts']
  outputs = {}
  with pipeline_case.vocabularies(case) as both:
    for kind, vocabulary in both.items():

      def rows(texts, length, begin=True, end=True, vocabulary=vocabulary):
        return text_ops.tokenize(
            tf.constant(texts), vocabulary, length, begin, end
        ).numpy()

      outputs |= _decode_referring(case, vocabulary, f'out/ref/{kind}')
      outputs |= _decode_regions(case, vocabulary, f'out/regions/{kind}')
      outputs |= _decode_turns(case, rows, kind)
      outputs |= _decode_prompts(case, rows, kind)
      for begin in (False, True):
        for end in (False, True):
          name = f'out/tokenize/{kind}/bos{begin:d}_eos{end:d}'
          length = case.expected[name].shape[1]
          outputs[name] = rows(texts, length, begin, end)
  return outputs


RUNNERS = {'io_decode': run_io_decode, 'io_narratives': run_io_narratives}
