"""Finding built splits, their manifests and their records."""

from collections.abc import Callable, Iterator
import contextlib
import json
import pathlib
from typing import Any

from array_record.python import array_record_module

from tasks.build import shard_files


class BuiltSetError(Exception):
  """A folder that holds no finished split; its argument tells which."""


def find_splits(directory: pathlib.Path) -> list[pathlib.Path]:
  """Returns the splits in a folder, at any depth.

  Args:
    directory: of one split, or of sets of them.

  Raises:
    BuiltSetError: if none is finished, or one is not.
  """
  done = {path.parent for path in directory.rglob(shard_files.MANIFEST)}
  shards = {path.parent for path in directory.rglob('data-*.array_record')}
  if not done | shards:
    raise BuiltSetError(
        f'{directory}: no {shard_files.MANIFEST} and no shard in it or below;'
        ' name a folder that `python -m tasks.build` wrote.'
    )
  unfinished = sorted(map(str, shards - done))
  if unfinished:
    raise BuiltSetError(
        f'{unfinished}: shards without {shard_files.MANIFEST}, so the'
        ' conversion is not done. Run it again; it goes on where it stopped.'
    )
  return sorted(done)


def read_manifest(split: pathlib.Path) -> dict[str, Any]:
  """Reads the manifest of a split.

  Args:
    split: its folder.

  Raises:
    BuiltSetError: if it is no JSON, or of before statistics were in it.
  """
  path = split / shard_files.MANIFEST
  try:
    manifest = json.loads(path.read_text(encoding='utf-8'))
  except (json.JSONDecodeError, UnicodeDecodeError) as e:
    raise BuiltSetError(f'{path} is no JSON: {e}') from e
  missing = {'shards', 'statistics', 'counts'} - set(manifest)
  if missing:
    raise BuiltSetError(
        f'{path} lacks {sorted(missing)}: an older converter wrote it. Run the'
        ' conversion again.'
    )
  return manifest


@contextlib.contextmanager
def open_shard(path: pathlib.Path) -> Iterator[Callable[[int], bytes]]:
  """Opens a shard; gives what reads a record by its number.

  Args:
    path: of the file.

  Raises:
    RuntimeError: there and at reading, from ArrayRecord, if a chunk is broken.
  """
  reader = array_record_module.ArrayRecordReader(
      str(path), 'readahead_buffer_size:0'
  )
  try:
    yield lambda number: reader.read([number])[0]
  finally:
    reader.close()
