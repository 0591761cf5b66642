"""From strings to rows of token ids (RefA), in TensorFlow.

RefA: golden case `io_decode`, and "copy 15" of the original's habits: a text
that does not fit loses its end token.
"""

from collections.abc import Sequence

import seqio
import tensorflow as tf

from tasks import vocabularies


def tokenize(
    texts: tf.Tensor,
    vocabulary: seqio.Vocabulary,
    length: int,
    begin: bool = True,
    end: bool = True,
) -> tf.Tensor:
  """Makes one row of ids a text: begin, pieces, end, padding.

  For example, with length 6: `a b` → `[0, 3, 9, 1, 0, 0]`, and a text of seven
  pieces → begin and its first five pieces, without end.

  Args:
    texts: strings [n].
    vocabulary: SentencePiece or BERT vocabulary.
    length: ids a row; the rest is cut off, the end token with it.
    begin: whether a row opens with the begin id.
    end: whether a text closes with the end id.

  Returns:
    Ids [n, length] int32, 0 as padding.
  """
  pieces = vocabulary.encode_tf(texts)
  begin_id, end_id = vocabularies.begin_end_ids(vocabulary)
  room = length - 1 if begin else length
  rows = tf.cast(pieces.to_tensor(shape=[None, room]), tf.int32)
  if end:
    counts = tf.cast(pieces.row_lengths(), tf.int32)[:, tf.newaxis]
    rows = tf.where(tf.range(room) == counts, end_id, rows)
  if begin:
    rows = tf.pad(rows, [[0, 0], [1, 0]], constant_values=begin_id)
  return tf.ensure_shape(rows, [None, length])


def known_texts(
    texts: Sequence[str],
    numbers: tf.Tensor,
    vocabulary: seqio.Vocabulary,
    length: int,
) -> tf.Tensor:
  """Rows of context tokens of texts that are known when the graph is made.

  Args:
    texts: to choose from.
    numbers: which of them [n] int32.
    vocabulary: of `tokenize`.
    length: ids a row.

  Returns:
    Ids [n, length] int32, without begin, 0 as padding.
  """
  with tf.init_scope():
    rows = tokenize(tf.constant(texts), vocabulary, length, begin=False).numpy()
  return tf.gather(rows, numbers)


def text_token_mask(
    tokens: tf.Tensor, vocabulary: seqio.Vocabulary
) -> tf.Tensor:
  """True where a token is text: not padding, begin or end. Any shape, bool."""
  begin_id, end_id = vocabularies.begin_end_ids(vocabulary)
  return (tokens != 0) & (tokens != begin_id) & (tokens != end_id)
