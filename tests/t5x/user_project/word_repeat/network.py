"""The project's network, on T5X's layers and Flax's logical axes."""

from typing import Any

from flax import linen as nn
from flax import struct
from flax.linen import partitioning as nn_partitioning
import jax.numpy as jnp

from t5x.examples.t5 import layers

param_with_axes = nn_partitioning.param_with_axes
with_sharding_constraint = nn_partitioning.with_sharding_constraint


@struct.dataclass
class BagConfig:
  vocab_size: int
  emb_dim: int = 16
  mlp_dim: int = 32
  dropout_rate: float = 0.1
  dtype: Any = jnp.float32


class StepCount(nn.Module):
  """Counts decoding steps: without attention, all that a cache holds."""

  @nn.compact
  def __call__(self):
    count = self.variable('cache', 'cache_index', jnp.zeros, (), jnp.int32)
    count.value += 1


class BagToText(nn.Module):
  """Decodes each position from the mean of the inputs and the token before."""

  config: BagConfig

  def setup(self):
    cfg = self.config
    self.embedder = layers.Embed(
        num_embeddings=cfg.vocab_size,
        features=cfg.emb_dim,
        dtype=cfg.dtype,
        embedding_init=nn.initializers.normal(stddev=1.0),
        name='token_embedder',
    )
    self.mlp = layers.MlpBlock(
        intermediate_dim=cfg.mlp_dim,
        activations=('gelu', 'linear'),
        intermediate_dropout_rate=cfg.dropout_rate,
        dtype=cfg.dtype,
        name='mlp',
    )
    self.norm = layers.LayerNorm(dtype=cfg.dtype, name='final_norm')
    self.temperature = param_with_axes(
        'temperature', nn.initializers.ones, (1,), jnp.float32, axes=('unit',)
    )
    self.step_count = StepCount()
    self.logits = layers.DenseGeneral(
        cfg.vocab_size,
        dtype=jnp.float32,
        kernel_axes=('embed', 'vocab'),
        name='logits_dense',
    )

  def encode(
      self, encoder_input_tokens, encoder_segment_ids=None, enable_dropout=True
  ):
    del encoder_segment_ids, enable_dropout
    embedded = self.embedder(encoder_input_tokens.astype('int32'))
    weights = (encoder_input_tokens > 0)[..., None].astype(embedded.dtype)
    return (embedded * weights).sum(1) / jnp.maximum(weights.sum(1), 1)

  def decode(
      self,
      encoded,
      encoder_input_tokens,
      decoder_input_tokens,
      decoder_target_tokens,
      enable_dropout=True,
      decode=False,
      max_decode_length=None,
      **unused,
  ):
    del encoder_input_tokens, decoder_target_tokens, max_decode_length, unused
    x = self.embedder(decoder_input_tokens.astype('int32'))
    x = x + encoded[:, None, :]
    x = with_sharding_constraint(x, ('batch', 'length', 'embed'))
    x = self.norm(x + self.mlp(x, deterministic=not enable_dropout))
    if decode:
      self.step_count()
    return self.logits(x) / self.temperature

  def __call__(
      self,
      encoder_input_tokens,
      decoder_input_tokens,
      decoder_target_tokens,
      encoder_segment_ids=None,
      decoder_segment_ids=None,
      encoder_positions=None,
      decoder_positions=None,
      *,
      enable_dropout=True,
      decode=False,
  ):
    del decoder_segment_ids, encoder_positions, decoder_positions
    encoded = self.encode(
        encoder_input_tokens, encoder_segment_ids, enable_dropout
    )
    return self.decode(
        encoded,
        encoder_input_tokens,
        decoder_input_tokens,
        decoder_target_tokens,
        enable_dropout=enable_dropout,
        decode=decode,
    )
