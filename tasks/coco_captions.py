"""COCO captions: a short caption of the whole picture (RefA).

A prompt is one caption; the context asks for it in one of 13 ways, those of
RefA; the location is the whole picture. Evaluation writes one caption a
picture and compares it with all of them.

RefA: InstructBLIP (arXiv 2305.06500), App. D, templates of image captioning.
RefB: google-research/scenic, projects/pixel_llm/configs.
"""

from collections.abc import Mapping
import functools
from typing import Any

import seqio
import tensorflow as tf

from pixel_llm.evaluation import captions
from tasks import image_ops
from tasks import outputs
from tasks import sources
from tasks import steps
from tasks import text_ops
from tasks import views
from tasks import vocabularies

# Longer side of the training views of every recipe, as multiples of the network
# input (RefB).
SCALE_RANGE = (0.75, 1.25)

# Evaluation uses the first (RefB); a recipe's context tokens cut off the long ones.
SHORT_CAPTION_PROMPTS = (
    'A photo of',
    'A short image caption:',
    'A short image description:',
    'An image that shows',
    'Write a short description for the image.',
    'Write a description for the photo.',
    'Provide a description of what is presented in the photo.',
    'Briefly describe the content of the image.',
    'Can you briefly explain what you see in the image?',
    'Could you use a few words to describe what you perceive in the photo?',
    'Please provide a short depiction of the picture.',
    'Using language, provide a short account of the image.',
    'Use a few words to illustrate what is happening in the picture.',
)

ROW_FIELDS = ('texts', 'prompt_ids')

_RECORD = {
    **steps.picture_spec('image', 'image/id'),
    'caption/id': tf.io.RaggedFeature(tf.int64),
    'caption/string': tf.io.RaggedFeature(tf.string),
}


def parse_record(place: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
  """Reads a record into one row a caption.

  Args:
    place: `record`, `seed` and `training` of the source.

  Returns:
    The fields of the picture, and of its captions `texts` and `prompt_ids`,
    twice: as rows and as truth.
  """
  record = tf.io.parse_single_example(place['record'], _RECORD)
  example = {
      **steps.picture_fields(record, place, 'image', 'image/id'),
      'texts': record['caption/string'],
      'prompt_ids': tf.strings.as_string(record['caption/id']),
  }
  return steps.with_truth(example, ROW_FIELDS)


def choose_rows(
    example: Mapping[str, tf.Tensor],
    size: int,
    num_prompts: int,
    scale_range: tuple[float, float],
) -> dict[str, tf.Tensor]:
  """Adds a view and `request`; draws up to N captions in training.

  Args:
    example: from `parse_record`.
    size: side of the network input.
    num_prompts: N.
    scale_range: of the views in training; evaluation sees the middle of the
      picture, its shorter side at `size`.

  Returns:
    The example; one row in evaluation.
  """
  seeds = tf.random.split(example['seed'], 3)
  training = example['training']
  view = views.choose_view(
      example['orig_hw'],
      size,
      training,
      scale_range,
      seeds[0],
      still_view=views.centered_view,
  )
  rows = steps.draw_rows(
      tf.range(tf.size(example['texts'])), num_prompts, training, seeds[1], 1
  )
  request = steps.draw_number(len(SHORT_CAPTION_PROMPTS), training, seeds[2])
  return {
      **outputs.take_rows(example, ROW_FIELDS, rows),
      **views.to_fields(view),
      'request': request,
  }


def finish_rows(
    example: Mapping[str, tf.Tensor],
    sizes: Mapping[str, int],
    vocabulary: seqio.Vocabulary,
) -> dict[str, tf.Tensor]:
  """Makes the features.

  Args:
    example: with its decoded picture, a view and 1 to N rows.
    sizes: S, N, T, C, P.
    vocabulary: of text and context.

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
      'context_tokens': text_ops.known_texts(
          SHORT_CAPTION_PROMPTS,
          tf.fill([rows], example['request']),
          vocabulary,
          sizes['C'],
      ),
      'boxes': tf.zeros([rows, 4], tf.float32),
      'points': tf.zeros([rows, sizes['T'], sizes['P'], 2], tf.float32),
      **outputs.loss_fields(rows, caption=1.0),
  }
  kept = ['image_id', 'file_name', 'orig_hw']
  return {
      **finished,
      **{name: example[name] for name in kept},
      **steps.truth_fields(example),
  }


def preprocess(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, Any],
    output_features: Mapping[str, seqio.Feature],
    scale_range: tuple[float, float] = (1.0, 1.0),
) -> tf.data.Dataset:
  """Turns records into examples, one a picture.

  Args:
    dataset: of a `sources.ArrayRecordSource`.
    sequence_length: of `features.feature_lengths`.
    output_features: of the task.
    scale_range: of the views in training.

  Returns:
    The examples.
  """
  sizes = outputs.sizes_for(sequence_length, with_masks=False)
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
  )
  return steps.run(dataset, parse_record, choose, finish, ROW_FIELDS, sizes)


def postprocess(
    output: Any, example: Mapping[str, Any], is_target: bool, **unused: Any
) -> Any:
  """Makes what `caption_metrics` compares.

  Args:
    output: the decoded texts [N] of a prediction; unused for a target.
    example: an example of the task as arrays.
    is_target: whether the target is wanted.
    **unused: other arguments of SeqIO.

  Returns:
    For a target, what `steps.picture_target` tells, `prompt_ids` and `texts`
    of all captions, and `num_prompts`, 1. For a prediction, its one text.
  """
  if not is_target:
    return list(output[:1])
  return {
      **steps.picture_target(example),
      'prompt_ids': steps.decoded(example['truth/prompt_ids']),
      'texts': steps.decoded(example['truth/texts']),
      'num_prompts': 1,
  }


def add_caption_task(
    name: str,
    splits: Mapping[str, str],
    build_command: str,
    scale_range: tuple[float, float] = (1.0, 1.0),
) -> None:
  """Registers `<name>_caption`.

  Args:
    name: the data set.
    splits: split name to its folder below the data directory.
    build_command: what makes these folders.
    scale_range: of the training views.
  """
  seqio.TaskRegistry.add(
      f'{name}_caption',
      source=sources.ArrayRecordSource(splits, build_command),
      preprocessors=[functools.partial(preprocess, scale_range=scale_range)],
      output_features=outputs.output_features(vocabularies.t5_vocabulary()),
      postprocess_fn=postprocess,
      metric_fns=[captions.caption_metrics],
      shuffle_buffer_size=None,
  )
