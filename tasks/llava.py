"""LLaVA-Instruct: questions and answers about a picture (RefA).

A prompt is one turn: context "Question: …Answer: " without the `<image>` tag,
which T5's pieces cannot spell, text the answer; the location is the whole
picture. There is no score of its own: it is a set to train on.

RefA: `tasks/build/llava.py` for the record; golden case `io_decode`, `chat`.
"""

from collections.abc import Mapping
import functools
from typing import Any

import seqio
import tensorflow as tf

from tasks import image_ops
from tasks import outputs
from tasks import sources
from tasks import steps
from tasks import text_ops
from tasks import views
from tasks import vocabularies

QUESTION_PREFIX = 'Question: '
ANSWER_PREFIX = 'Answer: '
IMAGE_TAG = '<image>'

ROW_FIELDS = ('texts', 'questions', 'prompt_ids')

_RECORD = {
    **steps.picture_spec('image/encoded', 'image/id', tf.string),
    'conversations/human': tf.io.RaggedFeature(tf.string),
    'conversations/agent': tf.io.RaggedFeature(tf.string),
}


def clean_question(text: tf.Tensor) -> tf.Tensor:
  """Takes out image tags and outer blanks; strings of any shape."""
  return tf.strings.strip(tf.strings.regex_replace(text, IMAGE_TAG, ''))


def parse_record(place: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
  """Reads a record into one row a turn.

  Args:
    place: `record`, `seed` and `training` of the source.

  Returns:
    The fields of the picture, and of its turns `questions`, `texts` (answers)
    and `prompt_ids` (their place).
  """
  record = tf.io.parse_single_example(place['record'], _RECORD)
  answers = record['conversations/agent']
  return {
      **steps.picture_fields(record, place, 'image/encoded', 'image/id'),
      'questions': clean_question(record['conversations/human']),
      'texts': tf.strings.strip(answers),
      'prompt_ids': tf.strings.as_string(tf.range(tf.size(answers))),
  }


def choose_rows(
    example: Mapping[str, tf.Tensor], num_prompts: int
) -> dict[str, tf.Tensor]:
  """Draws up to N turns in training; else keeps all.

  Args:
    example: from `parse_record`.
    num_prompts: N.

  Returns:
    The example with its rows.
  """
  numbers = tf.range(tf.size(example['texts']))
  rows = steps.draw_rows(
      numbers, num_prompts, example['training'], example['seed']
  )
  return outputs.take_rows(example, ROW_FIELDS, rows)


def finish_rows(
    example: Mapping[str, tf.Tensor],
    sizes: Mapping[str, int],
    vocabulary: seqio.Vocabulary,
) -> dict[str, tf.Tensor]:
  """Makes the features.

  Args:
    example: with its decoded picture and 1 to N rows.
    sizes: S, N, T, C, P.
    vocabulary: of text and context.

  Returns:
    The task features, and the names of picture and turns.
  """
  view = views.fitted_view(example['orig_hw'], sizes['S'])
  texts = example['texts']
  rows = tf.shape(texts)[0]
  # No blank before the answer's prefix: so the original (RefA).
  context = QUESTION_PREFIX + example['questions'] + ANSWER_PREFIX
  finished = {
      'image': view.image(example['image'], sizes['S']),
      'image_hw': view.hw,
      'prompt_boxes': image_ops.image_boxes(view.hw, rows),
      'text_tokens': text_ops.tokenize(texts, vocabulary, sizes['T']),
      'context_tokens': text_ops.tokenize(
          context, vocabulary, sizes['C'], begin=False
      ),
      'boxes': tf.zeros([rows, 4], tf.float32),
      'points': tf.zeros([rows, sizes['T'], sizes['P'], 2], tf.float32),
      **outputs.loss_fields(rows, caption=1.0),
  }
  kept = ['image_id', 'file_name', 'orig_hw', 'texts', 'prompt_ids']
  return {**finished, **{name: example[name] for name in kept}}


def preprocess(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, Any],
    output_features: Mapping[str, seqio.Feature],
) -> tf.data.Dataset:
  """Turns records into examples; the whole picture is shown.

  Args:
    dataset: of a `sources.ArrayRecordSource`.
    sequence_length: of `features.feature_lengths`.
    output_features: of the task.

  Returns:
    The examples.
  """
  sizes = outputs.sizes_for(sequence_length, with_masks=False)
  choose = functools.partial(choose_rows, num_prompts=sizes['N'])
  finish = functools.partial(
      finish_rows,
      sizes=sizes,
      vocabulary=output_features['text_tokens'].vocabulary,
  )
  return steps.run(dataset, parse_record, choose, finish, ROW_FIELDS, sizes)


def add_conversation_task(
    name: str, splits: Mapping[str, str], build_command: str
) -> None:
  """Registers `<name>_conversation`.

  Args:
    name: the data set.
    splits: split name to its folder below the data directory.
    build_command: what makes these folders.
  """
  seqio.TaskRegistry.add(
      f'{name}_conversation',
      source=sources.ArrayRecordSource(splits, build_command),
      preprocessors=[preprocess],
      output_features=outputs.output_features(vocabularies.t5_vocabulary()),
      metric_fns=[],
      shuffle_buffer_size=None,
  )
