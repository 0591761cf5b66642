"""Predictions files."""

import inspect
import json
import pathlib

import numpy as np
import pytest
import sentencepiece
import seqio
from seqio import loggers

from pixel_llm.evaluation import masks as masks_lib
from pixel_llm.evaluation import predictions
from pixel_llm.evaluation import trace

# pycocotools 2.0.11 still has the __array__ of NumPy 1.
pytestmark = pytest.mark.filterwarnings(
    'ignore:__array__ implementation:DeprecationWarning'
)
_MODEL = (
    pathlib.Path(__file__).parents[3]
    / 'tasks/assets/tokenizers/t5/spiece.model'
)


@pytest.fixture(name='processor', scope='module')
def _processor():
  return sentencepiece.SentencePieceProcessor(model_file=str(_MODEL))


class _Texts(list):
  """Texts with their token ids, as a task's vocabulary decodes them."""

  def __init__(self, texts, ids):
    super().__init__(texts)
    self.ids = ids


def _target(**fields):
  """A 40 x 80 picture shown as 10 x 20 pixels of a 20 x 20 input."""
  return {
      'image_id': '309',
      'file_name': '309.jpg',
      'image_hw': np.asarray([10, 20]),
      'padded_hw': np.asarray([20, 20]),
      'orig_hw': np.asarray([40, 80], np.int32),
  } | fields


def _refseg_example():
  true_mask = np.zeros((40, 80), bool)
  true_mask[8:20, 4:40] = True
  target = _target(
      prompt_ids=['7', '8'],
      texts=['the dog', 'a cat'],
      boxes_orig=np.asarray([[4, 8, 40, 20]] * 2, np.float32),
      masks_rle=[masks_lib.encode_mask(true_mask)] * 2,
  )
  aux = {
      'boxes': np.asarray([[1, 2, 10, 5]] * 3, np.float32),
      'box_mask': np.asarray([True, False, True]),
      'scores': np.asarray([-1.5, -np.inf, 0.0], np.float32),
      'mask_logits': np.ones((3, 4, 4), np.float32),
  }
  return target, aux


def _trace_example(processor):
  row = [0, *processor.encode('a surfboarder'), 1]
  tokens = np.zeros((2, 8), np.int32)
  tokens[0, : len(row)] = row
  points = np.zeros((1, 8, 2, 2), np.float32)
  points[0, 1 : len(row) - 1] = [[1, 2], [10, 5]]
  target = _target(
      prompt_ids=['n'],
      texts=['a surfboarder'],
      text_tokens=tokens[:1],
      points=points,
  )
  predicted = np.concatenate([points, points]) + np.float32(1)
  point_mask = tokens > 1
  point_mask[0, 1:3] = False
  aux = {
      'points': predicted,
      'gt_text_points': predicted,
      'point_mask': point_mask,
  }
  return target, tokens, aux


def _write(folder, target, output, aux, vocabulary=None, step=30):
  logger = predictions.PredictionLogger(str(folder), vocabulary)
  logger(
      task_name='task',
      step=step,
      metrics={},
      dataset=None,
      inferences={
          'output': [output],
          'aux_value': {name: value[None] for name, value in aux.items()},
      },
      targets=[target],
  )
  (path,) = pathlib.Path(folder).iterdir()
  return path.name, json.loads(path.read_text())


def test_rows_of_a_referring_task(tmp_path):
  target, aux = _refseg_example()
  name, rows = _write(tmp_path / 'new', target, ['the dog', 'a cat', ''], aux)
  assert name == 'task-predictions-000030.json'
  assert len(rows) == 2
  segmentation = rows[0].pop('segmentation')
  true_segmentation = rows[0]['truth'].pop('segmentation')
  assert rows[0] == {
      'image_id': '309',
      'file_name': '309.jpg',
      'height': 40,
      'width': 80,
      'prompt_id': '7',
      'score': -1.5,
      'bbox': [4, 8, 36, 12],
      'caption': 'the dog',
      'truth': {'text': 'the dog', 'bbox': [4, 8, 36, 12]},
  }
  assert masks_lib.decode_mask(segmentation, (40, 80)).all()
  true_mask = masks_lib.decode_mask(true_segmentation, (40, 80))
  assert true_mask.sum() == 12 * 36


def test_no_box_is_null_and_so_are_its_mask_and_a_score_without_number(
    tmp_path,
):
  target, aux = _refseg_example()
  _, rows = _write(tmp_path, target, ['the dog', 'a cat', ''], aux)
  assert rows[1]['bbox'] is None
  assert rows[1]['segmentation'] is None
  assert rows[1]['score'] is None


def test_rows_of_a_trace_task(tmp_path, processor):
  target, tokens, aux = _trace_example(processor)
  output = _Texts(['a surfboarder', ''], tokens)
  _, (row,) = _write(tmp_path, target, output, aux, processor)
  assert 'bbox' not in row
  assert row['caption'] == 'a surfboarder'
  # The first word, pieces "▁" and "a", has no point; 1 px of the input is 4 px here.
  assert row['trace'] == [
      {'word': 'a', 'bbox': None},
      {'word': 'surfboarder', 'bbox': [8, 12, 36, 12]},
  ]
  assert row['truth']['trace'] == [
      {'word': 'a', 'bbox': [4, 8, 36, 12]},
      {'word': 'surfboarder', 'bbox': [4, 8, 36, 12]},
  ]
  assert row['trace_l1'] == pytest.approx((1 / 20 + 1 / 10) / 2)


def test_token_ids_alone_give_the_caption_too(tmp_path, processor):
  target, tokens, aux = _trace_example(processor)
  _, (row,) = _write(tmp_path, target, tokens, aux, processor)
  assert row['caption'] == 'a surfboarder'


def test_without_vocabulary_there_is_no_trace(tmp_path, processor):
  target, tokens, aux = _trace_example(processor)
  _, (row,) = _write(tmp_path, target, tokens, aux)
  assert 'trace' not in row and 'caption' not in row


def test_points_that_are_no_numbers_go_into_json(tmp_path, processor):
  target, tokens, aux = _trace_example(processor)
  aux['points'] = aux['gt_text_points'] = np.full_like(aux['points'], np.nan)
  _, (row,) = _write(tmp_path, target, tokens, aux, processor)
  assert row['trace'][1] == {'word': 'surfboarder', 'bbox': None}
  assert row['trace_l1'] is None


def test_a_file_is_replaced_as_a_whole(tmp_path):
  target, aux = _refseg_example()
  _write(tmp_path, target, ['the dog', 'a cat', ''], aux)
  _, rows = _write(tmp_path, target, ['x', 'y', ''], aux)
  assert [row['caption'] for row in rows] == ['x', 'y']


def test_a_task_without_aux_values_writes_nothing(tmp_path):
  logger = predictions.PredictionLogger(str(tmp_path))
  logger('task', None, {}, None, {'prediction': ['a']}, ['b'])
  logger('task', None, {}, None, None, None)
  assert not list(tmp_path.iterdir())


def test_seqio_can_make_and_call_it():
  ours = inspect.signature(predictions.PredictionLogger.__call__)
  assert list(ours.parameters) == list(
      inspect.signature(loggers.Logger.__call__).parameters
  )
  made = predictions.PredictionLogger(output_dir='somewhere')
  assert isinstance(made, loggers.Logger)
  assert made.output_dir == 'somewhere'


def test_seqio_brings_model_output_to_metric_and_file(tmp_path, processor):
  target, tokens, aux = _trace_example(processor)
  examples = [{'text_tokens': target['text_tokens']}] * 2
  metric = seqio.metrics.PassthroughLegacyMetric.from_metric_fn(
      trace.trace_metrics,
      lambda output, example, is_target: target if is_target else output,
  )
  features = {
      'text_tokens': seqio.Feature(seqio.PassThroughVocabulary(32128), rank=2)
  }
  output = np.stack([tokens] * 2)
  aux_values = {name: np.stack([v] * 2) for name, v in aux.items()}
  scores, inferences = metric.from_model_output(
      examples, (output, aux_values), features, 'text_tokens'
  ).actual_compute(examples, features, 'text_tokens')
  assert scores['trace_l1'] == pytest.approx((1 / 20 + 1 / 10) / 2)
  assert scores['trace_decoded_coverage'] == 1
  logger = predictions.PredictionLogger(str(tmp_path), processor)
  targets = inferences.pop('targets')
  logger('task', 5, scores, examples, inferences, targets)
  rows = json.loads((tmp_path / 'task-predictions-000005.json').read_text())
  assert [row['caption'] for row in rows] == ['a surfboarder'] * 2
