"""Vocabularies, rows of tokens, and which utterance a token takes."""

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest
import seqio
import tensorflow as tf

from tasks import localized_narratives
from tasks import text_ops
from tasks import vocabularies

_T5_SENTENCE = 'translate English to German: The house is wonderful.'
_T5_IDS = [13959, 1566, 12, 2968, 10, 37, 629, 19, 1627, 5]


def test_t5_gives_the_published_ids():
  vocabulary = vocabularies.t5_vocabulary()
  tokens = text_ops.tokenize(tf.constant([_T5_SENTENCE]), vocabulary, 13)
  assert tokens.numpy().tolist() == [[0, *_T5_IDS, 1, 0]]
  assert vocabulary.vocab_size == 32100


def test_bert_gives_the_published_ids():
  vocabulary = vocabularies.bert_vocabulary()
  tokens = text_ops.tokenize(tf.constant(['Hello, world']), vocabulary, 6)
  assert tokens.numpy().tolist() == [[101, 7592, 1010, 2088, 102, 0]]


def test_a_long_text_loses_its_end_and_then_its_tail():
  vocabulary = vocabularies.t5_vocabulary()
  tokens = text_ops.tokenize(tf.constant([_T5_SENTENCE]), vocabulary, 4)
  assert tokens.numpy().tolist() == [[0, *_T5_IDS[:3]]]


def test_decode_takes_one_text_or_those_of_an_image():
  vocabulary = vocabularies.t5_vocabulary()
  texts = ['the left man', 'a dog']
  tokens = text_ops.tokenize(tf.constant(texts), vocabulary, 8).numpy()
  decoded = vocabulary.decode(tokens)
  assert decoded == texts
  np.testing.assert_array_equal(decoded.ids, tokens)
  assert vocabulary.decode(tokens[1]) == 'a dog'
  with pytest.raises(ValueError, match=r'\(1, 2, 8\)'):
    vocabulary.decode(tokens[np.newaxis])


def test_word_pieces_are_decoded_to_words_without_marks():
  vocabulary = vocabularies.bert_vocabulary()
  texts = ['Two surfboarders, zigzagging!', '']
  tokens = text_ops.tokenize(tf.constant(texts), vocabulary, 14).numpy()
  decoded = vocabulary.decode(tokens)
  assert decoded == ['two surfboarders , zigzagging !', '']
  assert vocabulary.decode(tokens[0]) == decoded[0]
  np.testing.assert_array_equal(decoded.ids, tokens)


def test_another_vocabulary_has_no_known_begin():
  with pytest.raises(ValueError, match='ByteVocabulary'):
    vocabularies.begin_end_ids(seqio.ByteVocabulary())


def test_requests_for_a_caption_fit_the_recipe_with_their_end():
  for vocabulary in (
      vocabularies.t5_vocabulary(),
      vocabularies.bert_vocabulary(),
  ):
    prompts = tf.constant(localized_narratives.LONG_CAPTION_PROMPTS)
    tokens = text_ops.tokenize(prompts, vocabulary, 8, begin=False).numpy()
    assert len(tokens) == 11
    assert np.all(np.any(tokens == vocabulary.eos_id, axis=1)), tokens


def _nearest(num_tokens, num_traced):
  """The rule, written out with fractions."""
  places = []
  for j in range(1, num_tokens + 1):
    # place = j/J · (1 - 1/K) + 1/K, in units of 1/(J·K).
    place = j * (num_traced - 1) + num_tokens
    distances = [abs(place - (k + 1) * num_tokens) for k in range(num_traced)]
    low = min(distances)
    places.append({k for k, d in enumerate(distances) if d == low})
  return places


@settings(max_examples=60, deadline=None)
@given(
    traced=st.lists(st.booleans(), min_size=1, max_size=9),
    num_tokens=st.integers(1, 20),
    begin=st.integers(0, 1),
)
def test_tokens_spread_evenly_over_traced_utterances(traced, num_tokens, begin):
  mask = np.array([[False] * begin + [True] * num_tokens + [False]])
  marks = np.arange(1, len(traced) + 1, dtype=np.float32).reshape(1, -1, 1)
  given_marks = localized_narratives.token_marks(
      tf.constant(marks), tf.constant(mask), tf.constant([traced])
  ).numpy()[0, :, 0]
  assert np.all(given_marks[~mask[0]] == 0)
  numbers = np.flatnonzero(traced)
  if not len(numbers):
    assert np.all(given_marks == 0)
    return
  chosen = given_marks[mask[0]].astype(int) - 1
  for mark, allowed in zip(chosen, _nearest(num_tokens, len(numbers))):
    assert mark in {numbers[k] for k in allowed}
  assert np.all(np.diff(chosen) >= 0)
  assert chosen[-1] == numbers[-1]


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=30), st.booleans())
def test_any_caption_keeps_tokens_and_points_in_step(text, bert):
  vocabulary = (
      vocabularies.bert_vocabulary() if bert else vocabularies.t5_vocabulary()
  )
  text = text.encode('utf-8', 'ignore').decode()
  tokens = text_ops.tokenize(tf.constant([text]), vocabulary, 24)
  mask = text_ops.text_token_mask(tokens, vocabulary)
  boxes = tf.constant([[[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]])
  points = localized_narratives.token_marks(
      boxes, mask, tf.constant([[True, True]])
  ).numpy()
  has_point = np.any(points != 0, axis=-1)
  np.testing.assert_array_equal(has_point, mask.numpy())
  ids = tokens.numpy()
  marks = [0, *vocabularies.begin_end_ids(vocabulary)]
  np.testing.assert_array_equal(mask.numpy(), ~np.isin(ids, marks))
