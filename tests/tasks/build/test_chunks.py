"""Records are found in an ArrayRecord file without its reader."""

from array_record.python import array_record_module
from hypothesis import example
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import pytest

from tasks.build import chunks

# A block has 65,536 bytes; chunks begin and end around its header.
_SIZES = st.lists(
    st.one_of(st.integers(0, 200), st.integers(65_300, 65_600)), max_size=6
)


def _write(path, sizes, options='group_size:1'):
  writer = array_record_module.ArrayRecordWriter(str(path), options)
  # Bytes that do not compress, and differ.
  for number, size in enumerate(sizes):
    values = [(i * i + 251 * number) % 256 for i in range(size)]
    writer.write(bytes(values))
  writer.close()
  return path.read_bytes()


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  return tmp_path_factory.mktemp('chunks') / 'x.array_record'


@settings(max_examples=20, deadline=None)
@given(_SIZES)
@example([])
@example([200_000])
@example([0] * 3000)
def test_every_byte_of_a_record_lies_within_its_bounds(path, sizes):
  content = _write(path, sizes)
  bounds = chunks.record_bounds(content, len(sizes))
  assert len(bounds) == len(sizes) + 1
  assert bounds == sorted(bounds) and bounds[-1] < len(content)
  # A byte in the middle of a chunk is within that record alone: the reader
  # refuses it, and no other.
  for number in range(0, len(sizes), 1 + len(sizes) // 3):
    begin, end = bounds[number], bounds[number + 1]
    middle = end - 1  # The last byte of a chunk is never a block header's.
    damaged = bytearray(content)
    damaged[middle] ^= 1
    path.write_bytes(damaged)
    reader = array_record_module.ArrayRecordReader(
        str(path), 'readahead_buffer_size:0'
    )
    assert begin < middle
    if sizes[number]:
      with pytest.raises(Exception, match='(?i)corrupt|hash|invalid|data'):
        reader.read([number])
    for other in {(number + 1) % len(sizes)} - {number}:
      [record] = reader.read([other])
      assert len(record) == sizes[other]
    reader.close()


def test_several_records_a_chunk_are_refused(path):
  content = _write(path, [5, 6], 'group_size:2')
  with pytest.raises(ValueError, match='one record a chunk'):
    chunks.record_bounds(content, 2)


def test_a_file_with_fewer_records_is_refused(path):
  content = _write(path, [5, 6])
  with pytest.raises(ValueError, match='single record|one record a chunk'):
    chunks.record_bounds(content, 4)
