"""LLaVA-Instruct conversations to records, one a row (RefA).

Record, in the names of the reference's TFRecords: `image/encoded`, `image/id`
(text), `conversations/{human,agent}` (as many questions as answers, `<image>`
still in them). Added here: `image/{file_name,height,width}` and `row`, since
ids are not unique. Pictures that are no gray or RGB JPEG are encoded anew.

Rows without a picture are a class of their own in the report, `text_only_row`:
they are left out, and counted.

RefA: haotian-liu/LLaVA `docs/Data.md`.
"""

from collections.abc import Sequence
import dataclasses
import os
import pathlib
from typing import Any

from tasks.build import example_proto
from tasks.build import kinds
from tasks.build import pictures
from tasks.build import reports
from tasks.build import shards

LEAST_SHARDS = 512

HUMAN = 'human'
AGENT = 'gpt'


@dataclasses.dataclass
class Conversation:
  """A picture and what was asked and answered about it.

  Attributes:
    row: its place in the file.
    row_id: as in the file.
    annotation_file: where it is from.
    image: path of the picture below the image root.
    turns: (question, answer).
    path: of the picture, None if it is not there.
  """

  row: int
  row_id: str
  annotation_file: str
  image: str
  turns: list[tuple[str, str]]
  path: pictures.PictureFile | None = None


class RowError(Exception):
  """A row that cannot be used; reason and detail are its arguments."""


def read_split(
    directory: pathlib.Path,
    files: Sequence[pathlib.Path],
    folders: Sequence[pathlib.Path],
    num_shards: int | None,
) -> shards.Split:
  """Reads annotation files into the plan of a split.

  Args:
    directory: where the shards go.
    files: JSON lists of conversations.
    folders: image roots, below which the rows name their pictures.
    num_shards: None takes the reference's number.

  Returns:
    The split; `tally` tells what the files lacked.
  """
  tally = reports.Tally()
  units = []
  for file, rows in kinds.read_documents(files, tally, kinds.CONVERSATIONS):
    for number, row in enumerate(rows):
      conversation = _read_row(row, number, str(file), tally)
      if conversation is not None:
        conversation.path = pictures.find_or_none(folders, [conversation.image])
        units.append(shards.Unit(conversation.path, conversation))
  return shards.Split(
      directory=directory,
      units=units,
      convert=convert_row,
      tally=tally,
      arguments={'format': 'llava'},
      sources=shards.checksums(files),
      num_shards=num_shards
      or shards.default_num_shards(len(units), LEAST_SHARDS),
  )


def _read_row(
    row: Any, number: int, file: str, tally: reports.Tally
) -> Conversation | None:
  """Checks a row; returns None, with a line, for one that is left out."""
  name = f'row {number}'
  if isinstance(row, dict) and not row.get('image'):
    tally.read['text_only_row'] += 1
    tally.reject('text_only_row', name, 'no_image', file, _describe(row))
    return None
  tally.read['row'] += 1
  try:
    if not isinstance(row, dict):
      raise RowError('bad_row', f'found {row!r}'[:80])
    image = _image_path(row['image'])
    turns = _pair_turns(row.get('conversations'), name, file, tally)
  except RowError as e:
    tally.reject('row', name, e.args[0], file, e.args[1])
    return None
  row_id = row.get('id')
  if row_id is None:
    tally.note('row', name, 'no_id', file, 'its number stands for it')
    row_id = name
  return Conversation(number, str(row_id), file, image, turns)


def _describe(row: dict[str, Any]) -> str:
  turns = row.get('conversations')
  count = len(turns) if isinstance(turns, list) else 0
  return f'id {row.get("id")!r}, {count} turns'


def _image_path(image: Any) -> str:
  """Checks the path of a picture, which may not leave the image root."""
  if not isinstance(image, str):
    raise RowError('bad_field', f'image is {image!r}'[:80])
  path = os.path.normpath(image)
  if os.path.isabs(path) or path.startswith('..'):
    raise RowError('path_outside', f'image is {image!r}')
  return path


def _pair_turns(
    turns: Any, name: str, file: str, tally: reports.Tally
) -> list[tuple[str, str]]:
  """Pairs each question with the answer that follows it.

  A turn without its partner, an empty answer and a turn of anybody else are
  left out with a line each.
  """
  if not isinstance(turns, list) or not turns:
    raise RowError('no_conversation', f'conversations is {turns!r}'[:80])
  pairs: list[tuple[str, str]] = []
  question: str | None = None

  def drop(reason: str, detail: str) -> None:
    tally.repair('row', name, reason, file, detail)

  for number, turn in enumerate(turns):
    speaker = turn.get('from') if isinstance(turn, dict) else None
    text = turn.get('value') if isinstance(turn, dict) else None
    if speaker not in (HUMAN, AGENT) or not isinstance(text, str):
      drop('turn_dropped', f'turn {number} is {turn!r}'[:120])
    elif speaker == HUMAN:
      if question is not None:
        drop('question_dropped', f'turn {number - 1} has no answer')
      question = text
    elif question is None:
      drop('answer_dropped', f'turn {number} answers no question')
    elif not text.strip():
      drop('question_dropped', f'turn {number} is an empty answer')
      question = None
    else:
      pairs.append((question, text))
      question = None
  if question is not None:
    drop('question_dropped', f'turn {len(turns) - 1} has no answer')
  if not pairs:
    raise RowError('no_conversation', 'no question has an answer')
  return pairs


def convert_row(conversation: Conversation) -> shards.Converted:
  """Makes the record of a row.

  Args:
    conversation: the row.

  Returns:
    The record, or None where its picture cannot be used.
  """
  tally = reports.Tally()
  name = f'row {conversation.row}'
  try:
    picture, origin = pictures.read_any_picture(
        conversation.path, conversation.image
    )
  except pictures.PictureError as e:
    where = str(conversation.path or conversation.annotation_file)
    tally.reject('row', name, e.reason, where, e.detail)
    return shards.Converted(None, tally)
  where = str(conversation.path)
  if origin:
    tally.repair('row', name, 'picture_reencoded', where, f'was {origin}')
  tally.written['row'] += 1
  record = example_proto.serialize({
      'image/encoded': picture.encoded,
      'image/id': conversation.row_id,
      'image/file_name': conversation.image,
      'image/height': picture.height,
      'image/width': picture.width,
      'row': conversation.row,
      'conversations/human': [question for question, _ in conversation.turns],
      'conversations/agent': [answer for _, answer in conversation.turns],
  })
  return shards.Converted(record, tally)
