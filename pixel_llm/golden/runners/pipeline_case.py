"""What the golden cases of the input pipeline share: strings, settings.

The settings of these cases are sentences, such as "2 captions, 10 tokens"; the
functions here read numbers and quoted texts out of them. A number that no
setting names, such as how wide a padded row is, is the shape of the figure.
"""

from collections.abc import Iterator
import contextlib
import json
import pathlib
import re
import tempfile
from typing import Any

from pixel_llm.golden import case as golden_case


def strings(case: golden_case.Case, section: str) -> dict[str, Any]:
  """The strings that go with a case."""
  path = case.directory / 'io_strings.json'
  return json.loads(path.read_text(encoding='utf-8'))[section]


def find_number(sentence: str, pattern: str) -> int | None:
  """Reads a number, such as that of `(\\d+) tokens`; None if it is not there."""
  match = re.search(pattern, sentence)
  return match and int(match[1])


def search(sentence: str, pattern: str) -> re.Match[str]:
  """Finds what must be there.

  Args:
    sentence: a setting.
    pattern: regular expression.

  Returns:
    The first match.

  Raises:
    ValueError: if there is none.
  """
  match = re.search(pattern, sentence)
  if match is None:
    raise ValueError(
        f'Golden setting {sentence!r} has nothing like {pattern!r}.'
    )
  return match


def number(sentence: str, pattern: str) -> int:
  """Reads a number that must be there, the pattern's first group."""
  return int(search(sentence, pattern)[1])


def quoted(sentence: str, words: str) -> str:
  """Reads the text in quotes after some words, or '' if it is not there."""
  match = re.search(rf'{words} "([^"]*)"', sentence)
  return match[1] if match else ''


@contextlib.contextmanager
def vocabularies(case: golden_case.Case) -> Iterator[dict[str, Any]]:
  """The two tiny vocabularies of the `io_*` cases, by the figures' names."""
  from tasks import vocabularies as vocabularies_lib

  words_and_ids = strings(case, 'decode')
  decode = golden_case.load_case(case.directory, 'io_decode')
  special = words_and_ids['special_bert']
  with tempfile.TemporaryDirectory() as folder:
    model = pathlib.Path(folder) / 'spiece.model'
    model.write_bytes(decode.inputs['sentencepiece_model'].tobytes())
    words = pathlib.Path(folder) / 'vocab.txt'
    words.write_text('\n'.join(words_and_ids['wordpiece_vocab']) + '\n')
    yield {
        'sp': vocabularies_lib.SentencePieces(str(model)),
        'bert': vocabularies_lib.WordPieces(
            str(words),
            lower_case=True,
            start_of_sequence_id=special['bos'],
            end_of_sequence_id=special['eos'],
        ),
    }
