"""The interface between a model and the trainer.

`BaseModel` is what the trainer sees: a loss, predictions, scores and initial
variables, each a pure function of parameters and batch.
"""

import abc
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from clu import metrics as clu_metrics
import jax

from t5x.beams import DecodingState

if TYPE_CHECKING:
  import seqio

  from t5x import optimizers

Batch = Mapping[str, jax.Array]
MetricsMap = Mapping[str, clu_metrics.Metric]


class TokensIdsToLogitsCallable(Protocol):
  """One step of decoding: from token ids and cache to logits and cache."""

  def __call__(self, decoding_state: DecodingState) -> tuple[jax.Array, Any]:
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
