"""The metrics that every token model reports: losses, rates, padding."""

from collections.abc import Mapping

from clu import metrics as clu_metrics
import jax
import jax.numpy as jnp

from t5x import metrics as metrics_lib
from t5x.base_model import Batch
from t5x.base_model import MetricsMap

_SEGMENT_SUFFIX = '_segment_ids'


def segment_ids(batch: Batch) -> dict[str, jax.Array]:
  """Returns segment ids by feature; without packing, 1 for a real token."""
  packed = {
      name.removesuffix(_SEGMENT_SUFFIX): ids
      for name, ids in batch.items()
      if name.endswith(_SEGMENT_SUFFIX)
  }
  if packed:
    return packed
  names = {
      'encoder': 'encoder_input_tokens',
      'decoder': 'decoder_target_tokens',
  }
  return {
      feature: (batch[name] != 0).astype(jnp.int32)
      for feature, name in names.items()
      if name in batch
  }


def count_packed_examples(segment_ids: jax.Array) -> jax.Array:
  """Counts the segments of packed rows.

  Example: (1 1 2 0) and (1 1 1 1) hold three.

  Args:
    segment_ids: [B, T], 0 for padding.

  Returns:
    The number of examples in all rows.
  """
  previous = jnp.pad(segment_ids[:, :-1], ((0, 0), (1, 0)))
  return jnp.sum((segment_ids != previous) & (segment_ids != 0))


def compute_base_metrics(
    logits: jax.Array,
    targets: jax.Array,
    mask: jax.Array | None,
    loss: jax.Array,
    z_loss: jax.Array | None = None,
    segment_ids: Mapping[str, jax.Array] | None = None,
) -> MetricsMap:
  """Computes the metrics that every token model reports.

  Args:
    logits: [B, T, V].
    targets: [B, T].
    mask: [B, T] loss weights, None for 1.
    loss: scalar, with the z-loss.
    z_loss: scalar.
    segment_ids: [B, T] by feature, 0 for padding.

  Returns:
    Metrics by name.
  """
  average, rate = clu_metrics.Average, metrics_lib.TimeRate.from_model_output
  per_step = metrics_lib.AveragePerStep.from_model_output
  num_examples, num_tokens = targets.shape[0], targets.size
  num_devices = jax.device_count()
  num_weighted = jnp.sum(jnp.ones(targets.shape) if mask is None else mask)
  metrics = {
      'accuracy': clu_metrics.Accuracy.from_model_output(
          logits=logits, labels=targets.astype(jnp.int32), mask=mask
      ),
      'loss': per_step(loss),
      'loss_per_nonpadding_target_token': average(loss, num_weighted),
      'loss_per_all_target_tokens': average(loss, jnp.asarray(num_tokens)),
      'timing/steps_per_second': metrics_lib.StepsPerTime(),
      'timing/seconds': metrics_lib.Time(),
      'timing/seqs': metrics_lib.Sum.from_model_output(num_examples),
      'timing/seqs_per_second': rate(num_examples),
      'timing/seqs_per_second_per_core': rate(num_examples / num_devices),
      'timing/target_tokens_per_second': rate(num_tokens),
      'timing/target_tokens_per_second_per_core': rate(
          num_tokens / num_devices
      ),
      'non_padding_fraction/loss_weights': average(
          num_weighted, jnp.asarray(num_tokens)
      ),
  }
  if z_loss is not None:
    for name, value in (('z_loss', z_loss), ('cross_ent_loss', loss - z_loss)):
      metrics[name] = per_step(value)
      metrics[f'{name}_per_all_target_tokens'] = average(
          value, jnp.asarray(num_tokens)
      )
  present = {
      name: ids
      for name, ids in (segment_ids or {}).items()
      if ids is not None and ids.size
  }
  for name, ids in present.items():
    metrics[f'effective_batch_size/{name}'] = per_step(
        count_packed_examples(ids)
    )
    metrics[f'non_padding_fraction/{name}'] = average(
        jnp.sum(ids != 0), jnp.asarray(ids.size)
    )
  if present:
    metrics['non_padding_fraction/overall'] = average(
        sum(jnp.sum(ids != 0) for ids in present.values()),
        jnp.asarray(sum(ids.size for ids in present.values())),
    )
  return metrics
