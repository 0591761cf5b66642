"""Tasks in the word pieces of the BERT head, and in a vocabulary of gin."""

import json

import numpy as np
import pytest
import seqio

from pixel_llm import feature_converters
from pixel_llm import features
from pixel_llm.evaluation import predictions
from tasks import sources
from tasks import variants
from tasks import vocabularies

LENGTHS = features.feature_lengths(96, 2, 48, 12)
TOKENS = ('text_tokens', 'context_tokens')


def examples(name, **kwargs):
  task = seqio.get_mixture_or_task(name)
  dataset = task.get_dataset(LENGTHS, **kwargs)
  return list(dataset.as_numpy_iterator())


def evaluate(name, perfect, tmp_path):
  """Scores a model, and reads what the logger writes of it."""
  task = seqio.get_mixture_or_task(name)
  evaluator = seqio.Evaluator(
      name,
      feature_converters.PixelLLMFeatureConverter(),
      eval_split='validation',
      sequence_length=LENGTHS,
      log_dir=str(tmp_path),
      logger_cls=[
          lambda output_dir: predictions.PredictionLogger(
              output_dir, task.output_features['text_tokens'].vocabulary
          )
      ],
      target_field_name='text_tokens',
  )
  metrics, _ = evaluator.evaluate(
      compute_metrics=True, predict_with_aux_fn=perfect, step=3
  )
  evaluator.close()
  [path] = tmp_path.glob('*-predictions-000003.json')
  return metrics.result()[name], json.loads(path.read_text())


def says_the_truth(dataset):
  rows = [(int(index), b['text_tokens'].numpy()) for index, b in dataset]
  masks = [b['prompt_mask'].numpy() for _, b in dataset]
  points = [b['points'].numpy() for _, b in dataset]
  boxes = [b['boxes'].numpy() for _, b in dataset]
  traced = [(p > 0).any((-2, -1)) for p in points]
  return rows, {
      'gt_text_points': points,
      'points': points,
      'point_mask': traced,
      'boxes': boxes,
      'box_mask': masks,
  }


def test_every_task_and_mixture_has_its_twin_for_bert():
  bert = vocabularies.bert_vocabulary()
  for registry in (seqio.TaskRegistry, seqio.MixtureRegistry):
    names = {
        name
        for name in registry.names()
        if all(
            isinstance(task.source, sources.ArrayRecordSource)
            for task in seqio.get_subtasks(registry.get(name))
        )
    }
    plain = {name for name in names if not name.endswith('_bert')}
    assert {f'{name}_bert' for name in plain} <= names
    for name in plain:
      old, new = registry.get(name), registry.get(f'{name}_bert')
      for key, feature in new.output_features.items():
        assert (feature.vocabulary == bert) == (key in TOKENS)
      if isinstance(old, seqio.Mixture):
        rates = {f'{t.name}_bert': old.get_rate(t) for t in old.tasks}
        assert rates == {t.name: new.get_rate(t) for t in new.tasks}


def test_only_the_tokens_of_a_twin_differ(data_dir):
  name = 'refcoco_sample_location'
  for t5, bert in zip(
      examples(name, split='train', seed=1),
      examples(f'{name}_bert', split='train', seed=1),
  ):
    for key in t5:
      if key not in TOKENS:
        np.testing.assert_array_equal(t5[key], bert[key])
    vocabulary = vocabularies.bert_vocabulary()
    # The request of a box, and what is said of it, closed by [SEP].
    for text, request in zip(bert['text_tokens'], bert['context_tokens']):
      assert text[0] == 101 and 102 in text
      assert vocabulary.decode(request) == 'an object of'
    words = [text.decode().lower().split() for text in bert['texts']]
    said = [text.split() for text in vocabulary.decode(bert['text_tokens'])]
    assert [w[0].strip('.,') for w in words] == [w[0] for w in said]
    np.testing.assert_array_equal(t5['prompt_boxes'], t5['boxes'])


def test_a_trace_in_word_pieces_is_scored_and_written_word_by_word(
    data_dir, tmp_path
):
  scores, rows = evaluate('ln_sample_trace_bert', says_the_truth, tmp_path)
  assert scores['trace_l1'] == 0
  assert scores['trace_decoded_coverage'] == 1
  assert len(rows) == 17
  for row in rows:
    assert row['caption'].split() == [word['word'] for word in row['trace']]
    assert row['trace'] == row['truth']['trace']
    assert not set('#[') & set(row['caption'])
    assert any(word['bbox'] for word in row['trace'])


@pytest.mark.parametrize('suffix', ['', '_bert'])
def test_places_of_refcoco_are_described_by_their_expressions(suffix, data_dir):
  task = seqio.get_mixture_or_task(f'refcoco_sample_location{suffix}')
  vocabulary = task.output_features['text_tokens'].vocabulary
  names = set()
  for example in examples(task.name, split='validation', shuffle=False):
    target = task.postprocess_fn(None, example=example, is_target=True)
    names |= {(target['image_id'], prompt) for prompt in target['prompt_ids']}
    said = vocabulary.decode(example['text_tokens'])
    said = task.postprocess_fn(said, example=example, is_target=False)
    assert len(said) == len(target['boxes_orig'])
    # Case and blanks are lost in word pieces; the scores see neither.
    for text, truth in zip(said, target['texts']):
      assert ''.join(text.split()) == ''.join(
          (truth.lower() if suffix else truth).split()
      )
  assert len(names) == 113


@pytest.mark.slow
def test_places_are_scored_as_captions(data_dir):
  """Java takes half a minute for METEOR."""
  evaluator = seqio.Evaluator(
      'refcoco_sample_location_bert',
      feature_converters.PixelLLMFeatureConverter(),
      eval_split='validation',
      sequence_length=LENGTHS,
      target_field_name='text_tokens',
  )
  metrics, _ = evaluator.evaluate(
      compute_metrics=True, predict_fn=lambda data: says_the_truth(data)[0]
  )
  scores = metrics.result()['refcoco_sample_location_bert']
  assert scores['CIDEr'] > 5 and scores['METEOR'] > 0.9, scores


def test_gin_may_name_another_vocabulary(data_dir):
  other = vocabularies.SentencePieces(
      vocabularies.t5_vocabulary().sentencepiece_model_file, extra_ids=7
  )
  name = variants.in_vocabulary('pixel_llm_sample_joint', other, 'seven')
  assert name == 'pixel_llm_sample_joint_seven'
  mixture = seqio.get_mixture_or_task(name)
  assert mixture.output_features['text_tokens'].vocabulary == other
  # A macro of gin is called wherever it stands.
  assert variants.in_vocabulary('pixel_llm_sample_joint', other, 'seven')
  with pytest.raises(ValueError, match="another suffix than 'seven'"):
    variants.in_vocabulary(
        'ln_sample_trace', vocabularies.bert_vocabulary(), 'seven'
    )
  with pytest.raises(ValueError, match='ByteVocabulary'):
    variants.in_vocabulary('ln_sample_trace', seqio.ByteVocabulary(), 'bytes')
