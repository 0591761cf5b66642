"""RefCOCO, RefCOCO+ and RefCOCOg: an expression, its box and its mask (RefA).

A record is a picture with its objects; each object has several expressions.
A prompt is one expression: context "where is " + expression, text the
expression, location the whole picture, targets the object's box and mask.
`<name>_location` turns that around: the box is given, and the expression is
what to say of it.

RefA: `tasks/build/refcoco.py` for the record; golden cases `io_decode` and
`io_pipeline` for tokens and geometry.
RefB: google-research/scenic, projects/pixel_llm/configs.
"""

from collections.abc import Mapping
import functools
from typing import Any

import numpy as np
from pycocotools import mask as mask_lib
import seqio
import tensorflow as tf

from pixel_llm.evaluation import location_captions
from pixel_llm.evaluation import refexp
from tasks import image_ops
from tasks import located_captions
from tasks import outputs
from tasks import run_lengths
from tasks import sources
from tasks import steps
from tasks import text_ops
from tasks import views
from tasks import vocabularies

CONTEXT_PREFIX = 'where is '

# Longer side of the training views of every recipe, as multiples of the network
# input (RefB).
SCALE_RANGE = (0.75, 1.25)

# Fields with one row an expression, from parsing on.
ROW_FIELDS = (
    'texts',
    'prompt_ids',
    'boxes_orig',
    'mask_rle_counts',
)
# The same of what a view shows, with its `boxes`.
_SHOWN_FIELDS = (*ROW_FIELDS, 'boxes')


_RECORD = {
    **steps.picture_spec('image', 'image/id'),
    'objects/bbox': tf.io.FixedLenSequenceFeature(
        [4], tf.float32, allow_missing=True
    ),
    'objects/mask_rle': tf.io.RaggedFeature(tf.string),
    'objects/refexp/refexp_id': steps.ragged(
        'objects/refexp/refexp_id', tf.int64
    ),
    'objects/refexp/sent': steps.ragged('objects/refexp/sent', tf.string),
}


def parse_record(place: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
  """Reads a record into one row an expression.

  Args:
    place: `record`, `seed` and `training` of the source.

  Returns:
    The fields of the picture, and `ROW_FIELDS`: `boxes_orig` [n, 4] in pixels
    of the picture; `mask_rle_counts`, empty where an object has no mask.
  """
  record = tf.io.parse_single_example(place['record'], _RECORD)
  picture = steps.picture_fields(record, place, 'image', 'image/id')
  ids = record['objects/refexp/refexp_id']
  objects = ids.value_rowids()
  boxes = image_ops.yxyx_to_xyxy(record['objects/bbox'], picture['orig_hw'])
  return {
      **picture,
      'texts': record['objects/refexp/sent'].values,
      'prompt_ids': tf.strings.as_string(ids.values),
      'boxes_orig': tf.gather(boxes, objects),
      'mask_rle_counts': tf.gather(record['objects/mask_rle'], objects),
  }


def choose_rows(
    example: Mapping[str, tf.Tensor],
    size: int,
    num_prompts: int,
    scale_range: tuple[float, float],
) -> dict[str, tf.Tensor]:
  """Adds a view, and in training draws up to N expressions it still shows.

  Args:
    example: from `parse_record`.
    size: side of the network input.
    num_prompts: N.
    scale_range: of the views in training.

  Returns:
    The example with the fields of its view, `boxes` there and its rows: all in
    evaluation, 0 to N in random order in training.
  """
  seeds = tf.random.split(example['seed'])
  training = example['training']
  view = views.choose_view(
      example['orig_hw'], size, training, scale_range, seeds[0]
  )
  boxes = view.boxes(example['boxes_orig'])
  rows = views.visible_rows(boxes, training)
  rows = steps.draw_rows(rows, num_prompts, training, seeds[1])
  return {
      **outputs.take_rows({**example, 'boxes': boxes}, _SHOWN_FIELDS, rows),
      **views.to_fields(view),
  }


def decode_with_masks(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
  """Decodes the picture, and where the runs of its masks end.

  The expressions of an object share its mask.

  Args:
    example: from `choose_rows`.

  Returns:
    The example with `image`, `run_ends` [m, r] of its m masks, and each row's
    number among them, `mask_numbers` [n].
  """
  counts, numbers = tf.unique(example['mask_rle_counts'])
  return {
      **steps.decode_picture(example),
      'run_ends': run_lengths.run_ends(counts, example['orig_hw']),
      'mask_numbers': numbers,
  }


def finish_rows(
    example: Mapping[str, tf.Tensor],
    sizes: Mapping[str, int],
    vocabulary: seqio.Vocabulary,
    with_masks: bool,
    context_prefix: str = CONTEXT_PREFIX,
    caption_weight: float = 0.0,
) -> dict[str, tf.Tensor]:
  """Makes the features.

  Args:
    example: with its decoded picture, a view and 1 to N rows.
    sizes: S, N, T, C, P.
    vocabulary: of text and context.
    with_masks: whether to yield masks.
    context_prefix: stands before the expression in the context.
    caption_weight: 1 if the expressions join the caption loss; they are given,
      so no recipe learns them.

  Returns:
    The task features, and what `postprocess` needs.
  """
  view = views.from_fields(example)
  texts = example['texts']
  rows = tf.shape(texts)[0]
  finished = {
      'image': view.image(example['image'], sizes['S']),
      'image_hw': view.hw,
      'prompt_boxes': image_ops.image_boxes(view.hw, rows),
      'text_tokens': text_ops.tokenize(texts, vocabulary, sizes['T']),
      'context_tokens': text_ops.tokenize(
          context_prefix + texts, vocabulary, sizes['C'], begin=False
      ),
      'boxes': example['boxes'],
      'points': tf.zeros([rows, sizes['T'], sizes['P'], 2], tf.float32),
      **outputs.loss_fields(rows, caption=caption_weight, point=1.0),
  }
  if with_masks:
    masks = view.masks(example['run_ends'], sizes['S'])
    finished['masks'] = tf.gather(
        run_lengths.bits(masks), example['mask_numbers']
    )
    finished['mask_weights'] = tf.cast(
        tf.strings.length(example['mask_rle_counts']) > 0, tf.float32
    )
  kept = ['image_id', 'file_name', 'orig_hw', 'texts', 'prompt_ids']
  kept += ['boxes_orig', 'mask_rle_counts']
  return {**finished, **{name: example[name] for name in kept}}


def preprocess(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, Any],
    output_features: Mapping[str, seqio.Feature],
    scale_range: tuple[float, float] = (1.0, 1.0),
) -> tf.data.Dataset:
  """Turns records into examples.

  Training splits show a random view and N random prompts. Others show the
  whole picture, and an image with more than N prompts becomes several
  examples.

  Args:
    dataset: of a `sources.ArrayRecordSource`.
    sequence_length: of `features.feature_lengths`.
    output_features: of the task; they say whether there are masks.
    scale_range: of the views in training.

  Returns:
    The examples.
  """
  with_masks = 'masks' in output_features
  sizes = outputs.sizes_for(sequence_length, with_masks)
  choose = functools.partial(
      choose_rows,
      size=sizes['S'],
      num_prompts=sizes['N'],
      scale_range=scale_range,
  )
  finish = functools.partial(
      finish_rows,
      sizes=sizes,
      vocabulary=output_features['text_tokens'].vocabulary,
      with_masks=with_masks,
  )
  # A crop may show none of the objects: a picture without prompts.
  return steps.run(
      dataset,
      parse_record,
      choose,
      finish,
      _SHOWN_FIELDS,
      sizes,
      decode_with_masks if with_masks else steps.decode_picture,
  )


def postprocess(
    output: Any, example: Mapping[str, Any], is_target: bool, **unused: Any
) -> Any:
  """Makes what the metrics compare.

  Args:
    output: the decoded texts [N] of a prediction; unused for a target.
    example: an example of the task as arrays.
    is_target: whether the target is wanted.
    **unused: other arguments of SeqIO.

  Returns:
    For a target, a dict of the picture's `image_id`, `file_name`, `orig_hw`,
    `image_hw`, `padded_hw` (sides of the network input) and of n prompts'
    `prompt_ids`, `texts`, `boxes_orig` [n, 4] (xyxy pixels of the original
    picture) and `masks_rle`. For a prediction, its first n texts.
  """
  texts = steps.decoded(example['texts'])
  if not is_target:
    return list(output[: len(texts)])
  size = [int(side) for side in example['orig_hw']]
  return {
      **steps.picture_target(example),
      'prompt_ids': steps.decoded(example['prompt_ids']),
      'texts': texts,
      'boxes_orig': np.asarray(example['boxes_orig']),
      'masks_rle': [
          _mask_rle(size, counts) for counts in example['mask_rle_counts']
      ],
  }


def _mask_rle(size: list[int], counts: bytes) -> dict[str, Any]:
  """Compressed RLE as JSON takes it; an object without mask has no pixel."""
  if not counts:
    empty = mask_lib.encode(np.zeros(size, np.uint8, order='F'))
    counts = bytes(empty['counts'])
  return {'size': size, 'counts': counts.decode('utf-8')}


def add_refcoco_tasks(
    name: str,
    splits: Mapping[str, str],
    build_command: str,
    scale_range: tuple[float, float] = (1.0, 1.0),
) -> None:
  """Registers `<name>_refseg` (with masks), `_refexp` and `_location`.

  Args:
    name: the data set.
    splits: split name to its folder below the data directory.
    build_command: what makes these folders.
    scale_range: of the training views.
  """
  _add_task(f'{name}_refseg', splits, build_command, scale_range, True)
  add_refexp_task(name, splits, build_command, scale_range)
  seqio.TaskRegistry.add(
      f'{name}_location',
      source=sources.ArrayRecordSource(splits, build_command),
      preprocessors=[
          functools.partial(
              located_captions.preprocess,
              parse=parse_record,
              row_fields=ROW_FIELDS,
              scale_range=scale_range,
          )
      ],
      output_features=outputs.output_features(vocabularies.t5_vocabulary()),
      postprocess_fn=located_captions.postprocess,
      metric_fns=[location_captions.location_caption_metrics],
      shuffle_buffer_size=None,
  )


def add_refexp_task(
    name: str,
    splits: Mapping[str, str],
    build_command: str,
    scale_range: tuple[float, float] = (1.0, 1.0),
) -> None:
  """Registers `<name>_refexp`, for sets without masks.

  Args:
    name: the data set.
    splits: split name to its folder below the data directory.
    build_command: what makes these folders.
    scale_range: of the training views.
  """
  _add_task(f'{name}_refexp', splits, build_command, scale_range, False)


def _add_task(
    name: str,
    splits: Mapping[str, str],
    build_command: str,
    scale_range: tuple[float, float],
    with_masks: bool,
) -> None:
  """Registers one task; its expressions are given, so they learn no text."""
  seqio.TaskRegistry.add(
      name,
      source=sources.ArrayRecordSource(splits, build_command),
      preprocessors=[functools.partial(preprocess, scale_range=scale_range)],
      output_features=outputs.output_features(
          vocabularies.t5_vocabulary(), with_masks
      ),
      postprocess_fn=postprocess,
      metric_fns=[refexp.refexp_metrics],
      shuffle_buffer_size=None,
  )
