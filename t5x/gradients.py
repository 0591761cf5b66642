"""The parts of a training step: gradients, update, and metrics of weights.

The batch may be cut into microbatches, whose gradients are added in float32:
the result equals that of the whole batch as long as the loss is a sum over
examples. Only trainable parameters are differentiated; the gradient tree has
None at frozen ones, which the compiler sees as constants.
"""

from collections.abc import Mapping
import functools
from typing import Any

from clu import metrics as clu_metrics
from flax.core import freeze
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from t5x import metrics as metrics_lib
from t5x import models
from t5x import partitioning
from t5x import train_state as train_state_lib

# Mesh axes of the batch dimension, where the caller does not say.
DATA_PARTITION_SPEC = PartitionSpec('data')

MetricMap = dict[str, clu_metrics.Metric]


def merge_metrics(a: Mapping[str, Any], b: Mapping[str, Any]) -> MetricMap:
  """Merges two sets of metrics by name."""
  return jax.tree.map(
      lambda first, second: first.merge(second),
      dict(a),
      dict(b),
      is_leaf=metrics_lib.is_metric_obj,
  )


def _trainable_mask(train_state: Any) -> Any:
  """Tells which parameters train; all, for states that do not say."""
  if hasattr(train_state, 'trainable_mask'):
    return train_state.trainable_mask()
  return jax.tree.map(lambda _: True, train_state.params)


def _value_and_grad(model: models.BaseModel, train_state: Any):
  """Returns a function (batch, rng[, mutables]) → ((loss, aux), gradients)."""
  params, mask = train_state.params, _trainable_mask(train_state)
  trainable = jax.tree.map(lambda t, p: p if t else None, mask, params)

  def loss_fn(trainable, *args):
    full = jax.tree.map(
        lambda t, new, old: new if t else old, mask, trainable, params
    )
    return model.loss_fn(full, *args)

  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
  return functools.partial(grad_fn, trainable)


def _split_batch(batch: Any, num_microbatches: int) -> int:
  """Returns the size of a microbatch; raises ValueError if it is uneven."""
  sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
  if len(sizes) != 1 or sizes == {()}:
    raise ValueError(
        'All features need the same batch dimension, got'
        f' {jax.tree.map(jnp.shape, batch)}.'
    )
  ((batch_size,),) = sizes
  if batch_size % num_microbatches:
    raise ValueError(
        f'Batch size {batch_size} does not divide into {num_microbatches}'
        ' microbatches; change num_microbatches or the batch size.'
    )
  return batch_size // num_microbatches


def accumulate_grads_microbatched(
    model: models.BaseModel,
    train_state: train_state_lib.TrainState,
    batch: models.Batch,
    dropout_rng: jax.Array | None,
    num_microbatches: int | None,
    data_partition_spec: PartitionSpec = DATA_PARTITION_SPEC,
) -> tuple[Any, MetricMap, Any]:
  """Computes gradients and metrics of a batch.

  Args:
    model: the model; its loss is summed over microbatches.
    train_state: parameters and mutable collections.
    batch: arrays [B, ...] by feature.
    dropout_rng: split once per microbatch.
    num_microbatches: contiguous slices of the batch, None or at most 1 for the
      whole batch at once.
    data_partition_spec: mesh axes of the batch dimension.

  Returns:
    (gradients like the parameters, None at frozen leaves; metrics merged over
    slices; the mutable collections, or None if there are none).

  Raises:
    ValueError: if the batch does not divide.
  """
  grad_fn = _value_and_grad(model, train_state)
  mutables = getattr(train_state, 'flax_mutables', None) or None

  def slice_grads(part, rng, mutables):
    if mutables is None:
      (_, metrics), grads = grad_fn(part, rng)
      return grads, metrics, None
    (_, (metrics, mutables)), grads = grad_fn(part, rng, mutables)
    return grads, metrics, freeze(mutables)

  if num_microbatches is None or num_microbatches <= 1:
    return slice_grads(batch, dropout_rng, mutables)

  if hasattr(model, 'prepare_batch'):
    batch = model.prepare_batch(batch)
  size = _split_batch(batch, num_microbatches)

  def step(carry, index):
    sums, rng, mutables = carry
    part = jax.tree.map(
        lambda x: jax.lax.dynamic_slice_in_dim(x, index * size, size), batch
    )
    part = partitioning.with_sharding_constraint(part, data_partition_spec)
    part_rng = None
    if rng is not None:
      rng, part_rng = jax.random.split(rng)
    grads, metrics, mutables = slice_grads(part, part_rng, mutables)
    sums = jax.tree.map(lambda total, g: total + g, sums, grads)
    return (sums, rng, mutables), metrics

  zeros = jax.tree.map(
      lambda t, p: jnp.zeros(jnp.shape(p), jnp.float32) if t else None,
      _trainable_mask(train_state),
      train_state.params,
  )
  rng = None if dropout_rng is None else jnp.asarray(dropout_rng)
  batch = jax.tree.map(jnp.asarray, batch)
  (grads, _, mutables), stacked = jax.lax.scan(
      step, (zeros, rng, mutables), jnp.arange(num_microbatches)
  )
  slices = [
      jax.tree.map(lambda x, i=i: x[i], stacked)
      for i in range(num_microbatches)
  ]
  return grads, functools.reduce(merge_metrics, slices), mutables


def apply_grads(
    train_state: train_state_lib.TrainState,
    grads: Any,
    metrics: Mapping[str, clu_metrics.Metric],
    learning_rate: jax.Array,
    weight_metrics_computer: 'WeightMetricsComputer | None',
    other_state_variables: Mapping[str, Any] | None = None,
) -> tuple[train_state_lib.TrainState, MetricMap]:
  """Updates the train state.

  Args:
    train_state: the state before the step.
    grads: as from `accumulate_grads_microbatched`.
    metrics: metrics of the step so far.
    learning_rate: this step's learning rate.
    weight_metrics_computer: adds metrics of weights and gradients, if given.
    other_state_variables: further arguments of `apply_gradient`.

  Returns:
    (the state after the step, the metrics with `learning_rate` and more).
  """
  new_state = train_state.apply_gradient(
      grads, learning_rate=learning_rate, **(other_state_variables or {})
  )
  rate = jnp.asarray([learning_rate])
  metrics = {
      **metrics,
      'learning_rate': clu_metrics.Average.from_model_output(rate),
      'learning_rate/current': clu_metrics.LastValue.from_model_output(rate),
  }
  if weight_metrics_computer is not None:
    metrics |= weight_metrics_computer.compute_metrics(
        grads, train_state, new_state
    )
  return new_state, metrics


def eval_step(
    model: models.BaseModel,
    train_state: train_state_lib.TrainState,
    batch: models.Batch,
) -> MetricMap:
  """Computes the metrics of a batch without dropout."""
  mutables = getattr(train_state, 'flax_mutables', None)
  args = (mutables,) if mutables else ()
  _, aux = model.eval_fn(train_state.params, batch, *args)
  # With mutable collections, a model may return them beside the metrics.
  return aux[0] if isinstance(aux, tuple) else aux


def _by_name(tree: Any) -> dict[str, jax.Array]:
  return {
      jax.tree_util.keystr(path, simple=True, separator='/'): leaf
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _rms(x: jax.Array) -> jax.Array:
  return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))


class WeightMetricsComputer:
  """Metrics of each trainable parameter: weight, gradient, update.

  `<metric>/<parameter>`, averaged over steps: `weight_rms`, `weight_max`
  (largest magnitude), `weight_gradient_rms`, `weight_update_rms`,
  `weight_update_divided_by_weight_rms`; and `weight_gradient_norm`, the global
  norm of all gradients.
  """

  def compute_metrics(
      self,
      gradients: Any,
      old_train_state: train_state_lib.TrainState,
      new_train_state: train_state_lib.TrainState,
  ) -> MetricMap:
    """Computes the metrics of one step.

    Args:
      gradients: like the parameters, None at frozen ones.
      old_train_state: the state before the step.
      new_train_state: the state after the step.

    Returns:
      Metrics by name.
    """
    old, new = _by_name(old_train_state.params), _by_name(
        new_train_state.params
    )
    values: dict[str, Any] = {}
    norm_squared = jnp.zeros((), jnp.float32)
    for name, gradient in _by_name(gradients).items():
      update_rms = _rms(new[name] - old[name])
      weight_rms = _rms(new[name])
      values[f'weight_rms/{name}'] = weight_rms
      values[f'weight_gradient_rms/{name}'] = _rms(gradient)
      values[f'weight_update_rms/{name}'] = update_rms
      # The parameter before the step may be 0 (LoRA's right factor).
      values[f'weight_update_divided_by_weight_rms/{name}'] = update_rms / (
          jnp.maximum(_rms(old[name]), jnp.finfo(jnp.float32).tiny)
      )
      values[f'weight_max/{name}'] = jnp.max(jnp.abs(new[name]))
      norm_squared += jnp.sum(jnp.square(gradient.astype(jnp.float32)))
    values['weight_gradient_norm'] = jnp.sqrt(norm_squared)
    return {
        name: metrics_lib.AveragePerStep.from_model_output(value)
        for name, value in values.items()
    }
