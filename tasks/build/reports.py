"""What a conversion left out or mended, and the counts that must add up."""

import collections
from collections.abc import Iterable
import dataclasses
from typing import Any

REJECTED = 'rejected'
REPAIRED = 'repaired'
NOTED = 'noted'


@dataclasses.dataclass(frozen=True)
class Note:
  """One line of `rejects.jsonl`.

  Attributes:
    level: what it is about: file, image, object, expression or narrative.
    id: its id in the original data, or `file:line` where it has none.
    action: rejected (left out), repaired (changed, kept) or noted (kept).
    reason: a short word, the same for all cases of a kind.
    file: the annotation file or picture that shows it.
    detail: what was found, with values.
  """

  level: str
  id: str
  action: str
  reason: str
  file: str
  detail: str = ''


@dataclasses.dataclass
class Tally:
  """Notes, and how many things of each level were read and written.

  Attributes:
    notes: in the order of the data.
    read: level to number.
    written: level to number.
    fields: of TFRecords, what became of every field; see `field_audit`.
  """

  notes: list[Note] = dataclasses.field(default_factory=list)
  read: collections.Counter[str] = dataclasses.field(
      default_factory=collections.Counter
  )
  written: collections.Counter[str] = dataclasses.field(
      default_factory=collections.Counter
  )
  fields: collections.Counter[tuple[str, str]] = dataclasses.field(
      default_factory=collections.Counter
  )

  def add(self, other: 'Tally') -> None:
    """Appends another tally."""
    self.notes.extend(other.notes)
    self.read.update(other.read)
    self.written.update(other.written)
    self.fields.update(other.fields)

  def reject(
      self, level: str, name: Any, reason: str, file: str, detail: str = ''
  ) -> None:
    """Notes that something was left out."""
    self.notes.append(Note(level, str(name), REJECTED, reason, file, detail))

  def repair(
      self, level: str, name: Any, reason: str, file: str, detail: str = ''
  ) -> None:
    """Notes that something was changed and kept."""
    self.notes.append(Note(level, str(name), REPAIRED, reason, file, detail))

  def note(
      self, level: str, name: Any, reason: str, file: str, detail: str = ''
  ) -> None:
    """Notes that something odd was kept as it is."""
    self.notes.append(Note(level, str(name), NOTED, reason, file, detail))

  @property
  def rejected(self) -> collections.Counter[str]:
    """Level to number of rejections."""
    return count_by_level(self.notes, REJECTED)

  def counts(self) -> dict[str, dict[str, int]]:
    """Level to its numbers; checks that read = written + rejected.

    Returns:
      For each level `read`, `written`, `rejected`, `repaired`, `noted`.
    """
    rejected = self.rejected
    repaired = count_by_level(self.notes, REPAIRED)
    noted = count_by_level(self.notes, NOTED)
    levels = sorted({*self.read, *self.written, *rejected, *repaired, *noted})
    for level in levels:
      assert self.read[level] == self.written[level] + rejected[level], (
          f'{level}: read {self.read[level]}, written {self.written[level]},'
          f' rejected {rejected[level]} do not add up.'
      )
    return {
        level: {
            'read': self.read[level],
            'written': self.written[level],
            'rejected': rejected[level],
            'repaired': repaired[level],
            'noted': noted[level],
        }
        for level in levels
    }

  def reasons(self) -> dict[str, dict[str, dict[str, int]]]:
    """Level to action to reason to number; they sum to `counts`."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for note in sorted(
        self.notes, key=lambda n: (n.level, n.action, n.reason)
    ):
      numbers = found.setdefault(note.level, {}).setdefault(note.action, {})
      numbers[note.reason] = numbers.get(note.reason, 0) + 1
    return found

  def to_json(self) -> dict[str, Any]:
    """As plain lists and dicts."""
    return {
        'notes': [dataclasses.asdict(note) for note in self.notes],
        'read': dict(self.read),
        'written': dict(self.written),
        'fields': self.audit(),
    }

  def audit(self) -> dict[str, dict[str, int]]:
    """Field to outcome to number of values."""
    found: dict[str, dict[str, int]] = {}
    for (field, outcome), number in sorted(self.fields.items()):
      found.setdefault(field, {})[outcome] = number
    return found

  @classmethod
  def from_json(cls, stored: dict[str, Any]) -> 'Tally':
    """Reads back what `to_json` made."""
    return cls(
        notes=[Note(**note) for note in stored['notes']],
        read=collections.Counter(stored['read']),
        written=collections.Counter(stored['written']),
        fields=collections.Counter({
            (field, outcome): number
            for field, outcomes in stored['fields'].items()
            for outcome, number in outcomes.items()
        }),
    )


def count_by_level(
    notes: Iterable[Note], action: str
) -> collections.Counter[str]:
  """Counts the notes of one action by level."""
  return collections.Counter(
      note.level for note in notes if note.action == action
  )
