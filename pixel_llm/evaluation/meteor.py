"""METEOR 1.5, the Java program, as pycocoevalcap runs it (RefA).

The program takes a request a line and answers with lines (RefB):

  SCORE ||| reference ||| … ||| candidate   → the pair's counts
  EVAL ||| counts ||| … ||| counts          → a score a pair, and one for all

A text with a newline or with `|||` would derail this, so texts are cleaned
first. Equal pairs are compared once: detections repeat themselves. The score
of all pairs comes from their counts; it is not the mean of their scores.

RefA: Denkowski and Lavie, Meteor Universal (2014); pycocoevalcap 1.2, meteor.
RefB: the program's manual, option `-stdio`.
"""

from collections.abc import Callable, Sequence
import dataclasses
import subprocess
import tempfile
import threading
from typing import Self

from jaxtyping import Float
import numpy as np

from pixel_llm.evaluation import java

_SEPARATOR = ' ||| '
# RefA: English, with the program's own normalisation of punctuation.
_OPTIONS = ('-', '-', '-stdio', '-l', 'en', '-norm')
# Loading the paraphrases takes seconds, a pair takes a fraction of one
# millisecond; whoever waits longer than this waits for ever.
_START_SECONDS = 300.0
_PAIR_SECONDS = 0.1
_STOP_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class MeteorScores:
  """METEOR of candidates against their references.

  Attributes:
    pairs: of each candidate, 0 to 1.
    corpus: of all together; 0 if there are none.
  """

  pairs: Float[np.ndarray, 'n']
  corpus: float


# Candidates [n] and, for each, its references.
Scorer = Callable[[Sequence[str], Sequence[Sequence[str]]], MeteorScores]


class Meteor:
  """A running METEOR program; use it in a `with` statement, which ends it."""

  def __init__(self):
    """Starts the program.

    Raises:
      RuntimeError: if Java or pycocoevalcap is missing.
    """
    archive = java.find_archive('meteor', 'meteor-1.5.jar')
    command = java.command('-Xmx2G', '-jar', archive, *_OPTIONS)
    # A file never fills up, as a pipe that nobody reads would.
    self._errors = tempfile.TemporaryFile()
    self._process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=self._errors,
        encoding='utf-8',
    )

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exception: object) -> None:
    self.close()

  def close(self) -> None:
    """Ends the program and waits for it; closing twice does no harm."""
    try:
      # Left open by a program that died with requests unread.
      self._process.stdin.close()
    except BrokenPipeError:
      pass
    try:
      self._process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    self._process.stdout.close()
    self._errors.close()

  def __call__(
      self, candidates: Sequence[str], references: Sequence[Sequence[str]]
  ) -> MeteorScores:
    """Scores candidates.

    Args:
      candidates: texts [n]; an empty one scores 0.
      references: for each candidate, one text or more.

    Returns:
      The scores.

    Raises:
      ValueError: if a candidate has no reference, or the lengths differ.
      RuntimeError: if the program fails.
    """
    if len(candidates) != len(references):
      raise ValueError(
          f'METEOR: {len(candidates)} candidates, but references for'
          f' {len(references)}.'
      )
    rows = [
        (*map(_clean, texts), _clean(candidate))
        for candidate, texts in zip(candidates, references)
    ]
    for number, row in enumerate(rows):
      if len(row) < 2:
        raise ValueError(
            f'METEOR: candidate {number} ({candidates[number]!r}) has no'
            ' reference.'
        )
    if not rows:
      return MeteorScores(np.zeros(0), 0.0)
    unique = list(dict.fromkeys(rows))
    requests = [_SEPARATOR.join(('SCORE', *row)) for row in unique]
    counts = dict(zip(unique, self._ask(requests, len(requests))))
    request = _SEPARATOR.join(('EVAL', *(counts[row] for row in rows)))
    *pairs, corpus = map(float, self._ask([request], len(rows) + 1))
    return MeteorScores(np.asarray(pairs), corpus)

  def _ask(self, requests: Sequence[str], num_replies: int) -> list[str]:
    """Sends requests while it reads the replies, so that no pipe fills up."""
    writer = threading.Thread(target=self._write, args=(requests,))
    patience = _START_SECONDS + _PAIR_SECONDS * num_replies
    watchdog = threading.Timer(patience, self._process.kill)
    replies = []
    writer.start()
    watchdog.start()
    try:
      while len(replies) < num_replies:
        line = self._process.stdout.readline()
        if not line:
          raise RuntimeError(self._failure(len(replies)))
        if line.startswith('Error'):
          raise RuntimeError(
              f'METEOR answered {line.strip()!r} after {len(replies)} good'
              f' answers to {requests[len(replies) :][:1]}.'
          )
        replies.append(line.strip())
    except BaseException:
      # The writer may wait for a program that nobody reads any more.
      self._process.kill()
      raise
    finally:
      watchdog.cancel()
      writer.join()
    return replies

  def _write(self, requests: Sequence[str]) -> None:
    try:
      self._process.stdin.writelines(f'{request}\n' for request in requests)
      self._process.stdin.flush()
    except BrokenPipeError:
      # The program has ended; the reader sees it too and tells why.
      return

  def _failure(self, num_answered: int) -> str:
    """Why the program gave no more answers."""
    status = self._process.wait()
    self._errors.seek(0)
    errors = self._errors.read().decode('utf-8', 'replace').strip()
    return (
        f'METEOR ended with status {status} after {num_answered} answers; a'
        ' negative status is a signal, -9 also the end of our patience. It'
        f' said: {errors[-2000:] or "nothing"}'
    )


def meteor_scores(
    candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> MeteorScores:
  """Starts METEOR, scores as `Meteor.__call__` does, and ends it."""
  with Meteor() as meteor:
    return meteor(candidates, references)


def _clean(text: str) -> str:
  """A text that is one field of one line."""
  return java.one_line(text.replace('|||', ' '))
