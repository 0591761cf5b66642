"""The two vocabularies of the recipes: T5's pieces and BERT's.

An example holds N texts, so `decode` also takes a table of ids, one text a
row; SeqIO's evaluator calls it with what the model wrote for one image.
"""

from collections.abc import Callable, Iterable
import functools
import pathlib
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from pixel_llm.evaluation import words as words_lib

_TOKENIZERS = pathlib.Path(__file__).parent / 'assets' / 'tokenizers'


class Texts(list):
  """The texts of one image, with the ids [N, T] they were decoded from.

  SeqIO hands postprocessors nothing but what `decode` returns, and a trace is
  compared token by token.
  """

  def __init__(self, texts: Iterable[str], ids: np.ndarray):
    super().__init__(texts)
    self.ids = ids


def _decode_rows(decode_row: Callable[[list[int]], str], ids: Any) -> Any:
  """Applies `decode_row` to a row of ids, or to each row of a table."""
  ids = np.asarray(ids)
  if ids.ndim == 1:
    return decode_row(ids.tolist())
  if ids.ndim == 2:
    return Texts((decode_row(row) for row in ids.tolist()), ids)
  raise ValueError(
      f'decode: ids have shape {ids.shape}; expected one text [T] or the texts'
      ' of one image [N, T].'
  )


class SentencePieces(seqio.SentencePieceVocabulary):
  """SentencePiece pieces; begin = padding = 0, end 1, unknown 2."""

  def decode(self, ids: Iterable[Any]) -> Any:
    """Decodes one text [T] to a string, or N texts [N, T] to `Texts`."""
    return _decode_rows(super().decode, ids)


class WordPieces(seqio.BertWordPieceVocabulary):
  """BERT word pieces; [CLS] begins, [SEP] ends, [PAD] = 0."""

  @property
  def bos_id(self) -> int:
    """Id of [CLS]."""
    return self.sos_id

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor | tf.RaggedTensor:
    """Pieces of one text, or of each text of a vector; SeqIO takes one only."""
    pieces = self.tf_tokenizer.tokenize(s).merge_dims(-2, -1)
    return pieces if s.shape.rank else pieces[0]

  @functools.cached_property
  def pieces(self) -> tuple[str, ...]:
    """The piece of each id."""
    # SeqIO has no public name for the file's text.
    return tuple(self._wp_model.decode('utf-8').splitlines())

  @functools.cached_property
  def _words(self) -> words_lib.WordPieceWords:
    return words_lib.WordPieceWords(self)

  def decode(self, ids: Iterable[Any]) -> Any:
    """Decodes one text [T] to a string, or N texts [N, T] to `Texts`.

    Words are joined by blanks, as TF Text's `detokenize` has them; SeqIO's own
    `decode` keeps the pieces of a word apart, and [CLS], [SEP] and [PAD].
    """
    return _decode_rows(
        lambda row: ' '.join(w.text for w in self._words(np.asarray(row))), ids
    )


@functools.cache
def t5_vocabulary() -> SentencePieces:
  """T5's 32,000 pieces and 100 extra ids."""
  return SentencePieces(str(_TOKENIZERS / 't5' / 'spiece.model'), extra_ids=100)


@functools.cache
def bert_vocabulary() -> WordPieces:
  """The 30,522 pieces of the uncased BERT models."""
  return WordPieces(
      str(_TOKENIZERS / 'bert_base_uncased' / 'vocab.txt'), lower_case=True
  )


def begin_end_ids(vocabulary: seqio.Vocabulary) -> tuple[int, int]:
  """Returns the ids that open and close a text.

  Args:
    vocabulary: SentencePiece (begins with padding, id 0) or BERT's.

  Returns:
    Begin and end id: (0, 1) for T5, (101, 102) for BERT.

  Raises:
    ValueError: for another kind of vocabulary.
  """
  if isinstance(vocabulary, seqio.SentencePieceVocabulary):
    return vocabulary.pad_id, vocabulary.eos_id
  if isinstance(vocabulary, seqio.BertWordPieceVocabulary):
    return vocabulary.bos_id, vocabulary.eos_id
  raise ValueError(
      f'No begin id is known for {type(vocabulary).__name__}; expected'
      ' SentencePieceVocabulary or BertWordPieceVocabulary.'
  )
