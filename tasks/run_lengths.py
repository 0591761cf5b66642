"""COCO's compressed run lengths, sampled at the pixels of a view.

A mask at network size needs one pixel in three of the stored one, and of these
only where its runs begin and end. So the ends of the runs are moved to the
sampled grid, and no mask is decoded at the size of its picture.

Runs go down the columns, from the left, and alternate between background and
object. Each count is written in digits of 5 bits, the least first, and from the
fourth count on as the difference to the last but one (`rleToString` of
cocoapi's maskApi.c).
"""

import tensorflow as tf

_OFFSET = 48  # Makes digits printable.
_BITS = 5
_MORE = 0x20  # Another digit follows.
_SIGN = 0x10
# More bits than any count of a picture's pixels has.
_LARGEST_SHIFT = 25

_EACH_BYTE = 0x0101010101010101
_PACK_BYTES = 0x0102040810204080
_LEVELS = 2


def run_ends(counts: tf.Tensor, hw: tf.Tensor) -> tf.Tensor:
  """Tells where the runs of each mask end.

  Args:
    counts: compressed run lengths [n], strings; empty for no mask.
    hw: height and width [2] int32 of the picture.

  Returns:
    How many pixels lie before the end of each run [n, r] int32; all of them
    once a mask has no further run.

  Raises:
    InvalidArgumentError: if the runs of a mask do not fill the picture.
  """
  deltas, num_runs = _deltas(counts)
  # Counts 0, 1 and 2 stand for themselves; then 3 is told by 1, 4 by 2, 5 by 3
  # and so on, so that every other count is a running sum.
  pairs = tf.reshape(deltas[:, 1:], [tf.shape(deltas)[0], -1, 2])
  rest = tf.reshape(tf.cumsum(pairs, axis=1), tf.shape(deltas[:, 1:]))
  lengths = tf.concat([deltas[:, :1], rest], axis=1)
  is_run = tf.sequence_mask(num_runs, tf.shape(deltas)[1])
  ends = tf.cumsum(tf.where(is_run, lengths, 0), axis=1)
  num_pixels = hw[0] * hw[1]
  has_mask = num_runs > 0
  fills = tf.debugging.assert_equal(
      tf.where(has_mask, ends[:, -1], num_pixels),
      num_pixels,
      'objects/mask_rle: the runs do not fill image/height * image/width',
  )
  with tf.control_dependencies([fills]):
    return tf.where(has_mask[:, tf.newaxis], ends, num_pixels)


def _deltas(counts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """Reads the numbers of each string.

  Args:
    counts: strings [n].

  Returns:
    The numbers [n, m], 0 as padding, m odd, and how many there are [n].
  """
  longest = tf.maximum(tf.reduce_max(tf.strings.length(counts)), 0)
  num_digits = tf.bitwise.bitwise_or(longest, 1)
  characters = tf.cast(
      tf.io.decode_raw(counts, tf.uint8, fixed_length=num_digits), tf.int32
  )
  is_digit = characters > 0
  code = tf.where(is_digit, characters - _OFFSET, 0)
  is_last = is_digit & (tf.bitwise.bitwise_and(code, _MORE) == 0)
  ended = tf.cast(is_last, tf.int32)
  rows = tf.range(tf.shape(counts)[0])[:, tf.newaxis]
  numbers = rows * num_digits + tf.cumsum(ended, axis=1, exclusive=True)
  total = tf.size(characters)
  places = tf.broadcast_to(tf.range(num_digits), tf.shape(characters))
  first = tf.math.unsorted_segment_min(places, numbers, total)
  shift = tf.minimum(
      _BITS * (places - tf.gather(first, numbers)), _LARGEST_SHIFT
  )
  values = tf.bitwise.left_shift(
      tf.bitwise.bitwise_and(code, (1 << _BITS) - 1), shift
  )
  is_negative = is_last & (tf.bitwise.bitwise_and(code, _SIGN) != 0)
  values -= tf.where(is_negative, tf.bitwise.left_shift(1 << _BITS, shift), 0)
  deltas = tf.math.unsorted_segment_sum(values, numbers, total)
  return tf.reshape(deltas, tf.shape(characters)), tf.reduce_sum(ended, 1)


def sample(
    ends: tf.Tensor, height: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor
) -> tf.Tensor:
  """Looks masks up at the crossings of some rows and columns.

  Args:
    ends: of `run_ends` [n, r].
    height: of the picture, int32 scalar.
    rows: row numbers [h] int32 in ascending order; one may come again.
    columns: column numbers [w] int32 of this kind.

  Returns:
    1 on the object, else 0, [n, h, w] uint8.
  """
  # The runs must meet each column once.
  columns, places = tf.unique(columns)
  num_rows, num_columns = tf.size(rows), tf.size(columns)
  ends_flat = tf.reshape(ends, [-1])
  end_columns = tf.math.floordiv(ends_flat, height)
  end_rows = tf.math.floormod(ends_flat, height)
  # The first crossing that is not before a run's end.
  column = tf.searchsorted(columns, end_columns)
  is_inside = tf.searchsorted(columns, end_columns, side='right') > column
  row = tf.where(is_inside, tf.searchsorted(rows, end_rows), 0)
  crossings = num_rows * num_columns
  num_masks = tf.shape(ends)[0]
  masks = tf.repeat(tf.range(num_masks), tf.shape(ends)[1])
  # Room for the ends behind the last crossing, in whole words of words.
  stride = (crossings // 8**_LEVELS + 1) * 8**_LEVELS
  flips = tf.math.unsorted_segment_sum(
      tf.ones_like(ends_flat, tf.uint8),
      masks * stride + column * num_rows + row,
      num_masks * stride,
  )
  inside = _parities(tf.reshape(flips, [num_masks, stride]))[:, :crossings]
  by_column = tf.reshape(inside, [num_masks, num_columns, num_rows])
  return tf.transpose(tf.gather(by_column, places, axis=1), [0, 2, 1])


def bits(masks: tf.Tensor) -> tf.Tensor:
  """Packs masks as `pixel_llm.mask_bits` does.

  Args:
    masks: 0 and 1 [n, h, w] uint8.

  Returns:
    Bits [n, h, ceil(w / 8)] uint8.
  """
  height, width = masks.shape[1:]
  assert height is not None and width is not None, masks
  whole = tf.pad(masks, [[0, 0], [0, 0], [0, -width % 8]])
  words = tf.bitcast(
      tf.reshape(whole, [-1, height, -(-width // 8), 8]), tf.uint64
  )
  # Moves bit 0 of byte k to bit k of the last byte.
  return tf.bitcast(words * tf.constant(_PACK_BYTES, tf.uint64), tf.uint8)[
      ..., -1
  ]


def _parities(counts: tf.Tensor, levels: int = _LEVELS) -> tf.Tensor:
  """1 where the sum up to and with a place is odd, else 0.

  TensorFlow's `cumsum` takes longer for it than the picture takes to resize;
  here it sums words of words.

  Args:
    counts: [n, m] uint8, m a multiple of 8 to the power of `levels`.
    levels: how often eight places are taken at once.

  Returns:
    Sums modulo 2 [n, m] uint8.
  """
  if not levels:
    return tf.bitwise.bitwise_and(tf.cumsum(counts, axis=1), 1)
  each_byte = tf.constant(_EACH_BYTE, tf.uint64)
  counted = tf.bitcast(tf.reshape(counts, [-1, 8]), tf.uint64)
  odd = tf.bitwise.bitwise_and(counted, each_byte)
  # Byte k of the product is the sum of bytes 0 to k, the lowest first.
  words = odd * each_byte
  sums = tf.bitcast(words, tf.uint8)[:, -1]
  with_own = _parities(tf.reshape(sums, [tf.shape(counts)[0], -1]), levels - 1)
  before = tf.bitwise.bitwise_xor(tf.reshape(with_own, [-1]), sums)
  is_odd = tf.cast(tf.bitwise.bitwise_and(before, 1), tf.uint64)
  summed = tf.bitwise.bitwise_and(words + is_odd * each_byte, each_byte)
  return tf.reshape(tf.bitcast(summed, tf.uint8), tf.shape(counts))
