"""A decoder alone: inputs and targets are one sequence, inputs the prompt.

RefA: google-research/t5x `models.py` (names, and how the module is called).
"""

from collections.abc import Mapping
import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from t5x import decoding
from t5x import losses
from t5x import transformer_models
from t5x.base_model import Batch
from t5x.base_model import DecodeFnCallable

if TYPE_CHECKING:
  from flax import linen as nn
  import seqio

  from t5x import optimizers


@jax.vmap
def remove_prefix(sequence: jax.Array, prefix_length: jax.Array) -> jax.Array:
  """Cuts prompts off: 1 2 3 4 0 behind two tokens is 3 4 0 0 0.

  Args:
    sequence: [B, …, L], 0 is padding.
    prefix_length: [B].

  Returns:
    [B, …, L].
  """
  in_prefix = jnp.arange(sequence.shape[-1]) < prefix_length
  return jnp.roll(jnp.where(in_prefix, 0, sequence), -prefix_length, axis=-1)


class DecoderOnlyModel(transformer_models.BaseTransformerModel):
  """A language model; with inputs, the loss is on the targets only.

  SeqIO's converter writes inputs and targets behind each other:

    inputs 9 4 1, targets 3 8 1     target tokens     9 4 1 3 8 1 0
                                    input tokens      0 9 4 1 3 8 1
                                    causal attention  1 1 1 1 0 0 0

  The last row marks what may be seen both ways (a prefix language model): the
  inputs, and the position that reads their last token.
  """

  FEATURE_CONVERTER_CLS = transformer_models.seqio_converter(
      'DecoderFeatureConverter'
  )

  def __init__(
      self,
      module: 'nn.Module',
      vocabulary: 'seqio.Vocabulary',
      optimizer_def: 'optimizers.OptimizerDef | None',
      decode_fn: DecodeFnCallable = decoding.temperature_sample,
      inputs_bidirectional_attention: bool = False,
      feature_converter_cls: Any = None,
      label_smoothing: float = 0.0,
      z_loss: float = 0.0,
      loss_normalizing_factor: (
          float | str | losses.SpecialLossNormalizingFactor | None
      ) = None,
  ):
    """Keeps the settings; see the base class.

    Args:
      module: the network.
      vocabulary: of inputs and targets.
      optimizer_def: the optimizer, or None.
      decode_fn: how to decode; it must take `initial_index`.
      inputs_bidirectional_attention: whether inputs see each other both ways.
      feature_converter_cls: the converter, if not SeqIO's.
      label_smoothing: probability taken from each target.
      z_loss: weight of log Z ².
      loss_normalizing_factor: divides the loss; see `losses`.
    """
    super().__init__(
        module,
        vocabulary,
        vocabulary,
        optimizer_def,
        decode_fn=decode_fn,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        loss_normalizing_factor=loss_normalizing_factor,
    )
    self._inputs_bidirectional_attention = inputs_bidirectional_attention
    if feature_converter_cls is not None:
      self.FEATURE_CONVERTER_CLS = feature_converter_cls

  def get_initial_variables(
      self,
      rng: jax.Array,
      input_shapes: Mapping[str, Any],
      input_types: Mapping[str, Any] | None = None,
  ) -> Mapping[str, Any]:
    """Makes parameters and their axes; see the base class."""
    name = 'decoder_input_tokens'
    tokens = jnp.ones(
        input_shapes[name], (input_types or {}).get(name, jnp.float32)
    )
    return self.module.init(rng, tokens, tokens, enable_dropout=False)

  def _get_decoder_causal_attention(self, batch: Batch) -> jax.Array | None:
    """Returns what may be seen both ways, None for nothing."""
    if not self._inputs_bidirectional_attention:
      return None
    return _causal_attention(batch)

  def _compute_logits(
      self,
      params: Any,
      batch: Batch,
      dropout_rng: jax.Array | None = None,
      mutable: Any = False,
      other_variables: Mapping[str, Any] | None = None,
  ) -> Any:
    """Returns the logits [B, T, V], with `mutable` also those collections."""
    return self.module.apply(
        {'params': params, **(other_variables or {})},
        batch['decoder_input_tokens'],
        batch['decoder_target_tokens'],
        decoder_segment_ids=batch.get('decoder_segment_ids'),
        decoder_positions=batch.get('decoder_positions'),
        decoder_causal_attention=self._get_decoder_causal_attention(batch),
        rngs=None if dropout_rng is None else {'dropout': dropout_rng},
        decode=False,
        enable_dropout=dropout_rng is not None,
        mutable=mutable,
    )

  def _compute_logits_from_slice(
      self,
      decoding_state: decoding.DecodingState,
      params: Any,
      max_decode_length: int,
  ) -> tuple[jax.Array, Mapping[str, Any]]:
    """Reads one token of every row.

    Args:
      decoding_state: with `cur_token` [B·K, 1] and `cache`.
      params: the model's parameters.
      max_decode_length: length of the cache.

    Returns:
      (logits [B·K, V], the new cache).
    """
    tokens = decoding_state.cur_token
    logits, variables = self.module.apply(
        {'params': params, 'cache': decoding_state.cache},
        tokens,
        tokens,
        enable_dropout=False,
        decode=True,
        max_decode_length=max_decode_length,
        mutable=['cache'],
    )
    return jnp.squeeze(logits, axis=1), variables['cache']

  def _compute_kv_cache(
      self,
      params: Any,
      inputs: jax.Array,
      inputs_lengths: jax.Array,
      decoder_causal_attention: jax.Array,
  ) -> Mapping[str, Any]:
    """Makes the cache, filled with all but the last token of each prompt.

    Args:
      params: the model's parameters.
      inputs: [B, L] prompts behind a start token.
      inputs_lengths: [B] tokens of each prompt; where decoding starts.
      decoder_causal_attention: [B, L], 1 at the prompt and the start token.

    Returns:
      The cache; its position is one a row.
    """
    ones = jnp.ones_like(inputs)
    _, variables = self.module.apply(
        {'params': params},
        ones,
        ones,
        enable_dropout=False,
        decode=True,
        mutable=['cache'],
    )
    both_ways = self._inputs_bidirectional_attention
    _, variables = self.module.apply(
        {'params': params, 'cache': variables['cache']},
        decoder_input_tokens=inputs,
        # For the mask: 1 at the start token too, and nowhere at the targets.
        decoder_target_tokens=decoder_causal_attention,
        decoder_causal_attention=decoder_causal_attention
        if both_ways
        else None,
        mutable=['cache'],
        enable_dropout=False,
        prefill=True,
        prefill_lengths=inputs_lengths,
    )
    return variables['cache']

  def predict_batch_with_aux(
      self,
      params: Any,
      batch: Batch,
      rng: jax.Array | None = None,
      *,
      return_all_decodes: bool = False,
      num_decodes: int = 1,
      decoder_params: Mapping[str, Any] | None = None,
  ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
    """Continues the inputs of a batch.

    Args:
      params: the model's parameters.
      batch: with `decoder_input_tokens` and `decoder_causal_attention`, which
        tells the inputs from the targets; targets are not looked at.
      rng: for decode functions that draw.
      return_all_decodes: whether to return all sequences or the best.
      num_decodes: K.
      decoder_params: further arguments of the decode function.

    Returns:
      (ids [B, L], {'scores': [B]}), or for all [B, K, L] and [B, K]. The ids
      are those behind the inputs.

    Raises:
      ValueError: if the batch does not tell inputs from targets.
    """
    causal_attention = _causal_attention(batch)
    inputs = batch['decoder_input_tokens'] * causal_attention
    lengths = jnp.sum(inputs[:, 1:] != 0, axis=1)
    cache = self._compute_kv_cache(params, inputs, lengths, causal_attention)
    ids, scores = self._run_decode_fn(
        prompts=inputs,
        cache=cache,
        tokens_to_logits=functools.partial(
            self._compute_logits_from_slice,
            params=params,
            max_decode_length=inputs.shape[1],
        ),
        num_decodes=num_decodes,
        initial_index=lengths,
        rng=rng,
        decoder_params=decoder_params,
    )
    if not return_all_decodes:
      ids, scores = ids[:, -1], scores[:, -1]
    return remove_prefix(ids, lengths), {'scores': scores}

  def score_batch(
      self, params: Any, batch: Batch, return_intermediates: bool = False
  ) -> Any:
    """Sums the log probabilities of the targets; see the base class."""
    return self._score_tokens(params, batch, return_intermediates)


def _causal_attention(batch: Batch) -> jax.Array:
  """Returns the feature that tells inputs from targets."""
  name = 'decoder_causal_attention'
  if name not in batch:
    raise ValueError(
        f'The batch has {sorted(batch)}, but no {name!r}, which tells the'
        ' inputs from the targets. SeqIO adds it if task_feature_lengths has'
        " both 'inputs' and 'targets'."
    )
  return batch[name]
