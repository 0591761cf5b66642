"""Names, shapes and types of the batch, from the tasks to the losses.

Tasks yield these features, the feature converter pads them, the model reads
them under the same names. Sizes: `S` side of the square network input, `N`
prompts an image, `T` text tokens, `C` context tokens, `P` points a token, and
`W`, the bytes of a row of `S` bits.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class BatchFeature:
  """One feature of one example; the batch adds an axis in front.

  Attributes:
    axes: one entry an axis: a letter of the module docstring, or a number.
    dtype: NumPy name of the type.
    meaning: what it holds, in which unit, and what padding holds.
  """

  axes: tuple[str | int, ...]
  dtype: str
  meaning: str


TASK_FEATURES: Mapping[str, BatchFeature] = {
    'image': BatchFeature(
        ('S', 'S', 3), 'uint8', 'RGB, valid area top left, 0 outside'
    ),
    'image_hw': BatchFeature(
        (2,), 'int32', 'height and width of the valid area in pixels'
    ),
    'prompt_boxes': BatchFeature(
        ('N', 4), 'float32', 'location prompt, xyxy pixels of the input'
    ),
    'text_tokens': BatchFeature(
        ('N', 'T'), 'int32', 'begin … end, then 0 as padding'
    ),
    'context_tokens': BatchFeature(
        ('N', 'C'), 'int32', 'tokens without begin, then 0 as padding'
    ),
    'boxes': BatchFeature(
        ('N', 4), 'float32', 'target boxes, xyxy pixels; zeros for none'
    ),
    'points': BatchFeature(
        ('N', 'T', 'P', 2), 'float32', 'target points (x, y) a token, or zeros'
    ),
    'caption_weights': BatchFeature(
        ('N',), 'float32', '1 if the prompt joins the caption loss'
    ),
    'point_weights': BatchFeature(
        ('N',), 'float32', '1 if the prompt joins the point loss'
    ),
    'detection_weights': BatchFeature(
        ('N',), 'float32', '1 if the box is one that the box decoder must find'
    ),
    'object_captions': BatchFeature(
        ('N',),
        'bool',
        'True if the text captions the box, wherever the network proposes it;'
        ' False if it answers the prompt',
    ),
}

MASK_FEATURES: Mapping[str, BatchFeature] = {
    'masks': BatchFeature(
        ('N', 'S', 'W'), 'uint8', 'bits (`mask_bits`), 1 on the object, else 0'
    ),
    'mask_weights': BatchFeature(
        ('N',), 'float32', '1 if the prompt joins the mask loss'
    ),
}

# Added by the feature converter.
PROMPT_MASK = BatchFeature(('N',), 'bool', 'True for a prompt, not padding')


def task_features(with_masks: bool = False) -> dict[str, BatchFeature]:
  """Returns what a task yields, by name."""
  return {**TASK_FEATURES, **(MASK_FEATURES if with_masks else {})}


def model_features(with_masks: bool = False) -> dict[str, BatchFeature]:
  """Returns what the model reads, by name."""
  return {**task_features(with_masks), 'prompt_mask': PROMPT_MASK}


def feature_shape(
    feature: BatchFeature, sizes: Mapping[str, int]
) -> tuple[int, ...]:
  """Puts numbers for letters: `('N', 4)` with `N = 16` is `(16, 4)`."""
  return tuple(_axis_size(axis, sizes) for axis in feature.axes)


def _axis_size(axis: str | int, sizes: Mapping[str, int]) -> int:
  if axis == 'W':
    return -(-sizes['S'] // 8)
  return sizes[axis] if isinstance(axis, str) else axis


def feature_lengths(
    image_size: int,
    num_prompts: int,
    text_length: int,
    context_length: int,
    with_masks: bool = False,
    num_points: int = 2,
) -> dict[str, tuple[int, ...]]:
  """Builds T5X's `task_feature_lengths`: the full shape of every feature.

  Args:
    image_size: side of the square network input in pixels.
    num_prompts: prompts an image.
    text_length: text tokens a prompt, begin and end included.
    context_length: context tokens a prompt.
    with_masks: whether the run has target masks.
    num_points: points a token.

  Returns:
    Feature name to shape, without the batch axis.

  Raises:
    ValueError: if a size is not positive.
  """
  sizes = {
      'S': image_size,
      'N': num_prompts,
      'T': text_length,
      'C': context_length,
      'P': num_points,
  }
  for letter, size in sizes.items():
    if size < 1:
      raise ValueError(
          f'feature_lengths: size {letter} is {size}; every size must be at'
          ' least 1.'
      )
  return {
      name: feature_shape(feature, sizes)
      for name, feature in task_features(with_masks).items()
  }


def sizes_of(lengths: Mapping[str, Any]) -> dict[str, int]:
  """Reads the sizes back from `feature_lengths`, and checks that they agree.

  Args:
    lengths: feature name to shape; with or without the mask features.

  Returns:
    `S`, `N`, `T`, `C` and `P`.

  Raises:
    ValueError: if a feature is missing or unknown, is no tuple, has another
      rank, or gives a letter another size than the features before it.
  """
  expected = task_features('masks' in lengths or 'mask_weights' in lengths)
  missing = sorted(set(expected) - set(lengths))
  unknown = sorted(set(lengths) - set(expected))
  hint = ' pixel_llm.features.feature_lengths(...) builds them.'
  if missing or unknown:
    raise ValueError(
        f'task_feature_lengths lack {missing} and have unknown {unknown};'
        f' known are {sorted(expected)}.{hint}'
    )
  sizes: dict[str, int] = {}
  for name, feature in expected.items():
    shape = lengths[name]
    if not isinstance(shape, (tuple, list)) or len(shape) != len(feature.axes):
      raise ValueError(
          f'task_feature_lengths[{name!r}] is {shape!r}; expected a tuple of'
          f' {len(feature.axes)} numbers for the axes {feature.axes}.{hint}'
      )
    for axis, size in zip(feature.axes, shape):
      if isinstance(axis, str) and axis != 'W':
        sizes.setdefault(axis, size)
      wanted = _axis_size(axis, sizes)
      if size != wanted:
        raise ValueError(
            f'task_feature_lengths[{name!r}] is {tuple(shape)}: axis {axis}'
            f' has size {size}, but should have {wanted}.{hint}'
        )
  return sizes
