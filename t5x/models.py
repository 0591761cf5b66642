"""The interface between a model and the trainer, and its metrics.

`BaseModel` is what the trainer sees: a loss, predictions, scores and initial
variables, each a pure function of parameters and batch. `BaseTransformerModel`
adds the token loss of a Flax module that returns logits.
"""

import abc
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from clu import metrics as clu_metrics
import jax
import jax.numpy as jnp

from t5x import losses
from t5x import metrics as metrics_lib

if TYPE_CHECKING:
  from flax import linen as nn
  import seqio

  from t5x import optimizers

Batch = Mapping[str, jax.Array]
MetricsMap = Mapping[str, clu_metrics.Metric]

_SEGMENT_SUFFIX = '_segment_ids'


class TokensIdsToLogitsCallable(Protocol):
  """One step of decoding: from token ids and cache to logits and cache."""

  def __call__(self, decoding_state: Any) -> tuple[jax.Array, Any]:
    """Computes logits.

    Args:
      decoding_state: with `cur_token` [B·K, 1] and `cache`.

    Returns:
      (logits [B·K, V], the cache after this token).
    """
    ...


class DecodeFnCallable(Protocol):
  """A decoding algorithm, such as beam search."""

  def __call__(
      self,
      *,
      inputs: jax.Array,
      cache: Mapping[str, jax.Array],
      tokens_to_logits: TokensIdsToLogitsCallable,
      eos_id: int,
      num_decodes: int,
      decode_rng: jax.Array | None,
      cache_offset: int,
      **kwargs: Any,
  ) -> tuple[jax.Array, jax.Array]:
    """Decodes.

    Args:
      inputs: [B, L] prompts; non-zero ids are forced.
      cache: the model's cache, expanded to B·K rows.
      tokens_to_logits: one step of the model.
      eos_id: the id that ends a sequence.
      num_decodes: K, sequences per row.
      decode_rng: for sampling.
      cache_offset: batch axis of the cache (1 for scanned layers).
      **kwargs: settings of the algorithm.

    Returns:
      (ids [B, K, L], scores [B, K]), worst first.
    """
    ...


class BaseModel(abc.ABC):
  """What the trainer and the evaluators ask of a model.

  Where the module has mutable collections, `loss_fn` and `eval_fn` take them
  as a further argument `flax_mutables`, and the second result is the pair
  (metrics, flax_mutables).

  Attributes:
    optimizer_def: the optimizer, or None for inference only.
  """

  # Class of the SeqIO converter that makes this model's features.
  FEATURE_CONVERTER_CLS: 'Callable[..., seqio.FeatureConverter]'

  def __init__(self, optimizer_def: 'optimizers.OptimizerDef | None'):
    self.optimizer_def = optimizer_def

  @abc.abstractmethod
  def loss_fn(
      self, params: Any, batch: Batch, dropout_rng: jax.Array | None
  ) -> tuple[jax.Array, MetricsMap]:
    """Computes loss and metrics.

    Args:
      params: the model's parameters.
      batch: arrays by feature.
      dropout_rng: None switches dropout off.

    Returns:
      (the loss to differentiate, metrics by name). With microbatches the
      gradients of all slices are added, so that the loss must be a sum over
      examples, or divided by something that no slice changes: see
      `prepare_batch`.
    """

  def prepare_batch(self, batch: Batch) -> Batch:
    """Adds what a loss needs to know of the whole batch, such as its count.

    The trainer calls it before it cuts a batch into microbatches, so that a
    mean over the batch stays one. Ours; upstream's trainer does not call it.

    Args:
      batch: arrays [B, ...] by feature, the whole global batch.

    Returns:
      The batch, with further arrays [B, ...] as the model likes.
    """
    return batch

  def eval_fn(
      self, params: Any, batch: Batch, *flax_mutables: Any
  ) -> tuple[jax.Array, Any]:
    """Computes loss and metrics without dropout."""
    return self.loss_fn(params, batch, None, *flax_mutables)

  def predict_batch(
      self, params: Any, batch: Batch, rng: jax.Array | None = None
  ) -> jax.Array:
    """Predicts the outputs of a batch."""
    return self.predict_batch_with_aux(params=params, batch=batch, rng=rng)[0]

  @abc.abstractmethod
  def predict_batch_with_aux(
      self, params: Any, batch: Batch, rng: jax.Array | None = None
  ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
    """Predicts the outputs of a batch, and further arrays by name."""

  @abc.abstractmethod
  def score_batch(
      self, params: Any, batch: Batch, return_intermediates: bool = False
  ) -> Any:
    """Computes a score per example.

    Args:
      params: the model's parameters.
      batch: arrays by feature, with targets.
      return_intermediates: whether to return arrays by name as well.

    Returns:
      [B] scores, or the pair (scores, intermediates).
    """

  @abc.abstractmethod
  def get_initial_variables(
      self,
      rng: jax.Array,
      input_shapes: Mapping[str, Any],
      input_types: Mapping[str, Any] | None = None,
  ) -> Mapping[str, Any]:
    """Makes parameters, their axes, and mutable collections.

    Args:
      rng: for the initialisers.
      input_shapes: shape by feature, with the batch dimension.
      input_types: type by feature, float32 by default.

    Returns:
      Collections by name: `params`, `params_axes`, ….
    """


class BaseTransformerModel(BaseModel):
  """A model with a token loss on the logits of a Flax module.

  Attributes:
    module: the network.
  """

  def __init__(
      self,
      module: 'nn.Module',
      input_vocabulary: 'seqio.Vocabulary',
      output_vocabulary: 'seqio.Vocabulary',
      optimizer_def: 'optimizers.OptimizerDef | None',
      decode_fn: DecodeFnCallable | None = None,
      label_smoothing: float = 0.0,
      z_loss: float = 0.0,
      loss_normalizing_factor: (
          float | str | losses.SpecialLossNormalizingFactor | None
      ) = None,
  ):
    """Keeps the settings.

    Args:
      module: the network.
      input_vocabulary: of the inputs.
      output_vocabulary: of the targets.
      optimizer_def: the optimizer, or None.
      decode_fn: how to decode.
      label_smoothing: probability taken from each target.
      z_loss: weight of log Z ².
      loss_normalizing_factor: divides the loss; see `losses`.
    """
    self.module = module
    self._input_vocabulary = input_vocabulary
    self._output_vocabulary = output_vocabulary
    self._decode_fn = decode_fn
    self._label_smoothing = label_smoothing
    self._z_loss = z_loss
    self._loss_normalizing_factor = loss_normalizing_factor
    super().__init__(optimizer_def)

  @property
  def input_vocabulary(self) -> 'seqio.Vocabulary':
    """Vocabulary of the inputs."""
    return self._input_vocabulary

  @property
  def output_vocabulary(self) -> 'seqio.Vocabulary':
    """Vocabulary of the targets."""
    return self._output_vocabulary

  @property
  def decode_fn(self) -> DecodeFnCallable | None:
    """How to decode."""
    return self._decode_fn

  @abc.abstractmethod
  def _compute_logits(
      self, params: Any, batch: Batch, dropout_rng: jax.Array | None = None
  ) -> Any:
    """Returns the logits [B, T, V].

    A subclass whose module has mutable collections takes `mutable` (names) and
    `other_variables` as well, and returns (logits, new collections).
    """

  def loss_fn(
      self,
      params: Any,
      batch: Batch,
      dropout_rng: jax.Array | None,
      flax_mutables: Any = None,
  ) -> tuple[jax.Array, Any]:
    """Computes the token loss; see the base class.

    Args:
      params: the model's parameters.
      batch: with `decoder_target_tokens` [B, T], and `decoder_loss_weights`
        [B, T] where the data has them.
      dropout_rng: None switches dropout off.
      flax_mutables: mutable collections, if the module has any.

    Returns:
      (loss, metrics), or with mutables (loss, (metrics, new mutables)).
    """
    new_mutables = None
    if flax_mutables:
      logits, new_mutables = self._compute_logits(
          params,
          batch,
          dropout_rng,
          mutable=list(flax_mutables),
          other_variables=flax_mutables,
      )
    else:
      logits = self._compute_logits(params, batch, dropout_rng)
    factor, weights = losses.get_loss_normalizing_factor_and_weights(
        self._loss_normalizing_factor, batch
    )
    targets = batch['decoder_target_tokens']
    loss, z_loss, _ = losses.compute_weighted_cross_entropy(
        logits,
        targets=targets,
        weights=weights,
        label_smoothing=self._label_smoothing,
        z_loss=self._z_loss,
        loss_normalizing_factor=factor,
    )
    metrics = self._compute_metrics(
        logits=logits,
        targets=targets,
        mask=weights,
        loss=loss,
        z_loss=z_loss,
        segment_ids=_segment_ids(batch),
    )
    return loss, (metrics if new_mutables is None else (metrics, new_mutables))

  def _compute_metrics(
      self,
      logits: jax.Array,
      targets: jax.Array,
      mask: jax.Array | None,
      loss: jax.Array,
      z_loss: jax.Array | None = None,
      segment_ids: Mapping[str, jax.Array] | None = None,
  ) -> MetricsMap:
    """Computes the metrics of a batch; subclasses may add theirs."""
    return compute_base_metrics(
        logits, targets, mask, loss, z_loss, segment_ids
    )


def _segment_ids(batch: Batch) -> dict[str, jax.Array]:
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
