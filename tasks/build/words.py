"""Captions and phrases as converters take them."""

from typing import Any


class WordsError(Exception):
  """A text without words; its first argument tells what was found."""


def parse(text: Any) -> str:
  """Returns a text with single blanks and no line break.

  A line break inside a reference would put METEOR's line protocol out of
  step; annotators left many at the ends.

  Args:
    text: what stands in the file.

  Raises:
    WordsError: if it is no text, or has no letter or digit.
  """
  if not isinstance(text, str) or not any(c.isalnum() for c in text):
    raise WordsError(f'found {text!r}'[:80])
  return ' '.join(text.split())
