"""Localized Narratives: a caption, and where the mouse was at each word (RefA).

A record is a picture with its narratives, each a caption and the utterances it
was spoken in; the converter has integrated the mouse trace over each
utterance's time span to a centre and a box. Here each token of the caption
takes an utterance, and its target points are the corners of that utterance's
box. A prompt is one narrative; the location is the whole picture.

RefA: golden case `io_narratives`; "copy 11" of the original's habits.
"""

from collections.abc import Mapping
import functools
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from pixel_llm.evaluation import trace
from tasks import image_ops
from tasks import outputs
from tasks import sources
from tasks import steps
from tasks import text_ops
from tasks import views
from tasks import vocabularies

# Ways to ask for a long caption; evaluation uses the first. All fit in the
# eight context tokens of the trace recipe, end token included.
LONG_CAPTION_PROMPTS = (
    'A long image caption:',
    'A long image description:',
    'A long caption:',
    'A detailed image caption:',
    'Describe the image in detail.',
    'Describe the picture at length.',
    'Tell all about the image:',
    'What is in the image?',
    'Write a long caption:',
    'Explain the whole picture:',
    'A full image description:',
)

# An utterance without a trace is stored with its centre at the origin.
_LEAST_CENTER = 1e-5

ROW_FIELDS = ('texts', 'prompt_ids', 'utterances', 'centers_rel', 'boxes_rel')

_RECORD = {
    **steps.picture_spec('image/encoded', 'image/id', tf.string),
    'caption/string': tf.io.RaggedFeature(tf.string),
    'caption/annotator_id': tf.io.RaggedFeature(tf.int64),
    'caption/utterance': tf.io.RaggedFeature(
        tf.string,
        value_key='caption/utterance/ragged_flat_values',
        partitions=[
            tf.io.RaggedFeature.RowLengths('caption/ragged_row_lengths_0')
        ],
        row_splits_dtype=tf.int64,
    ),
    'caption/center': tf.io.FixedLenSequenceFeature(
        [2], tf.float32, allow_missing=True
    ),
    'caption/bbox': tf.io.FixedLenSequenceFeature(
        [4], tf.float32, allow_missing=True
    ),
}


def token_utterances(text_mask: tf.Tensor, traced: tf.Tensor) -> tf.Tensor:
  """Spreads the tokens of each caption evenly over its traced utterances.

  Traced utterance k of K stands at k/K, and token j of J at j/J, rescaled to
  [1/K, 1]; a token takes the nearest utterance, the first of two equally near
  ones. For example, 4 tokens and 2 utterances stand at 5/8, 6/8, 7/8, 1 and
  at 1/2, 1: the tokens take utterances 0, 0, 1, 1.

  Args:
    text_mask: True for a token that is text [n, T].
    traced: True for an utterance that has text and a trace [n, U].

  Returns:
    Utterance numbers [n, T] int32. They mean nothing for other tokens, or for
    a caption without traced utterance.
  """
  # In float64, as the original: which of two equally near utterances a token
  # takes hangs on the last bit.
  text = tf.cast(text_mask, tf.float64)
  counted = tf.cast(traced, tf.float64)
  num_tokens = tf.reduce_sum(text, axis=-1, keepdims=True)
  num_traced = tf.reduce_sum(counted, axis=-1, keepdims=True)
  places = tf.math.divide_no_nan(tf.cumsum(counted, axis=-1), num_traced)
  first = tf.math.divide_no_nan(tf.ones_like(num_traced), num_traced)
  token_places = tf.math.divide_no_nan(tf.cumsum(text, axis=-1), num_tokens)
  token_places = token_places * (1.0 - first) + first
  places = tf.where(traced, places, -1.0)
  distances = tf.square(
      token_places[:, :, tf.newaxis] - places[:, tf.newaxis, :]
  )
  return tf.argmin(distances, axis=-1, output_type=tf.int32)


def token_marks(
    marks: tf.Tensor, text_mask: tf.Tensor, traced: tf.Tensor
) -> tf.Tensor:
  """Gives every text token the mark of its utterance.

  Args:
    marks: one mark an utterance [n, U, d], U ≥ 1.
    text_mask: True for a token that is text [n, T].
    traced: True for an utterance that has text and a trace [n, U].

  Returns:
    Marks [n, T, d]; zeros for other tokens and for captions without trace.
  """
  chosen = tf.gather(
      marks, token_utterances(text_mask, traced), axis=1, batch_dims=1
  )
  marked = text_mask & tf.reduce_any(traced, axis=-1, keepdims=True)
  return tf.where(marked[..., tf.newaxis], chosen, 0.0)


def to_pixels(xy_rel: tf.Tensor, hw: tf.Tensor) -> tf.Tensor:
  """Relative (x, y) pairs [..., 2k] to whole pixels within the picture."""
  width_height = tf.cast(hw, tf.float32)[::-1]
  pairs = tf.shape(xy_rel)[-1] // 2
  clipped = tf.clip_by_value(xy_rel, 0.0, 1.0)
  return tf.round(clipped * tf.tile(width_height, [pairs]))


def traced_utterances(utterances: tf.Tensor, centers: tf.Tensor) -> tf.Tensor:
  """True [n, U] for an utterance with words and a trace.

  Args:
    utterances: strings [n, U], empty as padding.
    centers: relative (x, y) of their traces [n, U, 2].

  Returns:
    A bool an utterance.
  """
  has_trace = tf.reduce_all(centers > _LEAST_CENTER, axis=-1)
  return (tf.strings.length(utterances) > 0) & has_trace


def parse_record(place: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
  """Reads a record into one row a narrative.

  Args:
    place: `record`, `seed` and `training` of the source.

  Returns:
    The fields of the picture, and `ROW_FIELDS`, utterances padded to the
    longest narrative.
  """
  record = tf.io.parse_single_example(place['record'], _RECORD)
  utterances = record['caption/utterance']
  annotators = tf.strings.as_string(record['caption/annotator_id'])
  # The narrator may have come back, so the place tells rows apart.
  numbers = tf.strings.as_string(tf.range(tf.size(annotators)))
  return {
      **steps.picture_fields(record, place, 'image/encoded', 'image/id'),
      'texts': record['caption/string'],
      'prompt_ids': annotators + '_' + numbers,
      'utterances': utterances.to_tensor(default_value=''),
      'centers_rel': utterances.with_values(record['caption/center']).to_tensor(
          shape=[None, None, 2]
      ),
      'boxes_rel': utterances.with_values(record['caption/bbox']).to_tensor(
          shape=[None, None, 4]
      ),
  }


def choose_rows(
    example: Mapping[str, tf.Tensor], num_prompts: int
) -> dict[str, tf.Tensor]:
  """Draws up to N narratives and how to ask, in training; else keeps all.

  Args:
    example: from `parse_record`.
    num_prompts: N.

  Returns:
    The example with its rows and `request`, the number of the context.
  """
  seeds = tf.random.split(example['seed'])
  numbers = tf.range(tf.size(example['texts']))
  training = example['training']
  rows = steps.draw_rows(numbers, num_prompts, training, seeds[0])
  request = steps.draw_number(len(LONG_CAPTION_PROMPTS), training, seeds[1])
  return {
      **outputs.take_rows(example, ROW_FIELDS, rows),
      'request': request,
  }


def finish_rows(
    example: Mapping[str, tf.Tensor],
    sizes: Mapping[str, int],
    vocabulary: seqio.Vocabulary,
) -> dict[str, tf.Tensor]:
  """Aligns tokens with the trace, and makes the features.

  Args:
    example: with its decoded picture and 1 to N rows.
    sizes: S, N, T, C, P.
    vocabulary: of text and context.

  Returns:
    The task features, and what `postprocess` needs.
  """
  view = views.fitted_view(example['orig_hw'], sizes['S'])
  texts = example['texts']
  rows = tf.shape(texts)[0]
  tokens = text_ops.tokenize(texts, vocabulary, sizes['T'])
  corners = token_marks(
      to_pixels(example['boxes_rel'], view.orig_hw),
      text_ops.text_token_mask(tokens, vocabulary),
      traced_utterances(example['utterances'], example['centers_rel']),
  )
  points = view.points(tf.reshape(corners, [rows, sizes['T'], 2, 2]))
  finished = {
      'image': view.image(example['image'], sizes['S']),
      'image_hw': view.hw,
      'prompt_boxes': image_ops.image_boxes(view.hw, rows),
      'text_tokens': tokens,
      'context_tokens': text_ops.known_texts(
          LONG_CAPTION_PROMPTS,
          tf.fill([rows], example['request']),
          vocabulary,
          sizes['C'],
      ),
      'boxes': tf.zeros([rows, 4], tf.float32),
      'points': points,
      **outputs.loss_fields(rows, caption=1.0, point=1.0),
  }
  kept = ['image_id', 'file_name', 'orig_hw', 'texts', 'prompt_ids']
  return {**finished, **{name: example[name] for name in kept}}


def preprocess(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, Any],
    output_features: Mapping[str, seqio.Feature],
) -> tf.data.Dataset:
  """Turns records into examples.

  Training splits show N random narratives of a picture and ask for them in
  random words; in others, a picture with more than N narratives becomes
  several examples. The whole picture is shown in both.

  Args:
    dataset: of a `sources.ArrayRecordSource`.
    sequence_length: of `features.feature_lengths`.
    output_features: of the task.

  Returns:
    The examples.

  Raises:
    ValueError: if the lengths ask for other than two points a token.
  """
  sizes = outputs.sizes_for(sequence_length, with_masks=False)
  if sizes['P'] != 2:
    raise ValueError(
        f'Localized Narratives give 2 points a token, the corners of a box, but'
        f" sequence_length['points'] asks for {sizes['P']}."
    )
  choose = functools.partial(choose_rows, num_prompts=sizes['N'])
  finish = functools.partial(
      finish_rows,
      sizes=sizes,
      vocabulary=output_features['text_tokens'].vocabulary,
  )
  return steps.run(dataset, parse_record, choose, finish, ROW_FIELDS, sizes)


def postprocess(
    output: Any, example: Mapping[str, Any], is_target: bool, **unused: Any
) -> Any:
  """Makes what the metrics compare.

  Args:
    output: `vocabularies.Texts` of a prediction; unused for a target.
    example: an example of the task as arrays.
    is_target: whether the target is wanted.
    **unused: other arguments of SeqIO.

  Returns:
    For a target, a dict of the picture's `image_id`, `file_name`, `orig_hw`,
    `image_hw` and of n prompts' `prompt_ids`, `texts`, `text_tokens` [n, T]
    and `points` [n, T, 2, 2] in pixels of the network input. For a prediction,
    the token ids [n, T]: traces are compared token by token.
  """
  texts = steps.decoded(example['texts'])
  if not is_target:
    return output.ids[: len(texts)]
  return {
      **steps.picture_target(example),
      'prompt_ids': steps.decoded(example['prompt_ids']),
      'texts': texts,
      'text_tokens': np.asarray(example['text_tokens']),
      'points': np.asarray(example['points']),
  }


def add_trace_task(
    name: str, splits: Mapping[str, str], build_command: str
) -> None:
  """Registers `<name>_trace`.

  Args:
    name: the data set.
    splits: split name to its folder below the data directory.
    build_command: what makes these folders.
  """
  seqio.TaskRegistry.add(
      f'{name}_trace',
      source=sources.ArrayRecordSource(splits, build_command),
      preprocessors=[preprocess],
      output_features=outputs.output_features(vocabularies.t5_vocabulary()),
      postprocess_fn=postprocess,
      metric_fns=[trace.trace_metrics],
      shuffle_buffer_size=None,
  )
