"""Encoder and decoder, such as T5: reads the inputs once, writes the targets.

RefA: google-research/t5x `models.py` (names, and how the module is called).
"""

from collections.abc import Mapping
import dataclasses
import functools
import inspect
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

# Features that a packed batch has besides, each a keyword of the module.
_PACKING_FEATURES = (
    'encoder_positions',
    'decoder_positions',
    'encoder_segment_ids',
    'decoder_segment_ids',
)


@dataclasses.dataclass
class DecoderParams:
  """What a model decodes if a call does not say.

  Attributes:
    return_all_decodes: whether to return all sequences, or the best.
    num_decodes: sequences a row, beams or samples.
  """

  return_all_decodes: bool = False
  num_decodes: int = 1


class EncoderDecoderModel(transformer_models.BaseTransformerModel):
  """A model of a module with `encode`, `decode` and both at once."""

  FEATURE_CONVERTER_CLS = transformer_models.seqio_converter(
      'EncDecFeatureConverter'
  )
  _default_decoder_params = DecoderParams()

  def __init__(
      self,
      module: 'nn.Module',
      input_vocabulary: 'seqio.Vocabulary',
      output_vocabulary: 'seqio.Vocabulary',
      optimizer_def: 'optimizers.OptimizerDef | None',
      decode_fn: DecodeFnCallable = decoding.beam_search,
      feature_converter_cls: Any = None,
      label_smoothing: float = 0.0,
      z_loss: float = 0.0,
      loss_normalizing_factor: (
          float | str | losses.SpecialLossNormalizingFactor | None
      ) = None,
      default_decoder_params: DecoderParams | None = None,
  ):
    """Keeps the settings; see the base class.

    Args:
      module: the network.
      input_vocabulary: of the inputs.
      output_vocabulary: of the targets.
      optimizer_def: the optimizer, or None.
      decode_fn: how to decode.
      feature_converter_cls: the converter, if not SeqIO's.
      label_smoothing: probability taken from each target.
      z_loss: weight of log Z ².
      loss_normalizing_factor: divides the loss; see `losses`.
      default_decoder_params: what to decode if a call does not say.
    """
    super().__init__(
        module,
        input_vocabulary,
        output_vocabulary,
        optimizer_def,
        decode_fn=decode_fn,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        loss_normalizing_factor=loss_normalizing_factor,
    )
    if feature_converter_cls is not None:
      self.FEATURE_CONVERTER_CLS = feature_converter_cls
    if default_decoder_params is not None:
      self._default_decoder_params = default_decoder_params

  def get_initial_variables(
      self,
      rng: jax.Array,
      input_shapes: Mapping[str, Any],
      input_types: Mapping[str, Any] | None = None,
  ) -> Mapping[str, Any]:
    """Makes parameters and their axes; see the base class."""
    types = input_types or {}

    def ones(name, default_type):
      if name not in input_shapes:
        return None
      return jnp.ones(input_shapes[name], types.get(name, default_type))

    decoder_tokens = ones('decoder_input_tokens', jnp.float32)
    return self.module.init(
        rng,
        ones('encoder_input_tokens', jnp.float32),
        decoder_tokens,
        decoder_tokens,
        **{name: ones(name, jnp.int32) for name in _PACKING_FEATURES},
        decode=False,
        enable_dropout=False,
    )

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
        batch['encoder_input_tokens'],
        batch['decoder_input_tokens'],
        batch['decoder_target_tokens'],
        **{name: batch.get(name) for name in _PACKING_FEATURES},
        decode=False,
        enable_dropout=dropout_rng is not None,
        rngs=None if dropout_rng is None else {'dropout': dropout_rng},
        mutable=mutable,
    )

  def _compute_logits_from_slice(
      self,
      decoding_state: decoding.DecodingState,
      params: Any,
      encoded_inputs: jax.Array,
      raw_inputs: jax.Array,
      max_decode_length: int,
  ) -> tuple[jax.Array, Mapping[str, Any]]:
    """Reads one token of every row.

    Args:
      decoding_state: with `cur_token` [B·K, 1] and `cache`.
      params: the model's parameters.
      encoded_inputs: [B·K, encoder length, width].
      raw_inputs: [B·K, encoder length], only for the padding.
      max_decode_length: length of the cache.

    Returns:
      (logits [B·K, V], the new cache).
    """
    tokens = decoding_state.cur_token
    logits, variables = self.module.apply(
        {'params': params, 'cache': decoding_state.cache},
        encoded_inputs,
        raw_inputs,
        tokens,
        tokens,
        enable_dropout=False,
        decode=True,
        max_decode_length=max_decode_length,
        mutable=['cache'],
        method=self.module.decode,
    )
    return jnp.squeeze(logits, axis=1), variables['cache']

  def _can_prefill(self) -> bool:
    """Tells whether module and decode function can start behind a prompt."""
    return (
        'initial_index' in inspect.signature(self._decode_fn).parameters
        and 'prefill' in inspect.signature(self.module.decode).parameters
    )

  def _compute_kv_cache(
      self,
      params: Any,
      encoded_inputs: jax.Array,
      encoder_input_tokens: jax.Array,
      decoder_input_tokens: jax.Array,
  ) -> tuple[Mapping[str, Any], jax.Array | None]:
    """Makes the cache, filled with the prompts if the module can do that.

    Args:
      params: the model's parameters.
      encoded_inputs: [B, encoder length, width].
      encoder_input_tokens: [B, encoder length], only for the padding.
      decoder_input_tokens: [B, L] prompts behind a start token.

    Returns:
      (the cache, position [B] to start at, or None for the first).
    """
    ones = jnp.ones_like(decoder_input_tokens)
    _, variables = self.module.apply(
        {'params': params},
        encoder_input_tokens=jnp.ones_like(encoder_input_tokens),
        decoder_input_tokens=ones,
        decoder_target_tokens=ones,
        decode=True,
        enable_dropout=False,
        mutable=['cache'],
    )
    if not self._can_prefill():
      return variables['cache'], None
    lengths = jnp.sum(decoder_input_tokens[:, 1:] != 0, axis=1)
    positions = jnp.arange(decoder_input_tokens.shape[1])
    _, variables = self.module.apply(
        {'params': params, 'cache': variables['cache']},
        encoded_inputs,
        encoder_input_tokens,
        decoder_input_tokens,
        # For the mask; the start token counts, though its id is padding's.
        (positions <= lengths[:, None]).astype(decoder_input_tokens.dtype),
        enable_dropout=False,
        prefill=True,
        prefill_lengths=lengths,
        mutable=['cache'],
        method=self.module.decode,
    )
    return variables['cache'], lengths

  def predict_batch_with_aux(
      self,
      params: Any,
      batch: Batch,
      rng: jax.Array | None = None,
      decoder_params: Mapping[str, Any] | None = None,
      return_all_decodes: bool | None = None,
      num_decodes: int | None = None,
      prompt_with_targets: bool = False,
  ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
    """Writes the targets of a batch.

    Args:
      params: the model's parameters.
      batch: with `encoder_input_tokens`, and `decoder_input_tokens` for their
        length, or as the prompts.
      rng: for decode functions that draw.
      decoder_params: further arguments of the decode function; they may be
        traced, where it allows that.
      return_all_decodes: whether to return all sequences or the best; None for
        the model's default.
      num_decodes: K; None for the model's default.
      prompt_with_targets: whether outputs start with the batch's inputs to the
        decoder, end tokens left out.

    Returns:
      (ids [B, L], {'scores': [B]}), or for all [B, K, L] and [B, K].
    """
    if return_all_decodes is None:
      return_all_decodes = self._default_decoder_params.return_all_decodes
    if num_decodes is None:
      num_decodes = self._default_decoder_params.num_decodes
    encoder_tokens = batch['encoder_input_tokens']
    prompts = jnp.asarray(batch['decoder_input_tokens'])
    if prompt_with_targets:
      # The end would be taken for that of the output.
      prompts = jnp.where(prompts == self._eos_id, 0, prompts)
    else:
      prompts = jnp.zeros_like(prompts)
    encoded = self.module.apply(
        {'params': params},
        encoder_tokens,
        enable_dropout=False,
        method=self.module.encode,
    )
    cache, initial_index = self._compute_kv_cache(
        params,
        encoded_inputs=encoded,
        encoder_input_tokens=encoder_tokens,
        decoder_input_tokens=prompts,
    )
    expand = functools.partial(
        decoding.flat_batch_beam_expand, beam_size=num_decodes
    )
    ids, scores = self._run_decode_fn(
        prompts=prompts,
        cache=cache,
        tokens_to_logits=functools.partial(
            self._compute_logits_from_slice,
            params=params,
            encoded_inputs=expand(encoded),
            raw_inputs=expand(encoder_tokens),
            max_decode_length=prompts.shape[1],
        ),
        num_decodes=num_decodes,
        initial_index=initial_index,
        rng=rng,
        decoder_params=decoder_params,
    )
    if return_all_decodes:
      return ids, {'scores': scores}
    return ids[:, -1], {'scores': scores[:, -1]}

  def score_batch(
      self, params: Any, batch: Batch, return_intermediates: bool = False
  ) -> Any:
    """Sums the log probabilities of the targets; see the base class."""
    return self._score_tokens(params, batch, return_intermediates)
