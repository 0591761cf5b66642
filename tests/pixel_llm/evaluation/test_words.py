"""Words of token rows."""

import pathlib

import numpy as np
import pytest
import sentencepiece

from pixel_llm.evaluation import words

_MODEL = (
    pathlib.Path(__file__).parents[3]
    / 'tasks/assets/tokenizers/t5/spiece.model'
)


@pytest.fixture(name='processor', scope='module')
def _processor():
  return sentencepiece.SentencePieceProcessor(model_file=str(_MODEL))


def _row(processor, text):
  """Begin, text, end, and what must not be read."""
  return np.asarray([0, *processor.encode(text), 1, 0, 71, 71], np.int32)


def test_pieces_of_a_word_stay_together(processor):
  row = _row(processor, 'A surfboarder rides, the  wave')
  cut = words.SentencePieceWords(processor)(row)
  texts = [word.text for word in cut]
  assert texts == ['A', 'surfboarder', 'rides,', 'the', 'wave']
  # Every text token once, in order, and no begin or end.
  positions = [p for word in cut for p in word.positions]
  assert positions == list(range(1, list(row).index(1)))


def test_ids_without_a_piece_are_left_out(processor):
  row = np.asarray([0, 32000, 71, 32099, 1], np.int32)
  cut = words.SentencePieceWords(processor)(row)
  assert cut == [words.Word('A', (2,))]


def test_a_row_without_end_is_read_to_its_end(processor):
  row = np.asarray([0, 71, 71, 71], np.int32)
  assert len(words.SentencePieceWords(processor)(row)) == 3


class _WordPieces:
  pieces = ('[PAD]', '[CLS]', '[SEP]', 'surf', '##board', '.', '##s')
  pad_id, bos_id, eos_id = 0, 1, 2


def test_word_pieces_that_go_on_stay_with_their_word():
  row = np.asarray([1, 3, 4, 6, 5, 0, 99, 3, 2, 3], np.int32)
  cut = words.words_of(_WordPieces())(row)
  assert cut == [
      words.Word('surfboards', (1, 2, 3)),
      words.Word('.', (4,)),
      words.Word('surf', (7,)),
  ]
  # Nothing stands before it that it could go on with.
  assert words.words_of(_WordPieces())(row[3:4]) == [words.Word('s', (0,))]


def test_only_sentence_pieces_are_known():
  with pytest.raises(ValueError, match='Vocabulary dict has no SentencePiece'):
    words.SentencePieceWords({})


def test_the_box_of_a_word_holds_the_points_of_its_tokens():
  points = np.arange(16.0).reshape(4, 2, 2)
  points[3] = np.nan
  cut = [words.Word('ab', (0, 1)), words.Word('c', (2,)), words.Word('d', (3,))]
  boxes = words.word_boxes(cut, points, np.asarray([True, True, False, True]))
  np.testing.assert_array_equal(boxes[0], [0, 1, 6, 7])
  assert boxes[1:] == [None, None]
