"""Transformers as models: the token loss, scores, and how decoding is run.

`BaseTransformerModel` wraps a Flax module that returns logits; its subclasses
say how the module is called: `EncoderDecoderModel`, `DecoderOnlyModel`.

RefA: google-research/t5x `models.py` (names and calls that subclasses rely on).
"""

import abc
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flax import core as flax_core
import jax
import jax.numpy as jnp

from t5x import beams
from t5x import decoding
from t5x import losses
from t5x import token_metrics
from t5x.base_model import BaseModel
from t5x.base_model import Batch
from t5x.base_model import DecodeFnCallable
from t5x.base_model import MetricsMap
from t5x.base_model import TokensIdsToLogitsCallable

if TYPE_CHECKING:
  from flax import linen as nn
  import seqio

  from t5x import optimizers

# The end token of vocabularies that name none, as in T5's.
DEFAULT_EOS_ID = 1


class _SeqioConverter:
  """Class attribute that is a class of SeqIO, imported when asked for."""

  def __init__(self, name: str):
    self._name = name

  def __get__(self, instance: Any, owner: Any) -> Any:
    """Returns the class."""
    import seqio

    return getattr(seqio, self._name)


def seqio_converter(name: str) -> Any:
  """Makes a `FEATURE_CONVERTER_CLS` of one of SeqIO's feature converters.

  TensorFlow and SeqIO are for the input pipeline; a model can do without.

  Args:
    name: the class in `seqio`.

  Returns:
    A class attribute that gives the class.
  """
  return _SeqioConverter(name)


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
        segment_ids=token_metrics.segment_ids(batch),
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
    return token_metrics.compute_base_metrics(
        logits, targets, mask, loss, z_loss, segment_ids
    )

  def _score_tokens(
      self, params: Any, batch: Batch, return_intermediates: bool
  ) -> Any:
    """Sums the log probabilities of the targets, weighted.

    Args:
      params: the model's parameters.
      batch: with `decoder_target_tokens` and `decoder_loss_weights` [B, T].
      return_intermediates: whether to return what the module sowed as well.

    Returns:
      [B] scores, or the pair (scores, intermediates), where each value is a
      tuple of all that were sowed under its name.
    """
    targets, weights = (
        batch['decoder_target_tokens'],
        batch['decoder_loss_weights'],
    )
    sowed = {}
    if return_intermediates:
      logits, variables = self._compute_logits(
          params, batch, mutable=['intermediates']
      )
      sowed = flax_core.unfreeze(variables.get('intermediates', {}))
    else:
      logits = self._compute_logits(params, batch)
    # Without z-loss: that is for training.
    token_losses, _ = losses.cross_entropy_with_logits(
        logits, jax.nn.one_hot(targets, logits.shape[-1]), z_loss=0.0
    )
    token_scores = -token_losses * weights
    scores = jnp.sum(token_scores, axis=-1)
    if not return_intermediates:
      return scores
    sowed['decoder'] = {
        **sowed.get('decoder', {}),
        'target_tokens': (targets,),
        'loss_weights': (weights,),
        'token_scores': (token_scores,),
    }
    return scores, sowed

  @property
  def _eos_id(self) -> int:
    """The end token of the outputs."""
    eos_id = getattr(self.output_vocabulary, 'eos_id', None)
    return DEFAULT_EOS_ID if eos_id is None else eos_id

  def _run_decode_fn(
      self,
      *,
      prompts: jax.Array,
      cache: Mapping[str, Any],
      tokens_to_logits: TokensIdsToLogitsCallable,
      num_decodes: int,
      initial_index: jax.Array | None,
      rng: jax.Array | None,
      decoder_params: Mapping[str, Any] | None,
  ) -> tuple[jax.Array, jax.Array]:
    """Runs the decode function with what the caller and the model tell it.

    Args:
      prompts: [B, L].
      cache: the module's cache, [B, …].
      tokens_to_logits: one step of the module.
      num_decodes: K.
      initial_index: [B] where to start, if the cache holds the prompts.
      rng: random key, or None.
      decoder_params: further arguments; they win over the model's.

    Returns:
      (ids [B, K, L], scores [B, K]), the best last.

    Raises:
      ValueError: if two random keys are given.
    """
    arguments = {'eos_id': self._eos_id, **(decoder_params or {})}
    # Not every decode function takes these.
    if initial_index is not None:
      arguments['initial_index'] = initial_index
      cache = _with_positions(
          cache, decoding.flat_batch_beam_expand(initial_index, num_decodes)
      )
    if rng is not None:
      given = arguments.get('decode_rng')
      if given is not None:
        raise ValueError(
            f'Two random keys were given: rng={rng} and'
            f" decoder_params['decode_rng']={given}. Pass one of them."
        )
      arguments['decode_rng'] = rng
    return self._decode_fn(
        inputs=prompts,
        cache=cache,
        tokens_to_logits=tokens_to_logits,
        num_decodes=num_decodes,
        cache_offset=1 if getattr(self.module, 'scan_layers', False) else 0,
        **arguments,
    )


def get_input_vocabulary(model: BaseTransformerModel) -> 'seqio.Vocabulary':
  """Returns the vocabulary of a model's inputs, for use inside gin files."""
  return model.input_vocabulary


def get_output_vocabulary(model: BaseTransformerModel) -> 'seqio.Vocabulary':
  """Returns the vocabulary of a model's outputs, for use inside gin files."""
  return model.output_vocabulary


def _with_positions(cache: Any, positions: jax.Array) -> Any:
  """Tells absolute positions where to go on, in a module that counts them.

  A prefill does not move the count, and beams share it (see `cache_map`).

  Args:
    cache: behind a prefill.
    positions: [B·K] of the next tokens.

  Returns:
    The cache with these positions.
  """

  def move(path, leaf):
    if getattr(path[-1], 'key', None) != beams.POSITION_LEAF:
      return leaf
    return positions.astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(move, cache)
