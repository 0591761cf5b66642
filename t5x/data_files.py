"""Finds files that gin files name, such as vocabularies, from any directory."""

import os
import pathlib

_DIRECTORY_OF_T5X = pathlib.Path(__file__).parent.parent


def find_data_file(path: str) -> str:
  """Finds a file by a path relative to here or to the directory with `t5x`.

  Gin's includes are found likewise. A URL, such as gs://…, stays as it is.

  Args:
    path: the path.

  Returns:
    The path to open.

  Raises:
    FileNotFoundError: if the file is in neither place.
  """
  path = os.fspath(path)
  if '://' in path:
    return path
  tried = [pathlib.Path(path), _DIRECTORY_OF_T5X / path]
  for candidate in tried:
    if candidate.exists():
      return str(candidate)
  listing = ', '.join(str(candidate.absolute()) for candidate in tried)
  raise FileNotFoundError(
      f'{path!r} was not found; tried {listing}. Give the path of your copy in'
      ' gin, for the vocabulary as VOCABULARY_FILE.'
  )
