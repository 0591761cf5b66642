"""Golden runners of the metrics: `eval_points`, `eval_refcoco`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pixel_llm.evaluation import boxes as boxes_lib
from pixel_llm.evaluation import masks as masks_lib
from pixel_llm.evaluation import refexp
from pixel_llm.evaluation import trace
from pixel_llm.golden.case import Case


def run_points(case: Case) -> dict[str, np.ndarray]:
  """The trace metric, the original's empty examples of error 0 included."""
  scores = trace.TraceScores(counts_empty=True)
  for example in case.document['examples']:
    target = example['target']
    points = np.asarray(example['prediction']['point_coords'])
    if points.ndim == 3:
      points = points[:, :, None]
    targets = np.asarray(target['points'])
    tokens = np.asarray(target.get('token_padding_mask', target['text_tokens']))
    scores.add(
        trace.point_distances(points, targets, target['size']),
        trace.point_tokens(tokens, targets),
    )
  return {
      'metric/per_example': np.asarray(scores.errors),
      'metric/point_l1': np.asarray(scores.summary()),
  }


def _target(example: Mapping[str, Any]) -> dict[str, Any]:
  """An example's target in our names; expression id 0 is padding."""
  target = example['target']
  ids = [i for i in target['refexp_ids'] if i]
  boxes = np.asarray(target['boxes'], np.float64)
  return {
      'image_id': target['image/id'],
      'prompt_ids': ids,
      'texts': target['captions'],
      'image_hw': target['size'],
      'padded_hw': target['padded_size'],
      'orig_hw': target['orig_size'],
      'boxes_orig': boxes_lib.boxes_image_to_orig(
          boxes[: len(ids)], target['size'], target['orig_size']
      ),
  }


def _with_annotations(
    target: dict[str, Any], annotations: Mapping[int, Mapping[str, Any]]
) -> dict[str, Any]:
  """The same target with boxes and masks of the annotation file."""
  rows = [annotations[i] for i in target['prompt_ids']]
  boxes = boxes_lib.xywh_to_xyxy(np.asarray([row['bbox'] for row in rows]))
  masks = [
      masks_lib.encode_mask(
          masks_lib.decode_mask(row['segmentation'], target['orig_hw'])
      )
      for row in rows
  ]
  return target | {'boxes_orig': boxes, 'masks_rle': masks}


def run_refcoco(case: Case) -> dict[str, np.ndarray]:
  """Referring metrics against four forms of one ground truth.

  The grouped annotation file holds the same rows under other ids, so its
  figures are those of the plain one.
  """
  examples = case.document['examples']
  annotations = {
      row['id']: row for row in case.document['annotations']['annotations']
  }
  plain = [_target(example) for example in examples]
  annotated = [_with_annotations(target, annotations) for target in plain]
  aux = {
      'boxes': [
          np.asarray(e['prediction']['detection_boxes']) for e in examples
      ],
      'mask_logits': [
          np.asarray(e['prediction']['detection_masks']) for e in examples
      ],
  }
  aux['box_mask'] = [np.ones(len(boxes), bool) for boxes in aux['boxes']]
  from_file = refexp.refexp_metrics(annotated, [], aux)
  from_targets = refexp.refexp_metrics(plain, [], aux)
  with_masks = {
      'box_Precision@1': from_file['box_precision_at_0.5'],
      'seg_box_Precision@1': from_file['mask_box_precision_at_0.5'],
      'seg_cIoU': from_file['mask_cIoU'],
      'seg_gIoU': from_file['mask_gIoU'],
      'seg_AP': from_file['mask_precision_at_0.5'],
      'num_predictions': from_file['num_expressions'],
  }
  boxes_only = {
      'box_Precision@1': from_file['box_precision_at_0.5'],
      # One box an expression, so the best of five is the best of one.
      'box_Precision@5': from_file['box_precision_at_0.5'],
      'num_predictions': from_file['num_expressions'],
  }
  figures = {
      'annotation_file_with_masks': with_masks,
      'annotation_file_grouped': with_masks,
      'annotation_file_boxes_only': boxes_only,
      'annotations_from_targets': {
          'box_Precision@1': from_targets['box_precision_at_0.5'],
          'num_predictions': from_targets['num_expressions'],
      },
  }
  arrays = {
      f'metric/{group}/{name}': np.asarray(value)
      for group, values in figures.items()
      for name, value in values.items()
  }
  return arrays | _first_predictions(case.document, plain, aux)


def _first_predictions(
    document: Mapping[str, Any],
    targets: list[dict[str, Any]],
    aux: Mapping[str, list[np.ndarray]],
) -> dict[str, np.ndarray]:
  """The first rows of the predictions file: box, ids and expression."""
  rows = []
  for target, boxes, box_mask in zip(targets, aux['boxes'], aux['box_mask']):
    boxes = refexp.predicted_boxes(target, boxes, box_mask)
    for prompt, text, box in zip(target['prompt_ids'], target['texts'], boxes):
      rows.append(
          {
              'id': np.asarray(prompt),
              'image_id': np.asarray(target['image_id']),
              'bbox': boxes_lib.xyxy_to_xywh(box),
              'refexp': np.asarray(text),
          }
      )
  num_rows = len(document['first_predictions_xywh'])
  return {
      f'metric/first_predictions_xywh/{index}/{name}': value
      for index, row in enumerate(rows[:num_rows])
      for name, value in row.items()
  }


RUNNERS = {'eval_points': run_points, 'eval_refcoco': run_refcoco}
