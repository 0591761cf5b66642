"""The tasks as SeqIO and its evaluator use them."""

import os
import subprocess
import sys

import numpy as np
from pycocotools import mask as mask_lib
import pytest
import seqio

from pixel_llm import feature_converters
from pixel_llm import features
from pixel_llm import mask_bits
from tasks import localized_narratives

LENGTHS = features.feature_lengths(96, 4, 16, 12, with_masks=True)
TRACE_LENGTHS = features.feature_lengths(96, 1, 96, 8)


def _examples(name, lengths, **kwargs):
  task = seqio.get_mixture_or_task(name)
  return [
      {k: v.numpy() for k, v in example.items()}
      for example in task.get_dataset(lengths, **kwargs)
  ]


def test_a_training_example_is_a_function_of_seed_and_epoch(data_dir):
  def look(seed):
    return [
        (e['file_name'], e['texts'].tolist())
        for e in _examples('refcoco_sample_refseg', LENGTHS, seed=seed)
    ]

  first = look(1)
  assert len(first) == 10
  assert first == look(1)
  assert first != look(2)


def test_evaluation_shows_every_expression_once(data_dir):
  examples = _examples(
      'refcoco_sample_refseg', LENGTHS, split='validation', shuffle=False
  )
  assert {len(e['texts']) for e in examples} <= {1, 2, 3, 4}
  ids = [i for e in examples for i in e['prompt_ids'].tolist()]
  assert len(ids) == len(set(ids)) == 113


def test_boxes_lie_around_their_masks(data_dir):
  examples = _examples('refcoco_sample_refseg', LENGTHS, split='real_val')
  examples += _examples('refcoco_sample_refseg', LENGTHS, split='train', seed=1)
  for example in examples:
    np.testing.assert_array_equal(example['mask_weights'], 1)
    masks = mask_bits.unpack(example['masks'], 96)
    for box, mask in zip(example['boxes'], masks):
      ys, xs = np.nonzero(mask)
      tight = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
      np.testing.assert_allclose(tight, box, atol=2)
    height, width = example['image_hw']
    assert example['image'][:height, :width].std() > 1
    assert not example['image'][height:].any()
    assert not example['image'][:, width:].any()
    np.testing.assert_array_equal(
        example['prompt_boxes'][0], [0, 0, width, height]
    )


def test_the_target_is_in_pixels_of_the_original(data_dir):
  task = seqio.get_mixture_or_task('refcoco_sample_refseg')
  for example in _examples(task.name, LENGTHS, split='real_val'):
    target = task.postprocess_fn(None, example=example, is_target=True)
    assert target['padded_hw'].tolist() == [96, 96]
    scale = target['orig_hw'] / target['image_hw']
    np.testing.assert_allclose(
        example['boxes'] * [*scale[::-1], *scale[::-1]],
        target['boxes_orig'],
        rtol=1e-4,
        atol=1e-3,
    )
    assert len(target['prompt_ids']) == len(target['texts'])
    for box, rle in zip(target['boxes_orig'], target['masks_rle']):
      assert isinstance(rle['counts'], str)
      x, y, w, h = mask_lib.toBbox(rle)
      # COCO's polygons and boxes differ by some pixels.
      np.testing.assert_allclose([x, y, x + w, y + h], box, atol=5)


def test_masks_in_the_lengths_must_match_the_task(data_dir):
  for name, lengths in (
      ('refcoco_sample_refexp', LENGTHS),
      ('refcoco_sample_refseg', features.feature_lengths(96, 4, 16, 12)),
  ):
    with pytest.raises(ValueError, match='disagree on masks'):
      seqio.get_mixture_or_task(name).get_dataset(lengths)


def test_a_trace_lies_in_the_valid_picture(data_dir):
  examples = _examples('ln_sample_trace', TRACE_LENGTHS, split='train', seed=1)
  assert len(examples) == 16
  requests = set()
  for example in examples:
    height, width = example['image_hw']
    points = example['points']
    assert points.min() >= 0
    assert np.all(points <= [width, height])
    # Corners of a box: the second is not above or left of the first.
    assert np.all(points[:, :, 1] >= points[:, :, 0])
    text = (example['text_tokens'] != 0) & (example['text_tokens'] != 1)
    assert not points[~text].any()
    assert (points.any((2, 3)) & text).sum() > 0.9 * text.sum()
    requests.add(example['context_tokens'].tobytes())
  assert len(requests) > 3


def test_all_narratives_are_evaluated_with_one_request(data_dir):
  examples = _examples('ln_sample_trace', TRACE_LENGTHS, split='other_val')
  assert len(examples) == 9
  task = seqio.get_mixture_or_task('ln_sample_trace')
  vocabulary = task.output_features['context_tokens'].vocabulary
  requests = {vocabulary.decode(e['context_tokens'])[0] for e in examples}
  assert requests == {localized_narratives.LONG_CAPTION_PROMPTS[0]}
  target = task.postprocess_fn(None, example=examples[0], is_target=True)
  assert target['points'].shape == (1, 96, 2, 2)
  ids = np.ones((1, 96), np.int32)
  prediction = task.postprocess_fn(
      vocabulary.decode(ids), example=examples[0], is_target=False
  )
  np.testing.assert_array_equal(prediction, ids)


def _perfect(dataset):
  """A model that knows the boxes; 96 × 96 mask logits from the masks."""
  rows = []
  aux = {'boxes': [], 'box_mask': [], 'mask_logits': []}
  for index, batch in dataset:
    rows.append((int(index), batch['text_tokens'].numpy()))
    aux['boxes'].append(batch['boxes'].numpy())
    aux['box_mask'].append(batch['prompt_mask'].numpy())
    masks = np.asarray(mask_bits.unpack(batch['masks'].numpy(), 96))
    aux['mask_logits'].append(masks.astype(np.float32) - 0.5)
  return rows, aux


def test_the_evaluator_scores_a_perfect_model(data_dir):
  evaluator = seqio.Evaluator(
      'refcoco_sample_refseg',
      feature_converters.PixelLLMMaskFeatureConverter(
          pack=False, use_custom_packing_ops=False
      ),
      eval_split='validation',
      sequence_length=LENGTHS,
      target_field_name='text_tokens',
  )
  metrics, _ = evaluator.evaluate(
      compute_metrics=True, predict_with_aux_fn=_perfect
  )
  scores = metrics.result()['refcoco_sample_refseg']
  evaluator.close()
  box_scores = {k: v for k, v in scores.items() if 'recision' in k or 'P@' in k}
  assert box_scores, scores
  assert max(box_scores.values()) == 1.0, scores
  mask_scores = [v for k, v in scores.items() if 'ciou' in k.lower()]
  # Masks were made smaller and larger again.
  assert mask_scores and min(mask_scores) > 0.85, scores


def test_seqio_inspects_a_task(built_sample, repository):
  shown = subprocess.run(
      [
          sys.executable,
          '-m',
          'seqio.scripts.inspect_tasks_main',
          '--module_import=tasks',
          '--tasks=refcoco_sample_refseg',
          f'--sequence_length={LENGTHS}',
      ],
      input='\n' * 3 + 'c\n' * 20,
      capture_output=True,
      text=True,
      cwd=repository,
      env={**os.environ, 'PIXEL_LLM_DATA_DIR': str(built_sample)},
      check=True,
  )
  assert "'text_tokens': <tf.Tensor" in shown.stdout
  assert "'texts': <tf.Tensor" in shown.stdout


@pytest.mark.parametrize('kind', ['refexp', 'refseg'])
def test_the_evaluation_mixture_has_every_published_split(kind):
  mixture = seqio.MixtureRegistry.get(f'refcoco_evaluation_{kind}')
  names = {task.name for task in mixture.tasks}
  assert len(names) == 8
  assert {n.split('_')[0] for n in names} == {
      'refcoco',
      'refcocoplus',
      'refcocog',
  }
  for task in mixture.tasks:
    assert 'validation' in task.splits
    assert task.metric_fns or task.metric_objs
