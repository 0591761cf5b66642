"""Visual Genome: regions and their phrases (RefA).

A record is a picture with its regions. `<name>_densecap` trains the box
decoder on the regions and the captions of its proposals, and is scored by
dense captioning mAP; `<name>_location` gives the boxes and is scored by the
captions alone. Views are mirrored, as in no other set.

RefA: `tasks/build/visual_genome.py` for the record.
RefB: google-research/scenic, projects/pixel_llm/configs.
"""

from collections.abc import Mapping
import functools
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from pixel_llm.evaluation import densecap
from pixel_llm.evaluation import location_captions
from tasks import image_ops
from tasks import located_captions
from tasks import outputs
from tasks import sources
from tasks import steps
from tasks import vocabularies

ROW_FIELDS = ('texts', 'prompt_ids', 'boxes_orig')

# Longer side of the training views of every recipe, as multiples of the network
# input (RefB).
SCALE_RANGE = (0.1, 2.0)

_RECORD = {
    **steps.picture_spec('image', 'img_id'),
    'regions/id': tf.io.RaggedFeature(tf.int64),
    'regions/phrase': tf.io.RaggedFeature(tf.string),
    'regions/bbox': tf.io.FixedLenSequenceFeature(
        [4], tf.float32, allow_missing=True
    ),
}


def parse_record(place: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
  """Reads a record into one row a region.

  Args:
    place: `record`, `seed` and `training` of the source.

  Returns:
    The fields of the picture, and of its regions `texts`, `prompt_ids` and
    `boxes_orig` [n, 4] in pixels of the picture.
  """
  record = tf.io.parse_single_example(place['record'], _RECORD)
  picture = steps.picture_fields(record, place, 'image', 'img_id')
  return {
      **picture,
      'texts': record['regions/phrase'],
      'prompt_ids': tf.strings.as_string(record['regions/id']),
      'boxes_orig': image_ops.yxyx_to_xyxy(
          record['regions/bbox'], picture['orig_hw']
      ),
  }


# Of `<name>_densecap`, and with `detection=False` of `<name>_location`.
preprocess = functools.partial(
    located_captions.preprocess,
    parse=parse_record,
    row_fields=ROW_FIELDS,
    mirror=True,
)


def postprocess(
    output: Any, example: Mapping[str, Any], is_target: bool, **unused: Any
) -> Any:
  """Makes what `densecap_metrics` compares: a picture and its detections.

  Args:
    output: the decoded texts of all detections; unused for a target.
    example: an example of the task as arrays.
    is_target: whether the target is wanted.
    **unused: other arguments of SeqIO.

  Returns:
    For a target, what `steps.picture_target` tells, and of all regions of the
    picture `prompt_ids`, `texts` and `boxes_orig` [n, 4] (xyxy pixels of the
    original picture). For a prediction, the texts.
  """
  if not is_target:
    return list(output)
  return {
      **steps.picture_target(example),
      'prompt_ids': steps.decoded(example['truth/prompt_ids']),
      'texts': steps.decoded(example['truth/texts']),
      'boxes_orig': np.asarray(example['truth/boxes_orig']),
  }


def add_region_tasks(
    name: str,
    splits: Mapping[str, str],
    build_command: str,
    scale_range: tuple[float, float] = SCALE_RANGE,
) -> None:
  """Registers `<name>_densecap` and `<name>_location`.

  Args:
    name: the data set.
    splits: split name to its folder below the data directory.
    build_command: what makes these folders.
    scale_range: of the training views.
  """
  kinds = (
      ('densecap', True, postprocess, densecap.densecap_metrics),
      (
          'location',
          False,
          located_captions.postprocess,
          # Every region for itself (RefB).
          location_captions.location_caption_metrics,
      ),
  )
  for suffix, detection, postprocess_fn, metric_fn in kinds:
    seqio.TaskRegistry.add(
        f'{name}_{suffix}',
        source=sources.ArrayRecordSource(splits, build_command),
        preprocessors=[
            functools.partial(
                preprocess, scale_range=scale_range, detection=detection
            )
        ],
        output_features=outputs.output_features(vocabularies.t5_vocabulary()),
        postprocess_fn=postprocess_fn,
        metric_fns=[metric_fn],
        shuffle_buffer_size=None,
    )
