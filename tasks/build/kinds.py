"""Tells the kinds of annotation files apart, for messages that help."""

from collections.abc import Iterator, Sequence
import json
import pathlib
from typing import Any

from tasks.build import reports

MDETR = 'RefCOCO in MDETR layout (one image row with a caption an expression)'
NARRATIVES = 'Localized Narratives (JSON Lines with timed_caption and traces)'
UNINEXT = 'RefCOCO in UNINEXT layout (lists of objects by split)'
REGIONS = "Visual Genome regions in GRiT's layout"
CONVERSATIONS = 'LLaVA conversations'
CAPTIONS = 'COCO captions'
KARPATHY = "Karpathy's splits of COCO captions"
_NARRATIVE_CAPTIONS = 'Localized Narratives captions (JSON Lines, no traces)'


class WrongKindError(Exception):
  """A file of another kind than the converter reads."""

  def __init__(self, expected: str, found: str):
    super().__init__(f'expected {expected}, found {found}')


def describe(document: Any) -> str:
  """Names the kind of a parsed JSON document, or its outer shape."""
  if isinstance(document, list):
    if document and isinstance(document[0], dict):
      if 'conversations' in document[0]:
        return CONVERSATIONS
      if 'regions' in document[0]:
        return 'Visual Genome region descriptions'
    return f'a JSON list of {len(document)} entries'
  if not isinstance(document, dict):
    return f'a JSON {type(document).__name__}'
  if 'timed_caption' in document and 'traces' in document:
    return NARRATIVES
  if 'annotator_id' in document and 'caption' in document:
    return _NARRATIVE_CAPTIONS
  if isinstance(document.get('images'), list):
    return _describe_coco(document)
  rows = [rows for rows in document.values() if isinstance(rows, list) and rows]
  if rows and isinstance(rows[0][0], dict) and 'expressions' in rows[0][0]:
    return UNINEXT
  return f'a JSON object with the keys {sorted(document)[:8]}'


def _describe_coco(document: dict[str, Any]) -> str:
  image = next(iter(document['images']), {})
  annotation = next(iter(document.get('annotations') or []), {})
  if 'caption' in image:
    return MDETR
  if 'sentences' in image:
    return KARPATHY
  if 'refexp_sent' in annotation:
    return 'RefCOCO regrouped by picture'
  if 'caption' in annotation and 'bbox' in annotation:
    return REGIONS
  if 'caption' in annotation:
    return CAPTIONS
  if 'bbox' in annotation:
    return 'COCO instances'
  return f'a COCO-like file with the keys {sorted(document)}'


def read_json(path: pathlib.Path, *expected: str) -> Any:
  """Reads a JSON document and checks its kind.

  Args:
    path: of the file.
    *expected: the kinds it may have, as `describe` names them.

  Returns:
    The document.

  Raises:
    WrongKindError: if it is no JSON or of another kind.
  """
  wanted = ' or '.join(expected)
  try:
    document = json.loads(path.read_text(encoding='utf-8'))
  except (json.JSONDecodeError, UnicodeDecodeError) as e:
    raise WrongKindError(wanted, describe_text(path, e)) from e
  found = describe(document)
  if found not in expected:
    raise WrongKindError(wanted, found)
  return document


def read_documents(
    files: Sequence[pathlib.Path], tally: reports.Tally, *expected: str
) -> Iterator[tuple[pathlib.Path, Any]]:
  """Reads JSON files one after the other; one of another kind is rejected.

  Args:
    files: their paths.
    tally: counts them.
    *expected: the kinds they may have.

  Yields:
    The path and the document of each file that has the kind.
  """
  for file in files:
    tally.read['file'] += 1
    try:
      document = read_json(file, *expected)
    except WrongKindError as e:
      tally.reject('file', file.name, 'wrong_kind', str(file), str(e))
      continue
    tally.written['file'] += 1
    yield file, document


def describe_text(path: pathlib.Path, error: Exception) -> str:
  """Names the kind of a file that is not one JSON document."""
  with open(path, encoding='utf-8', errors='replace') as f:
    line = f.readline().strip()
  try:
    return f'JSON Lines: {describe(json.loads(line))}'
  except json.JSONDecodeError:
    return f'no JSON ({error}; it starts with {line[:40]!r})'
