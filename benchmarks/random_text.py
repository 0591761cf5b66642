"""A task of random tokens, for benchmarks of the trainer."""

import numpy as np
import seqio
import tensorflow as tf

VOCABULARY_SIZE = 1000
NUM_EXAMPLES = 4096
LENGTH = 256


def _examples(split, shuffle_files, seed=None):
  del split, shuffle_files, seed
  tokens = np.random.default_rng(0).integers(
      2, VOCABULARY_SIZE, (2, NUM_EXAMPLES, LENGTH), dtype=np.int32
  )
  return tf.data.Dataset.from_tensor_slices(
      {'inputs': tokens[0], 'targets': tokens[1]}
  )


seqio.TaskRegistry.add(
    'random_text',
    source=seqio.FunctionDataSource(
        _examples, splits=['train'], num_input_examples={'train': NUM_EXAMPLES}
    ),
    preprocessors=[],
    output_features={
        name: seqio.Feature(
            seqio.PassThroughVocabulary(VOCABULARY_SIZE), add_eos=False
        )
        for name in ('inputs', 'targets')
    },
)
