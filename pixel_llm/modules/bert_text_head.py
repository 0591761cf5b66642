"""The BERT text head, GIT's decoder: one stack over image, context and text.

Visual tokens and context are the prefix, which sees all of itself but not the
text; the text is causal behind it (RefA). So the prefix passes the layers once
(`encode`), and only its keys and values are kept for texts and beams.

Context and text share the word and position tables, and both start at position
0. Padded context is hidden; padding of the text is not (RefB).

Prompts are folded into the batch: a row `M` is one prompt of one image.

RefA: GIT (arXiv 2205.14100), Sec. 3.1; RefB: "Pixel Aligned Language Models"
(arXiv 2312.09237), the released weights of its BERT variant.
"""

from collections.abc import Sequence
import difflib
from typing import Any, Self

from flax import linen as nn
from flax import struct
from flax.linen import spmd
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pixel_llm import axes
from pixel_llm.modules import bert_attention
from pixel_llm.modules import bert_layers
from pixel_llm.modules import decode_cache
from pixel_llm.modules import layers
from pixel_llm.modules import text_head
from pixel_llm.modules import visual_projection
from t5x import layer_stack

_FUSIONS = ('sum', 'concat')


@struct.dataclass
class EncodedPrefix(text_head.EncodedPrompt):
  """Visual tokens and context as the text sees them.

  Attributes:
    layers: keys and values of every layer, in the form of the stack: a list, or
      arrays with the layers as first axis.
  """

  layers: Any

  def take_prompts(self, slots: Int[Array, 'B N']) -> Self:
    """See the base class; the layers of a scanned stack stay in front."""
    axis = 0 if isinstance(self.layers, (list, tuple)) else 1
    return self.replace(
        mask=text_head.take_folded(self.mask, slots),
        layers=jax.tree.map(
            lambda x: text_head.take_folded(x, slots, axis), self.layers
        ),
    )


def fuse_hidden_states(
    fusion: str, hidden: Sequence[Float[Array, '*rows D']]
) -> Float[Array, '*rows Df']:
  """Makes features of some hidden states.

  With six layers there are seven states: 'sum:-1,-2' adds the outputs of the
  last two layers, 'concat:0,3' joins the embeddings and the third output to
  twice the width.

  Args:
    fusion: `sum:` or `concat:` and a comma list of indices; 0 is the
      embeddings, negative ones count from the end.
    hidden: the embeddings and the output of every layer.

  Returns:
    The features.

  Raises:
    ValueError: if `fusion` has another form or names a state that is not there.
  """
  kind, _, places = fusion.partition(':')
  if kind not in _FUSIONS:
    near = difflib.get_close_matches(kind, _FUSIONS, n=1, cutoff=0.0)[0]
    raise ValueError(
        f'feature_fusion {fusion!r} starts with {kind!r}; known are'
        f" {_FUSIONS}. Did you mean '{near}:-1,-2'?"
    )
  try:
    chosen = [hidden[int(place)] for place in places.split(',')]
  except (ValueError, IndexError) as error:
    raise ValueError(
        f'feature_fusion {fusion!r} must list hidden states of'
        f' {-len(hidden)} to {len(hidden) - 1}, as in {kind}:-1,-2; the state 0'
        ' is the embeddings.'
    ) from error
  if kind == 'concat':
    return jnp.concatenate(chosen, axis=-1)
  return sum(chosen[1:], start=chosen[0])


class BertTextHead(nn.Module):
  """Encodes a prompt (visual tokens, context) and decodes its text.

  Attributes:
    vocab_size: words; 30522 is BERT's uncased vocabulary.
    emb_dim: width.
    num_heads: heads.
    num_layers: layers.
    mlp_dim: hidden width of the MLPs.
    max_length: longest context, and longest text, in tokens.
    dropout_rate: of embeddings, attention weights and both outputs of a layer.
    feature_fusion: hidden states that make the features, as
      `fuse_hidden_states` takes it; logits always come from the last one.
    scan_layers: whether the layers are one scanned layer, whose parameters hold
      all of them.
    remat_policy: what the backward pass recomputes; see `t5x.layer_stack`.
    dtype: type of the computation.
  """

  vocab_size: int = 30522
  emb_dim: int = 768
  num_heads: int = 12
  num_layers: int = 6
  mlp_dim: int = 3072
  max_length: int = 1024
  dropout_rate: float = 0.1
  feature_fusion: str = 'sum:-1'
  scan_layers: bool = False
  remat_policy: str = layer_stack.NO_REMAT
  dtype: layers.DType = jnp.float32

  def setup(self):
    """Makes projection, tables, layers and output."""
    if self.emb_dim % self.num_heads:
      raise ValueError(
          f'BertTextHead.emb_dim is {self.emb_dim}, which'
          f' num_heads={self.num_heads} does not divide; change one of them.'
      )
    self.projection = visual_projection.VisualProjection(
        self.emb_dim, dtype=self.dtype
    )
    # The original keeps the projection's parameters beside the tables.
    nn.share_scope(self, self.projection)
    self.embedding = bert_layers.Embedding(
        vocab_size=self.vocab_size,
        features=self.emb_dim,
        max_length=self.max_length,
        dropout_rate=self.dropout_rate,
        dtype=self.dtype,
    )
    self.transformer = bert_layers.Transformer(
        bert_layers.Encoder(
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            mlp_dim=self.mlp_dim,
            dropout_rate=self.dropout_rate,
            scan_layers=self.scan_layers,
            remat_policy=self.remat_policy,
            dtype=self.dtype,
            # The transformer adopts it.
            parent=None,
        )
    )
    self.output = layers.Dense(
        self.vocab_size,
        kernel_axes=(axes.EMBED, axes.VOCAB),
        kernel_init=layers.table_init,
    )

  def _check_length(self, name: str, length: int) -> None:
    """Refuses more tokens than there are positions."""
    if length > self.max_length:
      raise ValueError(
          f'The {name} has {length} tokens, BertTextHead.max_length is'
          f' {self.max_length}. Shorten the {name}; released weights have no'
          ' further positions.'
      )

  def _embed(
      self, tokens: Int[Array, 'M T'], deterministic: bool
  ) -> Float[Array, 'M T D']:
    """Embeds tokens whose positions start at 0."""
    positions = jnp.arange(tokens.shape[1])[None]
    return self.embedding(tokens, positions, deterministic)

  def encode(
      self,
      visual: Float[Array, 'M L Dv'],
      context_tokens: Int[Array, 'M C'] | None = None,
      *,
      deterministic: bool = True,
  ) -> EncodedPrefix:
    """Passes visual tokens, then context, through the layers.

    Args:
      visual: visual tokens of any width; the head projects them itself.
      context_tokens: without begin token, 0 is padding; None for no context.
      deterministic: turns dropout off.

    Returns:
      Keys, values and mask of the prefix.

    Raises:
      ValueError: if the context is longer than `max_length`.
    """
    x = self.projection(visual)
    mask = jnp.ones(x.shape[:2], bool)
    if context_tokens is not None:
      self._check_length('context', context_tokens.shape[1])
      context = self._embed(context_tokens, deterministic)
      x = jnp.concatenate([x, context], axis=1)
      mask = jnp.concatenate([mask, context_tokens > 0], axis=1)
    x = spmd.with_logical_constraint(x, (axes.BATCH, axes.LENGTH, axes.EMBED))
    _, kept = self.transformer(x, mask[:, None, None, :], (), deterministic)
    return EncodedPrefix(mask=mask, layers=kept)

  def decode(
      self,
      encoded: EncodedPrefix,
      text_tokens: Int[Array, 'M T'],
      *,
      deterministic: bool = True,
  ) -> text_head.TextOutput:
    """Decodes a given text.

    Args:
      encoded: the encoded prefix.
      text_tokens: begin … end, 0 is padding; not shifted: position t gives the
        logits of token t + 1.
      deterministic: turns dropout off.

    Returns:
      Logits and features of all positions; padding is read as a word.

    Raises:
      ValueError: if the text is longer than `max_length`.
    """
    length = text_tokens.shape[1]
    self._check_length('text', length)
    x = self._embed(text_tokens, deterministic)
    x = spmd.with_logical_constraint(x, (axes.BATCH, axes.LENGTH, axes.EMBED))
    causal = jnp.tril(jnp.ones((1, 1, length, length), bool))
    prefix_mask = encoded.mask[:, None, None, :]
    hidden, _ = self.transformer(
        x,
        causal,
        [bert_layers.StackSource(encoded.layers, prefix_mask)],
        deterministic,
    )
    return text_head.TextOutput(
        logits=self.output(hidden[-1]),
        features=fuse_hidden_states(self.feature_fusion, hidden),
    )

  def __call__(
      self,
      visual: Float[Array, 'M L Dv'],
      text_tokens: Int[Array, 'M T'],
      context_tokens: Int[Array, 'M C'] | None = None,
      *,
      deterministic: bool = True,
  ) -> text_head.TextOutput:
    """Encodes and decodes; see `encode` and `decode`."""
    encoded = self.encode(visual, context_tokens, deterministic=deterministic)
    return self.decode(encoded, text_tokens, deterministic=deterministic)

  def start_decode(
      self, encoded: EncodedPrefix, num_beams: int, length: int
  ) -> decode_cache.DecodeCache:
    """Prepares decoding: the prefix is shared, every beam gets room for text.

    Args:
      encoded: the encoded prefix.
      num_beams: beams a row, 1 for greedy.
      length: tokens of the longest text, `T`.

    Returns:
      The cache before the first step.

    Raises:
      ValueError: if `length` is more than `max_length`.
    """
    self._check_length('text', length)
    rows = encoded.mask.shape[0]
    head_dim = self.emb_dim // self.num_heads
    shape = (rows, num_beams, self.num_heads, head_dim, length)
    beams = layer_stack.repeat(
        bert_attention.KeysValues(
            keys=jnp.zeros(shape, self.dtype),
            values=jnp.zeros(shape, self.dtype),
        ),
        num_layers=self.num_layers,
        scan_layers=self.scan_layers,
    )
    return decode_cache.DecodeCache(
        shared=encoded, beams=beams, beams_axis=int(self.scan_layers)
    )

  def decode_step(
      self,
      cache: decode_cache.DecodeCache,
      sequences: Int[Array, 'M K T'],
      index: int | Int[Array, ''],
  ) -> tuple[Float[Array, 'M K V'], decode_cache.DecodeCache]:
    """Scores the token behind position `index`; a step of `generation`.

    Args:
      cache: after the steps before `index`.
      sequences: tokens so far; those behind `index` do not matter.
      index: the position to read.

    Returns:
      Logits of the next token, and the cache for the next step.
    """
    tokens = jax.lax.dynamic_slice_in_dim(sequences, index, 1, axis=2)
    x = self.embedding(tokens, jnp.full((1, 1, 1), index), True)
    # One axis more than in `decode`: the beams stand behind the rows.
    beams_axis = cache.beams_axis + 1
    prefix = jax.tree.map(
        lambda kv: jnp.expand_dims(kv, beams_axis), cache.shared.layers
    )
    prefix_mask = cache.shared.mask[:, None, None, None, :]
    written = jnp.arange(sequences.shape[2]).reshape(1, 1, 1, 1, -1) < index
    hidden, kept = self.transformer(
        x,
        jnp.ones((1, 1, 1, 1, 1), bool),
        [
            bert_layers.StackSource(prefix, prefix_mask),
            bert_layers.StackSource(cache.beams, written),
        ],
        True,
    )
    beams = jax.tree.map(
        lambda room, new: jax.lax.dynamic_update_slice_in_dim(
            room, new, index, axis=-1
        ),
        cache.beams,
        kept,
    )
    return self.output(hidden[-1])[:, :, 0], cache.replace(beams=beams)
