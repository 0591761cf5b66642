"""The Penn Treebank tokenizer of the caption metrics (RefA).

Splits and lower-cases texts, then drops punctuation: "A man's dog, happy." is
`a man 's dog happy`. BLEU, CIDEr, ROUGE-L and METEOR of captions are defined on
its tokens.

RefA: pycocoevalcap 1.2, tokenizer: Stanford CoreNLP 3.4.1, the Java program.
"""

from collections.abc import Sequence
import subprocess

from pixel_llm.evaluation import java

_TIMEOUT_SECONDS = 1800.0


def tokenize(texts: Sequence[str]) -> list[str]:
  """Tokenizes texts, each to one string with a blank between tokens.

  Args:
    texts: any strings; a newline in one counts as a blank.

  Returns:
    As many strings, empty for a text without words.

  Raises:
    RuntimeError: if Java or pycocoevalcap is missing, or the program fails.
  """
  lines = [java.one_line(text) for text in texts]
  # Equal lines have equal tokens, an empty one has none.
  unique = [line for line in dict.fromkeys(lines) if line]
  tokens = dict(zip(unique, _run(unique))) if unique else {}
  return [tokens[line] if line else '' for line in lines]


def _run(lines: Sequence[str]) -> list[str]:
  """Runs the program over lines."""
  archive = java.find_archive('tokenizer', 'stanford-corenlp-3.4.1.jar')
  from pycocoevalcap.tokenizer import ptbtokenizer

  completed = subprocess.run(
      java.command(
          '-cp',
          archive,
          'edu.stanford.nlp.process.PTBTokenizer',
          '-preserveLines',
          '-lowerCase',
      ),
      input=''.join(f'{line}\n' for line in lines).encode('utf-8'),
      capture_output=True,
      timeout=_TIMEOUT_SECONDS,
  )
  errors = completed.stderr.decode('utf-8', 'replace')
  if completed.returncode:
    raise RuntimeError(
        f'The PTB tokenizer ended with status {completed.returncode}:'
        f' {errors[-2000:]}'
    )
  # Only '\n' ends a line here; str.splitlines would know others.
  outputs = completed.stdout.decode('utf-8').removesuffix('\n').split('\n')
  if len(outputs) != len(lines):
    raise RuntimeError(
        f'The PTB tokenizer made {len(outputs)} lines of {len(lines)}:'
        f' {errors[-2000:]}'
    )
  punctuation = frozenset(ptbtokenizer.PUNCTUATIONS)
  return [
      ' '.join(token for token in line.split() if token not in punctuation)
      for line in outputs
  ]
