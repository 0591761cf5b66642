"""A task of forty numbers and a model of two layers, for tests of the loop."""

from clu import metrics as clu_metrics
from flax import linen as nn
from flax.linen import partitioning as nn_partitioning
import jax
import jax.numpy as jnp
import numpy as np
import seqio
import tensorflow as tf

from t5x import models

NUM_EXAMPLES = {'train': 40, 'validation': 10}
LENGTHS = {'x': (4,), 'image': (2, 2, 3), 'tokens': 6, 'flag': (1,)}


def feature_lengths(tokens=6):
  return {**LENGTHS, 'tokens': tokens}


def _examples(split, shuffle_files, seed=None):
  del shuffle_files, seed
  rng = np.random.default_rng(0 if split == 'train' else 1)
  count = NUM_EXAMPLES[split]
  x = rng.normal(size=(count, 4)).astype(np.float32)
  return tf.data.Dataset.from_tensor_slices(
      {
          'x': x,
          'image': rng.integers(0, 255, (count, 2, 2, 3)).astype(np.uint8),
          'tokens': rng.integers(1, 9, (count, 6)).astype(np.int32),
          'flag': x[:, :1] > 0,
      }
  )


@seqio.map_over_dataset(num_seeds=1)
def _jitter(example, seed):
  noise = tf.random.stateless_normal((4,), seed, stddev=0.1)
  return {**example, 'x': example['x'] + noise}


def _python_op(dataset):
  """A Python function in the pipeline, as image decoders are."""

  def halve(example):
    image = tf.numpy_function(lambda a: a // 2, [example['image']], tf.uint8)
    return {**example, 'image': tf.ensure_shape(image, (2, 2, 3))}

  return dataset.map(halve)


def _sum_of_tokens(targets, predictions):
  hits = [t == p for t, p in zip(targets, predictions)]
  return {'exact': float(np.mean(hits))}


def _with_aux(targets, predictions, aux_values):
  del targets, predictions
  return {'mean_score': float(np.mean(aux_values['scores']))}


def _vocabulary():
  return seqio.PassThroughVocabulary(16)


def _feature(dtype, rank):
  return seqio.Feature(_vocabulary(), add_eos=False, dtype=dtype, rank=rank)


OUTPUT_FEATURES = {
    'x': _feature(tf.float32, 1),
    'image': _feature(tf.uint8, 3),
    'tokens': _feature(tf.int32, 1),
    'flag': _feature(tf.bool, 1),
}

for _name, _extra in (('tiny_task', [_jitter]), ('tiny_plain_task', [])):
  seqio.TaskRegistry.add(
      _name,
      source=seqio.FunctionDataSource(
          _examples,
          splits=['train', 'validation'],
          num_input_examples=NUM_EXAMPLES,
      ),
      preprocessors=[_python_op, *_extra],
      output_features=OUTPUT_FEATURES,
      postprocess_fn=lambda prediction, example, is_target: (
          [int(t) for t in example['tokens']]
          if is_target
          else [int(t) for t in prediction]
      ),
      metric_fns=[_sum_of_tokens, _with_aux],
      shuffle_buffer_size=16,
  )
seqio.MixtureRegistry.add(
    'tiny_mixture', [('tiny_task', 1), ('tiny_plain_task', 2)]
)
seqio.TaskRegistry.add(
    'tiny_missing_file_task',
    source=seqio.TextLineDataSource({'train': '/nowhere/tiny-*.txt'}),
    preprocessors=[],
    output_features=OUTPUT_FEATURES,
)


class Converter(seqio.FeatureConverter):
  """Hands every task feature on, whatever its rank and dtype."""

  TASK_FEATURES = {
      name: seqio.FeatureConverter.FeatureSpec(dtype=f.dtype, rank=f.rank)
      for name, f in OUTPUT_FEATURES.items()
  }
  MODEL_FEATURES = TASK_FEATURES
  PACKING_FEATURE_DTYPES = {}

  def __init__(self, pack=False, use_custom_packing_ops=False):
    super().__init__(pack, use_custom_packing_ops, apply_length_check=False)

  def _convert_features(self, ds, task_feature_lengths):
    return ds

  def get_model_feature_lengths(self, task_feature_lengths):
    return dict(task_feature_lengths)


class Tower(nn.Module):
  width: int

  @nn.compact
  def __call__(self, x):
    kernel = nn_partitioning.param_with_axes(
        'kernel',
        nn.initializers.normal(0.1),
        (x.shape[-1], self.width),
        axes=('embed', 'mlp'),
    )
    return x @ kernel


class Network(nn.Module):
  width: int = 8

  def setup(self):
    self.first = Tower(self.width, name='blocks.0')
    self.second = Tower(1, name='head')
    self.dropout = nn.Dropout(0.1)

  def __call__(self, x, image, train=False):
    x = jnp.concatenate([x, jnp.mean(image / 255.0, axis=(1, 2))], axis=-1)
    x = self.dropout(nn.gelu(self.first(x)), deterministic=not train)
    return self.second(x)[:, 0]


class TinyModel(models.BaseModel):
  """Tells from four numbers and an image whether the flag is set."""

  FEATURE_CONVERTER_CLS = Converter

  def __init__(self, optimizer_def, width=8):
    super().__init__(optimizer_def)
    self.module = Network(width)

  def get_initial_variables(self, rng, input_shapes, input_types=None):
    x = jnp.zeros(input_shapes['x'], input_types['x'])
    image = jnp.zeros(input_shapes['image'], input_types['image'])
    return self.module.init(rng, x, image)

  def _logits(self, params, batch, rng=None):
    return self.module.apply(
        {'params': params},
        batch['x'],
        batch['image'],
        train=rng is not None,
        rngs=None if rng is None else {'dropout': rng},
    )

  def loss_fn(self, params, batch, dropout_rng):
    logits = self._logits(params, batch, dropout_rng)
    sign = jnp.where(batch['flag'][:, 0], 1.0, -1.0)
    loss = jnp.mean(jax.nn.softplus(-sign * logits))
    return loss, {'loss': clu_metrics.Average.from_model_output(loss)}

  def predict_batch_with_aux(self, params, batch, rng=None):
    logits = self._logits(params, batch)
    return batch['tokens'], {'scores': logits}

  def score_batch(self, params, batch, return_intermediates=False):
    return self._logits(params, batch)
