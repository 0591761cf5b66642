"""Writes what the model said of every prompt, beside the truth.

SeqIO's evaluator calls a `PredictionLogger` after each evaluation. One file a
task and step, `<task>-predictions-<step:06d>.json`, is a list with one row a
prompt, COCO-style (pixels of the original picture, boxes x y width height):

  {"image_id": "309", "file_name": "COCO_train2014_000000000309.jpg",
   "height": 427, "width": 640, "prompt_id": "7", "score": -3.2,
   "bbox": [12.0, 30.5, 80.0, 60.0], "segmentation": {"size": …, "counts": "…"},
   "caption": "the dog", "trace": [{"word": "the", "bbox": […] or null}, …],
   "truth": {"text": …, "bbox": …, "segmentation": …, "trace": …}}

`bbox` is null where the model gave no box. A field that the task or the model
does not have is left out. A model that finds objects itself gets one row a
detection, without truth: which region it stands for is the metric's business.
"""

from collections.abc import Mapping, Sequence
import json
import os
from typing import Any

from absl import logging
from jaxtyping import Bool, Float
import numpy as np
from seqio import loggers
import tensorflow as tf

from pixel_llm.evaluation import boxes as boxes_lib
from pixel_llm.evaluation import masks as masks_lib
from pixel_llm.evaluation import refexp
from pixel_llm.evaluation import trace
from pixel_llm.evaluation import words as words_lib


class PredictionLogger(loggers.Logger):
  """A SeqIO logger that writes one predictions file a task and step."""

  def __init__(self, output_dir: str, vocabulary: Any = None):
    """Prepares the logger.

    Args:
      output_dir: folder of the files; made when the first one is written.
      vocabulary: of the text, one of `tasks.vocabularies`. Without it a caption
        is written as the task decoded it, and no trace.
    """
    super().__init__(output_dir)
    self._words = None
    if vocabulary is not None:
      self._words = words_lib.words_of(vocabulary)

  def __call__(
      self,
      task_name: str,
      step: int | None,
      metrics: Mapping[str, Any],
      dataset: Any,
      inferences: Mapping[str, Any] | None,
      targets: Sequence[Any] | None,
  ) -> None:
    """Writes the file of one task; as `seqio.loggers.Logger`.

    Args:
      task_name: name of the task and beginning of the file's name.
      step: training step; None becomes -1, as in SeqIO's loggers.
      metrics: not used.
      dataset: not used; targets hold what is needed.
      inferences: `output` and `aux_value` of `predict_batch_with_aux`.
      targets: dicts of the task's postprocessing.
    """
    del metrics, dataset
    if not targets or not inferences or 'aux_value' not in inferences:
      logging.warning(
          'No predictions file for %s: it has no metric on predictions with'
          ' aux values.',
          task_name,
      )
      return
    rows = prediction_rows(
        targets, inferences['output'], inferences['aux_value'], self._words
    )
    step = -1 if step is None else step
    path = os.path.join(
        self.output_dir, f'{task_name}-predictions-{step:06d}.json'
    )
    logging.info('Writing %d predictions to %s', len(rows), path)
    # A reader sees the whole file or none.
    tf.io.gfile.makedirs(os.path.dirname(path))
    with tf.io.gfile.GFile(f'{path}.tmp', 'w') as f:
      f.write(json.dumps(rows, allow_nan=False))
    tf.io.gfile.rename(f'{path}.tmp', path, overwrite=True)


def prediction_rows(
    targets: Sequence[Mapping[str, Any]],
    outputs: Sequence[Any],
    aux_values: Mapping[str, Any],
    words: words_lib.Words | None = None,
) -> list[dict[str, Any]]:
  """Makes one row a prompt.

  Args:
    targets: a dict an example, as the metrics take them.
    outputs: what the model wrote for each example: token ids (N, T), or N
      texts, which may carry their token ids in an attribute `ids`.
    aux_values: arrays of all examples, as the metrics take them.
    words: cuts token rows into words; None writes no trace.

  Returns:
    Rows that JSON takes.
  """
  rows = []
  for index, (target, output) in enumerate(zip(targets, outputs)):
    aux = {name: np.asarray(v[index]) for name, v in aux_values.items()}
    if 'detection_scores' in aux:
      rows += _detection_rows(target, output, aux)
      continue
    # Some targets hold more texts of a picture than there were prompts.
    num_prompts = target.get('num_prompts', len(target['prompt_ids']))
    target = {**target, 'prompt_ids': target['prompt_ids'][:num_prompts]}
    fields = [
        _prompt_fields(target, aux),
        _box_fields(target, aux),
        _mask_fields(target, aux),
        _text_fields(target, output, aux, words),
        _point_error_fields(target, aux),
    ]
    for parts in zip(*fields):
      row: dict[str, Any] = {}
      truth: dict[str, Any] = {}
      for predicted, true in parts:
        row |= predicted
        truth |= true
      rows.append(row | {'truth': truth})
  return rows


# What one part of a row gives: predicted and true fields of every prompt.
_Fields = list[tuple[dict[str, Any], dict[str, Any]]]


def _picture_fields(target: Mapping[str, Any]) -> dict[str, Any]:
  """Names and size of the picture."""
  height, width = (int(v) for v in target['orig_hw'])
  return {
      'image_id': target['image_id'],
      'file_name': target['file_name'],
      'height': height,
      'width': width,
  }


def _finite(value: Any) -> float | None:
  """A number, None where JSON could not take it."""
  return float(value) if np.isfinite(value) else None


def _detection_rows(
    target: Mapping[str, Any], output: Any, aux: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
  """One row a detection, in the order of the model."""
  boxes = boxes_lib.boxes_image_to_orig(
      np.asarray(aux['boxes'], np.float64),
      target['image_hw'],
      target['orig_hw'],
  )
  rows = []
  for index in np.flatnonzero(np.asarray(aux['box_mask'], bool)):
    row = _picture_fields(target)
    row['prompt_id'] = f'detection {index}'
    row['detection_score'] = _finite(aux['detection_scores'][index])
    if 'scores' in aux:
      row['score'] = _finite(aux['scores'][index])
    finite = np.isfinite(boxes[index]).all()
    row['bbox'] = _xywh(boxes[index] if finite else None)
    if isinstance(output[index], str):
      row['caption'] = output[index]
    rows.append(row)
  return rows


def _prompt_fields(
    target: Mapping[str, Any], aux: Mapping[str, np.ndarray]
) -> _Fields:
  """Names of picture and prompt, and the score of the text."""
  fields: _Fields = []
  for index, prompt in enumerate(target['prompt_ids']):
    predicted = {**_picture_fields(target), 'prompt_id': prompt}
    if 'scores' in aux:
      predicted['score'] = _finite(aux['scores'][index])
    fields.append((predicted, {'text': target['texts'][index]}))
  return fields


def _box_fields(
    target: Mapping[str, Any], aux: Mapping[str, np.ndarray]
) -> _Fields:
  """Boxes, if the task has true ones: a caption's trace is no box."""
  if 'boxes_orig' not in target:
    return [({}, {}) for _ in target['prompt_ids']]
  true_boxes = np.asarray(target['boxes_orig'], np.float64).reshape(-1, 4)
  boxes = refexp.predicted_boxes(target, aux['boxes'], aux['box_mask'])
  return [
      ({'bbox': _xywh(box)}, {'bbox': _xywh(true_box)})
      for box, true_box in zip(boxes, true_boxes)
  ]


def _mask_fields(
    target: Mapping[str, Any], aux: Mapping[str, np.ndarray]
) -> _Fields:
  """Masks, predicted ones if the model has a mask decoder."""
  fields: _Fields = [({}, {}) for _ in target['prompt_ids']]
  if 'masks_rle' in target:
    for (_, truth), rle in zip(fields, target['masks_rle']):
      truth['segmentation'] = rle
  if 'mask_logits' in aux:
    masks = refexp.predicted_masks(target, aux['mask_logits'], aux['box_mask'])
    for (predicted, _), mask in zip(fields, masks):
      predicted['segmentation'] = (
          None if mask is None else masks_lib.encode_mask(mask)
      )
  return fields


def _text_fields(
    target: Mapping[str, Any],
    output: Any,
    aux: Mapping[str, np.ndarray],
    words: words_lib.Words | None,
) -> _Fields:
  """Captions, and word by word their traces."""
  fields: _Fields = [({}, {}) for _ in target['prompt_ids']]
  tokens = token_ids(output)
  for index, (predicted, truth) in enumerate(fields):
    if tokens is None or isinstance(output[index], str):
      predicted['caption'] = str(output[index])
    if words is None or tokens is None:
      continue
    cut = words(tokens[index])
    predicted.setdefault('caption', ' '.join(word.text for word in cut))
    # A referring task has one box for the whole text, no box a word.
    if 'points' in target and 'points' in aux:
      predicted['trace'] = _trace(
          target, cut, aux['points'][index], aux['point_mask'][index]
      )
      true_tokens = np.asarray(target['text_tokens'])[index]
      true_points = np.asarray(target['points'], np.float64)[index]
      mask = trace.point_tokens(true_tokens[None], true_points[None])[0]
      truth['trace'] = _trace(target, words(true_tokens), true_points, mask)
  return fields


def _point_error_fields(
    target: Mapping[str, Any], aux: Mapping[str, np.ndarray]
) -> _Fields:
  """Mean distance of the true caption's points to the truth, as the metric."""
  fields: _Fields = [({}, {}) for _ in target['prompt_ids']]
  if 'points' not in target or 'gt_text_points' not in aux:
    return fields
  targets = np.asarray(target['points'], np.float64)
  mask = trace.point_tokens(np.asarray(target['text_tokens']), targets)
  distances = trace.point_distances(
      aux['gt_text_points'][: len(fields)], targets, target['image_hw']
  )
  for (predicted, _), row, kept in zip(fields, distances, mask):
    error = float(np.mean(row[kept])) if np.any(kept) else None
    finite = error is not None and np.isfinite(error)
    predicted['trace_l1'] = error if finite else None
  return fields


def token_ids(output: Any) -> np.ndarray | None:
  """Token ids (N, T) of one example's output, or None if it has only texts."""
  if hasattr(output, 'ids'):
    return np.asarray(output.ids)
  if len(output) and isinstance(output[0], str):
    return None
  return np.asarray(output)


def _trace(
    target: Mapping[str, Any],
    words: Sequence[words_lib.Word],
    points: Float[np.ndarray, 'T P 2'],
    point_mask: Bool[np.ndarray, 'T'],
) -> list[dict[str, Any]]:
  """Word by word, the box of its points in the original picture."""
  rows = []
  for word, box in zip(words, words_lib.word_boxes(words, points, point_mask)):
    if box is not None:
      box = boxes_lib.boxes_image_to_orig(
          box[None], target['image_hw'], target['orig_hw']
      )[0]
    rows.append({'word': word.text, 'bbox': _xywh(box)})
  return rows


def _xywh(box: Float[np.ndarray, '4'] | None) -> list[float] | None:
  """A box as COCO writes it, to a thousandth of a pixel."""
  if box is None:
    return None
  return [round(float(v), 3) for v in boxes_lib.xyxy_to_xywh(box)]
