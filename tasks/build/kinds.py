"""Tells the kinds of annotation files apart, for messages that help."""

import json
import pathlib
from typing import Any

MDETR = 'RefCOCO in MDETR layout (one image row with a caption an expression)'
NARRATIVES = 'Localized Narratives (JSON Lines with timed_caption and traces)'
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
        return 'LLaVA conversations'
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
    return 'RefCOCO in UNINEXT layout (lists of objects by split)'
  return f'a JSON object with the keys {sorted(document)[:8]}'


def _describe_coco(document: dict[str, Any]) -> str:
  image = next(iter(document['images']), {})
  annotation = next(iter(document.get('annotations') or []), {})
  if 'caption' in image:
    return MDETR
  if 'refexp_sent' in annotation:
    return 'RefCOCO regrouped by picture'
  if 'caption' in annotation and 'bbox' in annotation:
    return "Visual Genome regions in GRiT's layout"
  if 'caption' in annotation:
    return 'COCO captions'
  if 'bbox' in annotation:
    return 'COCO instances'
  return f'a COCO-like file with the keys {sorted(document)}'


def read_json(path: pathlib.Path, expected: str) -> Any:
  """Reads a JSON document and checks its kind.

  Args:
    path: of the file.
    expected: its kind, as `describe` names it.

  Returns:
    The document.

  Raises:
    WrongKindError: if it is no JSON or of another kind.
  """
  try:
    document = json.loads(path.read_text(encoding='utf-8'))
  except (json.JSONDecodeError, UnicodeDecodeError) as e:
    raise WrongKindError(expected, describe_text(path, e)) from e
  found = describe(document)
  if found != expected:
    raise WrongKindError(expected, found)
  return document


def describe_text(path: pathlib.Path, error: Exception) -> str:
  """Names the kind of a file that is not one JSON document."""
  with open(path, encoding='utf-8', errors='replace') as f:
    line = f.readline().strip()
  try:
    return f'JSON Lines: {describe(json.loads(line))}'
  except json.JSONDecodeError:
    return f'no JSON ({error}; it starts with {line[:40]!r})'
