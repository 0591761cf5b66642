"""The project's task."""

import functools

import seqio
import tensorflow as tf

VOCABULARY = seqio.ByteVocabulary()
FEATURES = {
    'inputs': seqio.Feature(vocabulary=VOCABULARY, add_eos=True),
    'targets': seqio.Feature(vocabulary=VOCABULARY, add_eos=True),
}


def words(split, shuffle_files=False, seed=None):
  del shuffle_files, seed
  texts = ['ab ba', 'ba ab', 'aa bb', 'bb aa'] * (8 if split == 'train' else 2)
  return tf.data.Dataset.from_tensor_slices({'text': texts})


@seqio.map_over_dataset
def split_words(example):
  return {
      'inputs': example['text'],
      'targets': tf.strings.split(example['text'])[0],
  }


def exact_match(targets, predictions):
  hits = [target == guess for target, guess in zip(targets, predictions)]
  return {'exact_match': sum(hits) / len(hits)}


seqio.TaskRegistry.add(
    'word_repeat',
    source=seqio.FunctionDataSource(
        dataset_fn=words, splits=['train', 'validation']
    ),
    preprocessors=[
        split_words,
        seqio.preprocessors.tokenize,
        seqio.CacheDatasetPlaceholder(),
        seqio.preprocessors.append_eos_after_trim,
    ],
    postprocess_fn=functools.partial(lambda text, **unused: text),
    output_features=FEATURES,
    metric_fns=[exact_match],
)
