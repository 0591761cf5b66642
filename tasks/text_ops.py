"""From strings to rows of token ids (RefA), in TensorFlow.

RefA: golden case `io_decode`, and "copy 15" of the original's habits: a text
that does not fit loses its end token.
"""

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
  pieces = tf.cast(vocabulary.encode_tf(texts), tf.int32)
  begin_id, end_id = vocabularies.begin_end_ids(vocabulary)
  column = tf.ones_like(texts, tf.int32)[:, tf.newaxis]
  parts = [pieces]
  if begin:
    parts.insert(0, column * begin_id)
  if end:
    parts.append(column * end_id)
  rows = tf.concat(parts, axis=1) if len(parts) > 1 else pieces
  return tf.ensure_shape(rows.to_tensor(shape=[None, length]), [None, length])


def text_token_mask(
    tokens: tf.Tensor, vocabulary: seqio.Vocabulary
) -> tf.Tensor:
  """True where a token is text: not padding, begin or end. Any shape, bool."""
  begin_id, end_id = vocabularies.begin_end_ids(vocabulary)
  return (tokens != 0) & (tokens != begin_id) & (tokens != end_id)
