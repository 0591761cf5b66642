"""Who made the pictures, and under which licence: `LICENSES.tsv`.

A tab-separated table with a header beside the pictures. Columns are found by
name: `file`; `licence` or `license`, `licence_url`; `flickr_url`, `url` or
`source`.
"""

from collections.abc import Sequence
import csv
import dataclasses
import pathlib

FILE_NAME = 'LICENSES.tsv'
_FILE_COLUMNS = ('file', 'file_name', 'picture', 'image')
_LICENCE_COLUMNS = ('licence', 'license', 'licence_name', 'license_name')
_LICENCE_ADDRESS_COLUMNS = ('licence_url', 'license_url')
_ADDRESS_COLUMNS = ('flickr_url', 'url', 'source', 'flickr')


@dataclasses.dataclass(frozen=True)
class Credit:
  """Origin of a picture; a field is empty where the table does not tell."""

  licence: str
  licence_address: str
  address: str


def find_tables(image_dirs: Sequence[str]) -> list[pathlib.Path]:
  """Looks for tables in picture folders and the two folders above each."""
  tables: dict[pathlib.Path, None] = {}
  for folder in image_dirs:
    resolved = pathlib.Path(folder).resolve()
    for parent in [resolved, *list(resolved.parents)[:2]]:
      if (parent / FILE_NAME).is_file():
        tables[parent / FILE_NAME] = None
  return list(tables)


def _column(header: Sequence[str], names: Sequence[str]) -> str | None:
  """The first of these names that the table has."""
  return next((name for name in names if name in header), None)


def read_credits(tables: Sequence[pathlib.Path]) -> dict[str, Credit]:
  """Reads tables; the first that names a picture counts.

  Args:
    tables: files with a header line.

  Returns:
    Credit by file name without folders.

  Raises:
    ValueError: if a table has no column of file names.
  """
  credits: dict[str, Credit] = {}
  for path in tables:
    with open(path, encoding='utf-8', newline='') as f:
      reader = csv.DictReader(f, delimiter='\t', quoting=csv.QUOTE_NONE)
      header = list(reader.fieldnames or [])
      file_column = _column(header, _FILE_COLUMNS)
      if file_column is None:
        raise ValueError(
            f'{path}: columns are {header}, but none of {_FILE_COLUMNS} is'
            ' there to name the picture.'
        )
      columns = [
          _column(header, names)
          for names in (
              _LICENCE_COLUMNS,
              _LICENCE_ADDRESS_COLUMNS,
              _ADDRESS_COLUMNS,
          )
      ]
      for row in reader:
        fields = [(row[name] or '') if name else '' for name in columns]
        name = pathlib.PurePath(row[file_column]).name
        credits.setdefault(name, Credit(*fields))
  return credits
