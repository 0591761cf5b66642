"""Regions, captions, conversations and lists, and the mixtures of recipes."""

import collections
import functools
import json

import numpy as np
import pytest
import seqio

from pixel_llm import feature_converters
from pixel_llm import features
from pixel_llm.evaluation import predictions
from tasks import coco_captions
from tasks import located_captions
from tasks import visual_genome

LENGTHS = features.feature_lengths(96, 4, 24, 12)
SMALL = features.feature_lengths(96, 1, 24, 8)


def _examples(name, lengths=LENGTHS, **kwargs):
  task = seqio.get_mixture_or_task(name)
  return [
      {k: v.numpy() for k, v in example.items()}
      for example in task.get_dataset(lengths, **kwargs)
  ]


def _text(name, tokens):
  task = seqio.get_mixture_or_task(name)
  return task.output_features['text_tokens'].vocabulary.decode(tokens)


def test_regions_are_seen_where_they_are_mirrored_or_not(data_dir):
  examples = _examples('vg_sample_densecap', split='train', seed=3)
  assert len(examples) >= 11
  mirrored = 0
  for example in examples:
    height, width = example['image_hw']
    boxes = example['boxes']
    assert np.all(boxes[:, 2:] > boxes[:, :2])
    assert np.all(boxes[:, 2:] <= [width, height])
    np.testing.assert_array_equal(example['prompt_boxes'], boxes)
    np.testing.assert_array_equal(example['detection_weights'], 1)
    assert example['object_captions'].all()
    np.testing.assert_array_equal(example['point_weights'], 0)
    # A mirrored view puts boxes on the other side.
    orig = example['boxes_orig']
    order = np.argsort(orig[:, 0])
    if len(order) > 1 and np.ptp(boxes[:, 0]) > 5:
      mirrored += boxes[order[0], 0] > boxes[order[-1], 0]
  assert mirrored
  request = _text('vg_sample_densecap', examples[0]['context_tokens'][0])
  assert request == located_captions.REQUEST.strip()


def test_dense_captioning_is_evaluated_once_a_picture_with_all_regions(
    data_dir,
):
  examples = _examples('vg_sample_densecap', split='validation', shuffle=False)
  names = [e['image_id'] for e in examples]
  assert len(names) == len(set(names)) == 12
  task = seqio.get_mixture_or_task('vg_sample_densecap')
  targets = [
      task.postprocess_fn(None, example=e, is_target=True) for e in examples
  ]
  assert sum(len(t['texts']) for t in targets) == 73
  assert max(len(t['texts']) for t in targets) > 4
  # All detections of a prediction are kept, however many regions there are.
  texts = ['a', 'b', 'c', 'd', 'e', 'f']
  assert (
      task.postprocess_fn(texts, example=examples[0], is_target=False) == texts
  )


def test_the_evaluator_scores_perfect_detections(data_dir, tmp_path):
  """A model that finds the first four regions of each picture."""

  def perfect(dataset):
    rows, aux = [], collections.defaultdict(list)
    for index, batch in dataset:
      rows.append((int(index), batch['text_tokens'].numpy()))
      aux['boxes'].append(batch['boxes'].numpy())
      aux['box_mask'].append(batch['prompt_mask'].numpy())
      aux['detection_scores'].append(np.linspace(0.9, 0.6, 4))
    return rows, dict(aux)

  evaluator = seqio.Evaluator(
      'vg_sample_densecap',
      feature_converters.PixelLLMFeatureConverter(),
      eval_split='validation',
      sequence_length=LENGTHS,
      log_dir=str(tmp_path),
      logger_cls=[predictions.PredictionLogger],
      target_field_name='text_tokens',
  )
  metrics, _ = evaluator.evaluate(
      compute_metrics=True,
      predict_fn=None,
      score_fn=None,
      predict_with_aux_fn=perfect,
      step=7,
  )
  values = metrics.result()['vg_sample_densecap']
  # The four surest regions of a picture are right, the others are not found.
  assert 0.4 < values['mAP'] < 1
  assert values['mAP_detection'] >= values['mAP']
  evaluator.close()
  [path] = tmp_path.glob('*-predictions-000007.json')
  rows = json.loads(path.read_text())
  assert len({row['image_id'] for row in rows}) == 12
  assert all(row['bbox'][2] > 0 and 'truth' not in row for row in rows)
  # Truncated texts lose words, never the first ones.
  assert all(row['caption'] for row in rows)


def test_given_regions_are_all_evaluated(data_dir):
  examples = _examples('vg_sample_location', split='validation', shuffle=False)
  ids = [i for e in examples for i in e['prompt_ids'].tolist()]
  assert len(ids) == len(set(ids)) == 73
  for example in examples:
    np.testing.assert_array_equal(example['detection_weights'], 0)
    assert not example['object_captions'].any()


def test_captions_are_drawn_in_training_and_all_true_in_evaluation(data_dir):
  drawn = collections.Counter()
  requests = set()
  for seed in range(3):
    for example in _examples(
        'coco_sample_caption', SMALL, split='train', seed=seed
    ):
      assert example['text_tokens'].shape == (1, 24)
      drawn[_text('coco_sample_caption', example['text_tokens'])[0]] += 1
      requests.add(example['context_tokens'].tobytes())
  assert len(drawn) > 17 and len(requests) > 5
  examples = _examples('coco_sample_caption', split='validation', shuffle=False)
  assert len(examples) == 17
  task = seqio.get_mixture_or_task('coco_sample_caption')
  for example in examples:
    assert example['image_hw'].tolist() == [96, 96]
    target = task.postprocess_fn(None, example=example, is_target=True)
    assert len(target['texts']) == len(target['prompt_ids']) == 5
    request = _text(task.name, example['context_tokens'])[0]
    assert request == coco_captions.SHORT_CAPTION_PROMPTS[0]


def test_conversations_lose_their_tag_and_keep_their_pairs(data_dir):
  lengths = features.feature_lengths(96, 4, 64, 64)
  examples = _examples('llava_sample_conversation', lengths, split='validation')
  assert len(examples) >= 23
  found = {}
  for example in examples:
    questions = _text('llava_sample_conversation', example['context_tokens'])
    answers = _text('llava_sample_conversation', example['text_tokens'])
    assert all(q.startswith('Question: ') for q in questions)
    assert all(q.endswith('Answer:') for q in questions)
    assert not any('image>' in q for q in questions)
    found.update(zip(questions, answers))
  question = 'Question: How many dogs are in the picture?Answer:'
  assert found[question] == 'There are two dogs in the picture.'


@pytest.mark.parametrize(('source', 'count'), [('coco', 62), ('vg', 27)])
def test_lists_give_every_object_as_referring_expressions(
    source, count, data_dir
):
  examples = _examples(
      f'mixed_{source}_sample_refexp', split='validation', shuffle=False
  )
  boxes = {
      (e['image_id'], *box)
      for e in examples
      for box in e['boxes_orig'].tolist()
  }
  assert 0 < len(boxes) <= count
  assert all('masks' not in e for e in examples)


def test_a_mixture_draws_its_tasks_by_weight(data_dir):
  mixture = seqio.get_mixture_or_task('pixel_llm_sample_joint')
  lengths = features.feature_lengths(96, 4, 64, 32)
  dataset = mixture.get_dataset(
      lengths, split='train', seed=1, num_epochs=None, shuffle=True
  )
  dataset = feature_converters.PixelLLMFeatureConverter()(dataset, lengths)
  kinds = collections.Counter()
  num_examples = 400
  for example in dataset.take(num_examples).as_numpy_iterator():
    rows = example['prompt_mask']
    if example['detection_weights'][rows].any():
      kinds['regions'] += 1
    elif example['boxes'][rows].any():
      kinds['expressions'] += 1
    elif example['points'][rows].any():
      kinds['traces'] += 1
    else:
      kinds['texts'] += 1
  weights = {'regions': 5, 'expressions': 6, 'traces': 1, 'texts': 8}
  for kind, weight in weights.items():
    share = weight / 20
    error = np.sqrt(share * (1 - share) / num_examples)
    assert abs(kinds[kind] / num_examples - share) < 3 * error, kinds


def test_every_recipe_has_its_mixture():
  weights = {
      name: dict(seqio.MixtureRegistry.get(name)._task_to_rate)
      for name in ('pixel_llm_trace', 'pixel_llm_ref', 'pixel_llm_joint')
  }
  assert weights['pixel_llm_trace'] == {'coco_caption': 1, 'ln_coco_trace': 2}
  assert list(weights['pixel_llm_ref'].values()) == [1, 5, 1]
  assert list(weights['pixel_llm_joint'].values()) == [3, 1, 1, 5, 1, 5, 5]


def test_a_view_without_any_box_is_a_picture_without_prompts(data_dir):
  task = seqio.get_mixture_or_task('refcoco_sample_refexp')
  records = task.source.num_records('train')
  examples = _examples(
      'refcoco_sample_refexp', split='train', seed=1, num_epochs=2
  )
  assert len(examples) == 2 * records
  # Crops of a far corner: most views show no region.
  close = seqio.Task(
      'close_regions',
      source=seqio.get_mixture_or_task('vg_sample_densecap').source,
      preprocessors=[
          functools.partial(
              visual_genome.preprocess, scale_range=(20.0, 20.0), detection=True
          )
      ],
      output_features=seqio.get_mixture_or_task(
          'vg_sample_densecap'
      ).output_features,
      shuffle_buffer_size=None,
  )
  bare = 0
  for example in close.get_dataset(LENGTHS, split='train', seed=2):
    rows = {name: example[name].shape[0] for name in ('boxes', 'text_tokens')}
    bare += not any(rows.values())
  assert bare
