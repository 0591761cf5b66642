"""Reads TFRecord files without TensorFlow (RefA).

A record is its length in eight bytes, four bytes of check sum of those, the
data, and four bytes of check sum of the data.

RefA: tensorflow.org, "TFRecord and tf.train.Example", section "TFRecords
format details".
"""

from collections.abc import Iterator
import pathlib
import struct

import google_crc32c

_LENGTH = struct.Struct('<Q')
_CHECK = struct.Struct('<I')
_HEADER_SIZE = _LENGTH.size + _CHECK.size
_MASK_DELTA = 0xA282EAD8


class TfRecordError(Exception):
  """A file that is cut off or damaged; reason and detail are its arguments."""


def _masked_crc(data: bytes) -> int:
  """The CRC32C, rotated and shifted as TFRecords hold it."""
  crc = google_crc32c.value(data)
  return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def offsets(path: pathlib.Path) -> Iterator[int]:
  """Yields where each record begins; of their data only the length is read.

  Args:
    path: of the file, not compressed.

  Raises:
    TfRecordError: if a length is damaged or the file ends in a record.
  """
  size = path.stat().st_size
  with open(path, 'rb') as f:
    offset = 0
    while offset < size:
      f.seek(offset)
      end = offset + _HEADER_SIZE + _length(f.read(_HEADER_SIZE), offset)
      end += _CHECK.size
      if end > size:
        raise TfRecordError(
            'cut_off', f'the record at byte {offset} ends at {end} of {size}'
        )
      yield offset
      offset = end


def _length(header: bytes, offset: int) -> int:
  if len(header) < _HEADER_SIZE:
    raise TfRecordError('cut_off', f'byte {offset}: half a header')
  [length] = _LENGTH.unpack_from(header)
  [check] = _CHECK.unpack_from(header, _LENGTH.size)
  if check != _masked_crc(header[: _LENGTH.size]):
    raise TfRecordError(
        'bad_length',
        f'byte {offset}: the check sum of the length is wrong; is this a'
        ' TFRecord file without compression?',
    )
  return length


def read(path: pathlib.Path, offset: int) -> bytes:
  """Reads a record and checks it.

  Args:
    path: of the file.
    offset: where the record begins.

  Raises:
    TfRecordError: if a check sum is wrong or the file ends in the record.
  """
  with open(path, 'rb') as f:
    f.seek(offset)
    length = _length(f.read(_HEADER_SIZE), offset)
    data, check = f.read(length), f.read(_CHECK.size)
  if len(check) < _CHECK.size:
    raise TfRecordError('cut_off', f'byte {offset}: the file ends in it')
  if _CHECK.unpack(check) != (_masked_crc(data),):
    raise TfRecordError(
        'bad_check_sum', f'byte {offset}: the check sum of the data is wrong'
    )
  return data
