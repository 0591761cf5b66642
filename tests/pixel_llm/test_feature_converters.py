"""Padding to full shapes, the prompt mask, and clear refusals."""

import numpy as np
import pytest
import seqio
import tensorflow as tf

from pixel_llm import feature_converters
from pixel_llm import features

LENGTHS = features.feature_lengths(8, 3, 5, 4)
MASK_LENGTHS = features.feature_lengths(8, 3, 5, 4, with_masks=True)


def _example(rows, lengths=LENGTHS, **changes):
  described = features.task_features('masks' in lengths)
  example = {}
  for name, feature in described.items():
    shape = list(lengths[name])
    if feature.axes[0] == 'N':
      shape[0] = rows
    example[name] = np.ones(shape, feature.dtype)
  return {**example, **changes}


def _convert(example, lengths=LENGTHS, cls=None):
  cls = cls or feature_converters.PixelLLMFeatureConverter
  converter = cls(pack=False, use_custom_packing_ops=False)
  dataset = tf.data.Dataset.from_tensors(example)
  return converter(dataset, lengths)


@pytest.mark.parametrize('rows', [0, 1, 2, 3])
@pytest.mark.parametrize('with_masks', [False, True])
def test_prompts_are_padded_and_marked(rows, with_masks):
  lengths = MASK_LENGTHS if with_masks else LENGTHS
  cls = (
      feature_converters.PixelLLMMaskFeatureConverter
      if with_masks
      else feature_converters.PixelLLMFeatureConverter
  )
  dataset = _convert(_example(rows, lengths), lengths, cls)
  described = features.model_features(with_masks)
  for name, spec in dataset.element_spec.items():
    assert spec.shape == (lengths | {'prompt_mask': (3,)})[name]
    assert spec.dtype == described[name].dtype
  [batch] = dataset.as_numpy_iterator()
  assert batch['prompt_mask'].tolist() == [i < rows for i in range(3)]
  for name, feature in described.items():
    if feature.axes[0] == 'N':
      assert np.all(batch[name][:rows]) and not np.any(batch[name][rows:])


def test_other_fields_of_the_task_do_not_reach_the_model():
  dataset = _convert(_example(2) | {'texts': np.array([b'a', b'b'])})
  assert set(dataset.element_spec) == set(features.model_features())


@pytest.mark.parametrize(
    ('example', 'message'),
    [
        (
            _example(4),
            'prompt_boxes axis 0 (as many as text_tokens, at most 3)',
        ),
        (
            _example(2, boxes=np.ones((3, 4), np.float32)),
            'boxes axis 0 (as many as text_tokens, at most 3)',
        ),
        (
            _example(2, text_tokens=np.ones((2, 6), np.int32)),
            'text_tokens axis 1 (at most 5)',
        ),
    ],
)
@pytest.mark.parametrize('known', [True, False])
def test_wrong_rows_are_refused(example, message, known):
  dataset = tf.data.Dataset.from_tensors(example)
  if not known:
    dataset = tf.data.Dataset.from_generator(
        lambda: [example],
        output_signature={
            name: tf.TensorSpec([None] * value.ndim, value.dtype)
            for name, value in example.items()
        },
    )
  converter = feature_converters.PixelLLMFeatureConverter()
  with pytest.raises((tf.errors.InvalidArgumentError, ValueError)) as error:
    list(converter(dataset, LENGTHS))
  assert 'Features do not have their task_feature_lengths' in str(error.value)
  assert message in str(error.value)


def test_packing_and_passing_through_are_refused():
  cls = feature_converters.PixelLLMFeatureConverter
  with pytest.raises(ValueError, match='pack=True'):
    cls(pack=True)
  spec = seqio.FeatureConverter.FeatureSpec(tf.int32)
  with pytest.raises(ValueError, match='extra'):
    cls(passthrough_features={'extra': spec})


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'boxes': 3}, r"\['boxes'\] is 3; expected a tuple of 2"),
        ({'boxes': (4, 4)}, r"\['boxes'\] is \(4, 4\): axis N"),
        ({'points': (3, 5, 2, 3)}, r'axis 2 has size 3'),
        ({'box': (3, 4)}, r"unknown \['box'\]"),
    ],
)
def test_lengths_that_disagree_are_named(change, message):
  with pytest.raises(ValueError, match=message):
    features.sizes_of(LENGTHS | change)


def test_lengths_and_sizes_are_inverse():
  assert features.sizes_of(MASK_LENGTHS) == {
      'S': 8,
      'N': 3,
      'T': 5,
      'C': 4,
      'P': 2,
  }
  with pytest.raises(ValueError, match='size N is 0'):
    features.feature_lengths(8, 0, 5, 4)
