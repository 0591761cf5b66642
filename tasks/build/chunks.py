"""Where each record of an ArrayRecord file lies, byte by byte (RefA).

Damage can then be told to the record, whichever bit it hit, without reading
the damaged file. An ArrayRecord file is a Riegeli file: chunks one after the
other, of which every 64 KiB interrupts one with a block header. With
`group_size:1` the file opens with a signature chunk, then comes a chunk a
record, then the index.

RefA: google/riegeli `doc/riegeli_records_file_format.md`.
"""

from collections.abc import Iterator
import struct

_BLOCK_SIZE = 1 << 16
_BLOCK_HEADER_SIZE = 24
_USABLE_SIZE = _BLOCK_SIZE - _BLOCK_HEADER_SIZE
# Header hash, size of the data, its hash, type and number of records, decoded
# size. The type is the lowest byte of the fourth number.
_CHUNK_HEADER = struct.Struct('<5Q')
_SIMPLE_RECORDS = ord('r')


def record_bounds(content: bytes, num_records: int) -> list[int]:
  """Finds the bytes of each record in an undamaged file.

  Args:
    content: of the file, written with one record a group.
    num_records: how many were written.

  Returns:
    The begin of record 0 and the end of every record, `num_records` + 1
    offsets; record i lies from bound i to bound i + 1. What lies outside is
    the signature and the index.

  Raises:
    ValueError: if the file has fewer chunks, or one that is no single record.
  """
  bounds = []
  for begin, end, kind, chunk_records in _chunks(content):
    if not bounds:
      bounds.append(end)  # The signature.
      continue
    if len(bounds) > num_records:
      break
    if (kind, chunk_records) != (_SIMPLE_RECORDS, 1):
      raise ValueError(
          f'The chunk at byte {begin} has type {chr(kind)!r} and'
          f' {chunk_records} records; expected one record a chunk, as'
          ' group_size:1 writes.'
      )
    bounds.append(end)
  if len(bounds) != num_records + 1:
    raise ValueError(
        f'Found {len(bounds) - 1} records; {num_records} were written.'
    )
  return bounds


def _chunks(content: bytes) -> Iterator[tuple[int, int, int, int]]:
  """Yields begin, end, type and number of records of every chunk."""
  begin = 0
  while begin < len(content):
    _, data_size, _, kind_and_records, _ = _CHUNK_HEADER.unpack(
        _read(content, begin, _CHUNK_HEADER.size)
    )
    num_records = kind_and_records >> 8
    end = max(
        _after(begin, _CHUNK_HEADER.size + data_size),
        # A chunk is at least as long as it has records.
        _possible_begin(begin + num_records),
    )
    yield begin, end, kind_and_records & 0xFF, num_records
    begin = end


def _after(begin: int, size: int) -> int:
  """The offset `size` bytes behind `begin`, block headers not counted."""
  before = (begin + _USABLE_SIZE - 1) % _BLOCK_SIZE
  return begin + size + (size + before) // _USABLE_SIZE * _BLOCK_HEADER_SIZE


def _possible_begin(offset: int) -> int:
  """The next offset that is not inside a block header."""
  into = offset % _BLOCK_SIZE
  return offset + _BLOCK_HEADER_SIZE - into if (
      0 < into < _BLOCK_HEADER_SIZE
  ) else offset


def _read(content: bytes, offset: int, size: int) -> bytes:
  """Reads bytes of a chunk, leaving block headers out."""
  parts = []
  while size > 0:
    into = offset % _BLOCK_SIZE
    if into < _BLOCK_HEADER_SIZE:
      offset += _BLOCK_HEADER_SIZE - into
    part = content[offset : offset - offset % _BLOCK_SIZE + _BLOCK_SIZE][:size]
    if not part:
      raise ValueError(f'The file ends at byte {len(content)}, in a chunk.')
    parts.append(part)
    offset += len(part)
    size -= len(part)
  return b''.join(parts)
