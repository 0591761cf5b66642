"""A text task: repeat the first word. SeqIO's own vocabulary of bytes."""

import functools

import numpy as np
import seqio
import tensorflow as tf

NUM_EXAMPLES = {'train': 64, 'validation': 5, 'test': 5}


def _pairs(split, shuffle_files, seed=None):
  del shuffle_files, seed
  rng = np.random.default_rng(sorted(NUM_EXAMPLES).index(split))
  words = rng.choice(['ab', 'ba', 'aab'], (NUM_EXAMPLES[split], 2))
  return tf.data.Dataset.from_tensor_slices(
      {'inputs': [' '.join(pair) for pair in words], 'targets': words[:, 0]}
  )


def _exact(targets, predictions):
  return {
      'exact': float(np.mean([t == p for t, p in zip(targets, predictions)]))
  }


def _log_likelihood(targets, scores):
  assert len(targets) == len(scores)
  return {'log_likelihood': float(np.mean(scores))}


seqio.TaskRegistry.add(
    'tiny_text',
    source=seqio.FunctionDataSource(
        _pairs, splits=list(NUM_EXAMPLES), num_input_examples=NUM_EXAMPLES
    ),
    preprocessors=[
        functools.partial(seqio.preprocessors.tokenize, with_eos=False),
        seqio.preprocessors.append_eos,
    ],
    output_features={
        name: seqio.Feature(seqio.ByteVocabulary())
        for name in ('inputs', 'targets')
    },
    metric_fns=[_exact, _log_likelihood],
)
