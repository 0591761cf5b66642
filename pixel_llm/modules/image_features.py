"""Images into towers, and the towers' maps into one.

Each tower has its own normalisation and size; each gives a map of its own grid.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import difflib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

# CLIP's and ImageNet's colours, in pixel values of 0 to 255 (red, green, blue).
CLIP_MEAN = (0.48145466 * 255, 0.4578275 * 255, 0.40821073 * 255)
CLIP_STD = (0.26862954 * 255, 0.26130258 * 255, 0.27577711 * 255)
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


def normalize_images(
    images: Num[Array, 'B H W 3'],
    valid_mask: Bool[Array, 'B H W'] | Float[Array, 'B H W'] | None,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    size: tuple[int, int] | None = None,
) -> Float[Array, 'B h w 3']:
  """Brings images to the colours and the size that a tower expects.

  The mask multiplies after the colours and before resizing, so padding is
  exactly 0 and the border is blurred by resizing, as in the original.

  Args:
    images: pixel values of 0 to 255, whole or not.
    valid_mask: true inside the image; None if nothing is padding.
    mean: of each colour, in pixel values.
    std: of each colour, in pixel values.
    size: height and width to resize to (bilinear); None keeps the size.

  Returns:
    The normalised images in float32.
  """
  images = images.astype(jnp.float32)
  images -= jnp.asarray(mean, jnp.float32)[None, None, None]
  images /= jnp.asarray(std, jnp.float32)[None, None, None]
  if valid_mask is not None:
    images *= valid_mask.astype(jnp.float32)[..., None]
  if size is None or tuple(size) == images.shape[1:3]:
    return images
  return jax.image.resize(
      images, (images.shape[0], *size, images.shape[3]), method='bilinear'
  )


@dataclasses.dataclass(frozen=True)
class ImageNormalizer:
  """The colours and the size of one tower's input.

  Attributes:
    size: height and width of the tower's input; None takes the image's.
    mean: of each colour, in pixel values of 0 to 255; the default is CLIP's.
    std: of each colour, in pixel values.
  """

  size: Sequence[int] | None = None
  mean: Sequence[float] = CLIP_MEAN
  std: Sequence[float] = CLIP_STD

  def __call__(
      self,
      images: Num[Array, 'B H W 3'],
      valid_mask: Bool[Array, 'B H W'] | Float[Array, 'B H W'] | None = None,
  ) -> Float[Array, 'B h w 3']:
    """Normalises, masks and resizes; see `normalize_images`."""
    return normalize_images(
        images,
        valid_mask,
        mean=self.mean,
        std=self.std,
        size=None if self.size is None else tuple(self.size),
    )


@dataclasses.dataclass(frozen=True)
class SamImageNormalizer(ImageNormalizer):
  """ImageNet's colours, which SAM was trained with."""

  mean: Sequence[float] = IMAGENET_MEAN
  std: Sequence[float] = IMAGENET_STD


def feature_names(expression: str) -> tuple[str, ...]:
  """Names in a fusion expression, in order: 'a+b' and 'a,b' name a and b.

  Raises:
    ValueError: if the expression mixes `+` and `,` or has an empty name.
  """
  if '+' in expression and ',' in expression:
    raise ValueError(
        f'Fusion {expression!r} mixes "+" (largest grid) and "," (first grid);'
        ' use one of them.'
    )
  names = tuple(expression.replace('+', ',').split(','))
  if not all(names):
    raise ValueError(f'Fusion {expression!r} has an empty name.')
  return names


def fused_size(
    expression: str, sizes: Mapping[str, tuple[int, int]]
) -> tuple[int, int]:
  """Height and width of what an expression fuses.

  Sizes are compared as tuples: height first, the width only if heights agree.

  Args:
    expression: 'a+b' for the largest size, 'a,b' for that of the first.
    sizes: height and width by name.

  Returns:
    Height and width.

  Raises:
    ValueError: if a name is unknown or the expression is malformed.
  """
  chosen = []
  for name in feature_names(expression):
    if name not in sizes:
      near = difflib.get_close_matches(name, sizes, n=3, cutoff=0.0)
      raise ValueError(
          f'Fusion {expression!r} names {name!r}; the nearest known are {near}.'
      )
    chosen.append(tuple(sizes[name]))
  return max(chosen) if '+' in expression else chosen[0]


def fuse_feature_maps(
    expression: str, maps: Mapping[str, Float[Array, 'B _h _w _D']]
) -> Float[Array, 'B h w Dv']:
  """Brings maps to one grid (bicubic) and joins their channels.

  At 384 pixels, EVA02 has 27×27 cells and SAM 24×24: 'eva+sam' has 27×27.

  Args:
    expression: names joined by `+` (the largest grid) or `,` (the first's).
    maps: feature maps by name; those not named are left out.

  Returns:
    The joined map, channels in the order of the names.
  """
  grid = fused_size(expression, {k: v.shape[1:3] for k, v in maps.items()})
  fused = []
  for name in feature_names(expression):
    feature_map = maps[name]
    if feature_map.shape[1:3] != grid:
      batch, _, _, dim = feature_map.shape
      feature_map = jax.image.resize(
          feature_map, (batch, *grid, dim), method='bicubic'
      )
    fused.append(feature_map)
  return jnp.concatenate(fused, axis=-1)
