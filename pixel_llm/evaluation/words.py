"""Words of a token row, and where each of them points.

A SentencePiece that begins with "▁" begins a word; the pieces after it belong
to it: "▁sur", "f", "board", "▁." are the words "surfboard" and ".". A word
piece of BERT that begins with "##" goes on with the word before it: "surf",
"##board", "." are the same two.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

from jaxtyping import Bool, Float, Int
import numpy as np

_WORD_BEGIN = '▁'
_WORD_GOES_ON = '##'


@dataclasses.dataclass(frozen=True)
class Word:
  """A word of a caption.

  Attributes:
    text: as written, without blanks around it.
    positions: its tokens' places in the row.
  """

  text: str
  positions: tuple[int, ...]


class SentencePieceWords:
  """Cuts token rows into words with a SentencePiece vocabulary."""

  def __init__(self, vocabulary: Any):
    """Takes the vocabulary.

    Args:
      vocabulary: `seqio.SentencePieceVocabulary` or a SentencePieceProcessor.

    Raises:
      ValueError: if it has no SentencePiece processor.
    """
    processor = getattr(vocabulary, 'tokenizer', vocabulary)
    if not hasattr(processor, 'IdToPiece'):
      raise ValueError(
          f'Vocabulary {type(vocabulary).__name__} has no SentencePiece pieces;'
          ' give a seqio.SentencePieceVocabulary, or None to write no words.'
      )
    self._processor = processor

  def __call__(self, tokens: Int[np.ndarray, 'T']) -> list[Word]:
    """Cuts a row into words.

    Args:
      tokens: begin, text, end, padding; what stands behind the end is ignored,
        and so are begin, padding and ids without a piece.

    Returns:
      The words in order.
    """
    words: list[list[int]] = []
    ids = [int(i) for i in tokens]
    for position, token in enumerate(ids):
      if token == self._processor.eos_id():
        break
      if token >= self._processor.GetPieceSize():
        continue
      if self._processor.IsControl(token):
        continue
      begins = self._processor.IdToPiece(token).startswith(_WORD_BEGIN)
      if begins or not words:
        words.append([])
      words[-1].append(position)
    named = [
        Word(
            self._processor.decode([ids[p] for p in word]).strip(), tuple(word)
        )
        for word in words
    ]
    # A lone "▁" is a blank too many.
    return [word for word in named if word.text]


class WordPieceWords:
  """Cuts token rows into words with a vocabulary of BERT's word pieces."""

  def __init__(self, vocabulary: Any):
    """Takes the vocabulary.

    Args:
      vocabulary: `tasks.vocabularies.WordPieces`: `pieces`, the text of each
        id, and the ids `bos_id`, `eos_id` and `pad_id`.
    """
    self._pieces = vocabulary.pieces
    self._eos_id = vocabulary.eos_id
    self._left_out = (vocabulary.bos_id, vocabulary.pad_id)

  def __call__(self, tokens: Int[np.ndarray, 'T']) -> list[Word]:
    """Cuts a row into words; as `SentencePieceWords`."""
    words: list[list[int]] = []
    ids = [int(i) for i in tokens]
    for position, token in enumerate(ids):
      if token == self._eos_id:
        break
      if token in self._left_out or token >= len(self._pieces):
        continue
      goes_on = self._pieces[token].startswith(_WORD_GOES_ON)
      if not (goes_on and words):
        words.append([])
      words[-1].append(position)
    return [
        Word(
            ''.join(
                self._pieces[ids[p]].removeprefix(_WORD_GOES_ON) for p in word
            ),
            tuple(word),
        )
        for word in words
    ]


Words = SentencePieceWords | WordPieceWords


def words_of(vocabulary: Any) -> Words:
  """Returns what cuts the rows of a vocabulary: BERT's or SentencePiece."""
  if hasattr(vocabulary, 'pieces'):
    return WordPieceWords(vocabulary)
  return SentencePieceWords(vocabulary)


def word_boxes(
    words: Sequence[Word],
    points: Float[np.ndarray, 'T P 2'],
    point_mask: Bool[np.ndarray, 'T'],
) -> list[Float[np.ndarray, '4'] | None]:
  """The box around the points of each word's tokens.

  Args:
    words: from one token row.
    points: (x, y) of each token of that row.
    point_mask: False for a token without points.

  Returns:
    x0 y0 x1 y1 in the frame of the points; None for a word without points, or
    with one that is no finite number.
  """
  boxes: list[np.ndarray | None] = []
  for word in words:
    kept = [p for p in word.positions if point_mask[p]]
    around = points[kept].reshape(-1, 2)
    if not kept or not np.all(np.isfinite(around)):
      boxes.append(None)
    else:
      boxes.append(np.concatenate([around.min(0), around.max(0)]))
  return boxes
