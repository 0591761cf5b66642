"""Boxes and what is said of them: a location-conditioned caption (RefA).

A prompt is a box, the context asks for "an object of", and the text is what
was said of the box. Visual Genome's regions and RefCOCO's expressions are both
of this kind.

RefA: golden case `io_pipeline`, chain `region_eval`.
"""

from collections.abc import Mapping
import functools
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from tasks import outputs
from tasks import steps
from tasks import text_ops
from tasks import views

REQUEST = 'an object of '


def choose_rows(
    example: Mapping[str, tf.Tensor],
    row_fields: tuple[str, ...],
    size: int,
    num_prompts: int,
    scale_range: tuple[float, float],
    mirror: bool = False,
    num_shown: int | None = None,
) -> dict[str, tf.Tensor]:
  """Adds a view, and in training draws up to N boxes it still shows.

  Args:
    example: with `boxes_orig` [n, 4] in pixels of the picture, `seed` and
      `training`.
    row_fields: names of the fields that have one row a box, with `boxes`.
    size: side of the network input.
    num_prompts: N.
    scale_range: of the views in training.
    mirror: whether every other view in training is mirrored.
    num_shown: how many boxes evaluation shows, None for all.

  Returns:
    The example with the fields of its view, `boxes` there and its rows: the first in
    evaluation, 0 to N in random order in training.
  """
  seeds = tf.random.split(example['seed'])
  training = example['training']
  view = views.choose_view(
      example['orig_hw'], size, training, scale_range, seeds[0], mirror
  )
  boxes = view.boxes(example['boxes_orig'])
  rows = views.visible_rows(boxes, training)
  rows = steps.draw_rows(rows, num_prompts, training, seeds[1], num_shown)
  return {
      **outputs.take_rows({**example, 'boxes': boxes}, row_fields, rows),
      **views.to_fields(view),
  }


def finish_rows(
    example: Mapping[str, tf.Tensor],
    sizes: Mapping[str, int],
    vocabulary: seqio.Vocabulary,
    detection: bool,
) -> dict[str, tf.Tensor]:
  """Makes the features.

  Args:
    example: with its decoded picture, a view and 1 to N rows.
    sizes: S, N, T, C, P.
    vocabulary: of text and context.
    detection: whether the boxes train the box decoder, and their texts caption
      its proposals.

  Returns:
    The task features, and what `postprocess` needs.
  """
  view = views.from_fields(example)
  texts = example['texts']
  rows = tf.shape(texts)[0]
  boxes = example['boxes']
  finished = {
      'image': view.image(example['image'], sizes['S']),
      'image_hw': view.hw,
      'prompt_boxes': boxes,
      'text_tokens': text_ops.tokenize(texts, vocabulary, sizes['T']),
      'context_tokens': text_ops.known_texts(
          (REQUEST,), tf.zeros([rows], tf.int32), vocabulary, sizes['C']
      ),
      'boxes': boxes,
      'points': tf.zeros([rows, sizes['T'], sizes['P'], 2], tf.float32),
      **outputs.loss_fields(
          rows,
          caption=1.0,
          detection=1.0 if detection else 0.0,
          object_captions=detection,
      ),
  }
  kept = ['image_id', 'file_name', 'orig_hw', 'texts', 'prompt_ids']
  kept += ['boxes_orig']
  return {
      **finished,
      **{name: example[name] for name in kept},
      **steps.truth_fields(example),
  }


def preprocess(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, Any],
    output_features: Mapping[str, seqio.Feature],
    parse: steps.Step,
    row_fields: tuple[str, ...],
    scale_range: tuple[float, float],
    mirror: bool = False,
    detection: bool = False,
) -> tf.data.Dataset:
  """Turns records into examples.

  Training splits show a random view and N random boxes. Others show the whole
  picture: once for detection, with its first N boxes; or as often as its boxes
  need, if they are given.

  Args:
    dataset: of a `sources.ArrayRecordSource`.
    sequence_length: of `features.feature_lengths`.
    output_features: of the task.
    parse: reads a record of the set into one row a box.
    row_fields: names of the fields that have one row a box.
    scale_range: of the views in training.
    mirror: whether every other view in training is mirrored.
    detection: whether the network has to find the boxes.

  Returns:
    The examples.
  """
  sizes = outputs.sizes_for(sequence_length, with_masks=False)

  def parse_rows(place: steps.Example) -> dict[str, tf.Tensor]:
    example = parse(place)
    return steps.with_truth(example, row_fields) if detection else example

  shown_fields = (*row_fields, 'boxes')
  choose = functools.partial(
      choose_rows,
      row_fields=shown_fields,
      size=sizes['S'],
      num_prompts=sizes['N'],
      scale_range=scale_range,
      mirror=mirror,
      num_shown=sizes['N'] if detection else None,
  )
  finish = functools.partial(
      finish_rows,
      sizes=sizes,
      vocabulary=output_features['text_tokens'].vocabulary,
      detection=detection,
  )
  # A crop may show none of the boxes: a picture without prompts.
  return steps.run(dataset, parse_rows, choose, finish, shown_fields, sizes)


def postprocess(
    output: Any, example: Mapping[str, Any], is_target: bool, **unused: Any
) -> Any:
  """Makes what the metrics of given boxes compare.

  Args:
    output: the decoded texts [N] of a prediction; unused for a target.
    example: an example of the task as arrays.
    is_target: whether the target is wanted.
    **unused: other arguments of SeqIO.

  Returns:
    For a target, what `steps.picture_target` tells, and of n boxes
    `prompt_ids`, `texts` and `boxes_orig` [n, 4] (xyxy pixels of the original
    picture). For a prediction, its first n texts.
  """
  if not is_target:
    return list(output[: len(example['texts'])])
  return {
      **steps.picture_target(example),
      'prompt_ids': steps.decoded(example['prompt_ids']),
      'texts': steps.decoded(example['texts']),
      'boxes_orig': np.asarray(example['boxes_orig']),
  }
