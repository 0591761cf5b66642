"""The T5 encoder-decoder (arXiv 1910.10683), T5.1.1 and its relatives.

RefA: google-research/t5x `examples/t5/network.py` (names of classes, keywords
and parameters; public checkpoints depend on them).
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from t5x import mesh
from t5x.examples.t5 import layers
from t5x.examples.t5.stacks import Decoder
from t5x.examples.t5.stacks import DecoderLayer
from t5x.examples.t5.stacks import Encoder
from t5x.examples.t5.stacks import EncoderLayer
from t5x.examples.t5.stacks import T5Config

Array = jax.Array

__all__ = [
    'Decoder',
    'DecoderLayer',
    'Encoder',
    'EncoderLayer',
    'T5Config',
    'Transformer',
]


class Transformer(nn.Module):
  """The encoder-decoder.

  Attributes:
    config: sizes.
  """

  config: T5Config

  @property
  def scan_layers(self) -> bool:
    """Whether the layers are scanned; the cache then has them first."""
    return self.config.scan_layers

  def setup(self):
    """Makes the token table and the two stacks."""
    cfg = self.config
    self.shared_embedding = layers.Embed(
        num_embeddings=cfg.vocab_size,
        features=cfg.emb_dim,
        dtype=cfg.dtype,
        attend_dtype=jnp.float32,
        embedding_init=nn.initializers.normal(stddev=1.0),
        # A product with the table shards well and is cheap on a TPU; elsewhere
        # it is most of the work of a small model.
        one_hot=mesh.platform() == 'tpu',
        name='token_embedder',
    )
    self.encoder = Encoder(config=cfg, shared_embedding=self.shared_embedding)
    self.decoder = Decoder(config=cfg, shared_embedding=self.shared_embedding)

  def encode(
      self,
      encoder_input_tokens: Array,
      encoder_segment_ids: Array | None = None,
      enable_dropout: bool = True,
  ) -> Array:
    """Encodes token ids [batch, length] to [batch, length, embed].

    Args:
      encoder_input_tokens: token ids, 0 is padding.
      encoder_segment_ids: for packed examples, the example of each token.
      enable_dropout: whether to drop out.

    Returns:
      [batch, length, embed].
    """
    dtype = self.config.dtype
    real = encoder_input_tokens > 0
    mask = layers.make_attention_mask(real, real, dtype=dtype)
    if encoder_segment_ids is not None:
      same = layers.make_attention_mask(
          encoder_segment_ids, encoder_segment_ids, jnp.equal, dtype=dtype
      )
      mask = layers.combine_masks(mask, same)
    return self.encoder(
        encoder_input_tokens, mask, deterministic=not enable_dropout
    )

  def decode(
      self,
      encoded: Array,
      encoder_input_tokens: Array,
      decoder_input_tokens: Array,
      decoder_target_tokens: Array,
      encoder_segment_ids: Array | None = None,
      decoder_segment_ids: Array | None = None,
      decoder_positions: Array | None = None,
      enable_dropout: bool = True,
      decode: bool = False,
      max_decode_length: int | None = None,
  ) -> Array:
    """Gives the logits of the next token at every position.

    Args:
      encoded: [batch, encoder length, embed].
      encoder_input_tokens: [batch, encoder length], only for the padding.
      decoder_input_tokens: [batch, length], targets shifted right.
      decoder_target_tokens: [batch, length], only for the padding; ignored
        while decoding.
      encoder_segment_ids: for packed examples.
      decoder_segment_ids: for packed examples.
      decoder_positions: for packed examples.
      enable_dropout: whether to drop out.
      decode: uses the cache, one position at a time.
      max_decode_length: length of the cache.

    Returns:
      Logits [batch, length, vocabulary].

    Raises:
      ValueError: if packed examples are decoded.
    """
    dtype = self.config.dtype
    packed = encoder_segment_ids is not None or decoder_segment_ids is not None
    if decode and packed:
      raise ValueError(
          'Decoding takes one example a row, but segment ids were given. Turn'
          ' packing off (DatasetConfig.pack=False) for prediction.'
      )
    source = encoder_input_tokens > 0
    if decode:
      decoder_mask = None
      target = jnp.ones_like(decoder_target_tokens)
    else:
      decoder_mask = layers.make_decoder_mask(
          decoder_target_tokens, dtype, decoder_segment_ids=decoder_segment_ids
      )
      target = decoder_target_tokens > 0
    cross_mask = layers.make_attention_mask(target, source, dtype=dtype)
    if encoder_segment_ids is not None:
      same = layers.make_attention_mask(
          decoder_segment_ids, encoder_segment_ids, jnp.equal, dtype=dtype
      )
      cross_mask = layers.combine_masks(cross_mask, same)
    return self.decoder(
        encoded,
        decoder_input_tokens=decoder_input_tokens,
        decoder_positions=decoder_positions,
        decoder_mask=decoder_mask,
        encoder_decoder_mask=cross_mask,
        deterministic=not enable_dropout,
        decode=decode,
        max_decode_length=max_decode_length,
    )

  def __call__(
      self,
      encoder_input_tokens: Array,
      decoder_input_tokens: Array,
      decoder_target_tokens: Array,
      encoder_segment_ids: Array | None = None,
      decoder_segment_ids: Array | None = None,
      encoder_positions: Array | None = None,
      decoder_positions: Array | None = None,
      *,
      enable_dropout: bool = True,
      decode: bool = False,
  ) -> Array:
    """Encodes and decodes: logits [batch, length, vocabulary].

    Args:
      encoder_input_tokens: [batch, encoder length].
      decoder_input_tokens: [batch, length].
      decoder_target_tokens: [batch, length].
      encoder_segment_ids: for packed examples.
      decoder_segment_ids: for packed examples.
      encoder_positions: unused, T5's positions are relative.
      decoder_positions: for packed examples.
      enable_dropout: whether to drop out.
      decode: makes the cache.

    Returns:
      Logits of the next token at every position.
    """
    del encoder_positions
    encoded = self.encode(
        encoder_input_tokens, encoder_segment_ids, enable_dropout
    )
    return self.decode(
        encoded,
        encoder_input_tokens,
        decoder_input_tokens,
        decoder_target_tokens,
        encoder_segment_ids=encoder_segment_ids,
        decoder_segment_ids=decoder_segment_ids,
        decoder_positions=decoder_positions,
        enable_dropout=enable_dropout,
        decode=decode,
    )
