"""A model of three matrices, for tests of trainer and partitioner.

`embedder` is frozen where the optimizer says so; `hidden` and `head` train.
The loss is a sum over examples, as T5X models have it.
"""

from clu import metrics as clu_metrics
from flax import linen as nn
from flax.linen import partitioning as flax_partitioning
import jax
import jax.numpy as jnp
import numpy as np
import optax

from t5x import metrics as metrics_lib
from t5x import models
from t5x import optimizers
from t5x import partitioning
from t5x import train_state as train_state_lib
from t5x import trainer as trainer_lib

WIDTH = 8
FROZEN = 'embedder'


class Dense(nn.Module):
  """A matrix with named axes."""

  features: int
  axes: tuple[str, str]

  @nn.compact
  def __call__(self, x):
    kernel = flax_partitioning.param_with_axes(
        'kernel',
        nn.initializers.lecun_normal(),
        (x.shape[-1], self.features),
        axes=self.axes,
    )
    return x @ kernel


class Network(nn.Module):
  """Three matrices with dropout."""

  dropout_rate: float = 0.0

  @nn.compact
  def __call__(self, x, deterministic=True):
    x = nn.tanh(Dense(WIDTH, ('embed', 'mlp'), name=FROZEN)(x))
    x = nn.Dropout(self.dropout_rate, deterministic=deterministic)(x)
    x = nn.tanh(Dense(WIDTH, ('mlp', 'embed'), name='hidden')(x))
    return Dense(1, ('embed', 'kv'), name='head')(x)[:, 0]


class Regression(models.BaseModel):
  """Sum of squared errors."""

  def __init__(self, optimizer_def, dropout_rate=0.0):
    super().__init__(optimizer_def)
    self.module = Network(dropout_rate)
    self.num_traces = 0

  def loss_fn(self, params, batch, dropout_rng):
    self.num_traces += 1
    rngs = None if dropout_rng is None else {'dropout': dropout_rng}
    outputs = self.module.apply(
        {'params': params}, batch['x'], dropout_rng is None, rngs=rngs
    )
    errors = jnp.square(outputs - batch['y'])
    loss = jnp.sum(errors)
    return loss, {
        'loss': metrics_lib.AveragePerStep.from_model_output(loss),
        'mean_error': clu_metrics.Average.from_model_output(errors),
        'timing/steps_per_second': metrics_lib.StepsPerTime(),
        'timing/seconds': metrics_lib.Time(),
    }

  def predict_batch_with_aux(self, params, batch, rng=None):
    return self.module.apply({'params': params}, batch['x']), {}

  def score_batch(self, params, batch, return_intermediates=False):
    return -jnp.square(self.predict_batch(params, batch) - batch['y'])

  def get_initial_variables(self, rng, input_shapes, input_types=None):
    return self.module.init(rng, jnp.ones(input_shapes['x']))


class FrozenEmbedder(optimizers.OptaxWrapper):
  """Trains all but the embedder."""

  def trainable_mask(self, params):
    return {
        name: jax.tree.map(lambda _, name=name: name != FROZEN, part)
        for name, part in params.items()
    }


def optimizer(frozen=True):
  """Adam with clipping: states with moments, counters, and empty ones."""
  transformation = optax.chain(
      optax.clip_by_global_norm(10.0), optax.adam(1e-2)
  )
  wrapper = FrozenEmbedder if frozen else optimizers.OptaxWrapper
  return wrapper(transformation)


def batches(num, batch_size=8):
  """The same batches every time."""
  rng = np.random.default_rng(0)
  for _ in range(num):
    x = rng.standard_normal((batch_size, WIDTH)).astype(np.float32)
    yield {'x': x, 'y': np.sin(x.sum(axis=-1))}


def state(model, seed=0):
  """The state of step 0."""
  variables = model.get_initial_variables(
      jax.random.PRNGKey(seed), {'x': (1, WIDTH)}
  )
  return train_state_lib.FlaxOptimTrainState.create(
      model.optimizer_def, variables
  )


def trainer(
    model,
    *,
    partitioner=None,
    summary_dir=None,
    eval_names=(),
    num_microbatches=None,
    weight_metrics_computer=None,
    guard=None,
):
  """A trainer at step 0."""
  partitioner = partitioner or partitioning.PjitPartitioner(num_partitions=1)
  start = state(model)
  axes = partitioner.get_mesh_axes(start)
  return trainer_lib.Trainer(
      model,
      partitioner.move_params_to_devices(start, axes),
      partitioner,
      list(eval_names),
      summary_dir,
      axes,
      jax.random.PRNGKey(1),
      lambda step: 0.5 / (1 + step),
      num_microbatches,
      weight_metrics_computer,
      guard,
  )
