"""Low-rank adapters: a frozen kernel plus a small trained correction.

RefA: LoRA (arXiv 2106.09685): kernel + scale · left · right, where `right`
starts at 0, so that an adapted layer starts as the base layer.

The base kernel has the name and layout of T5X's `DenseGeneral`, so a public
checkpoint restores without a mapping; `kernel_left_lora` and
`kernel_right_lora` lie beside it.
"""

from collections.abc import Callable, Iterable, Mapping
import math
from typing import Any

from flax import linen as nn
from flax import traverse_util
from flax.linen import partitioning
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from pixel_llm import axes

LEFT = 'kernel_left_lora'
RIGHT = 'kernel_right_lora'

_kernel_init = nn.initializers.variance_scaling(
    1.0, 'fan_in', 'truncated_normal'
)


def _as_tuple(x: int | Iterable[int]) -> tuple[int, ...]:
  """Turns one integer or several into a tuple."""
  return tuple(x) if isinstance(x, Iterable) else (x,)


class DenseGeneral(nn.Module):
  """A linear map without bias, with a low-rank correction if `rank` > 0.

  The correction is applied to the activations, first left then right, so
  neither the merged kernel nor its gradient is ever formed.

  Attributes:
    features: size or sizes of the output axes.
    kernel_axes: logical axes of the base kernel (in, out).
    axis: input axis or axes that are summed over.
    dtype: compute type; parameters are float32.
    kernel_init: initialiser of the base kernel.
    rank: columns of `left`; 0 leaves the adapter out.
    scale: factor of the correction.
  """

  features: int | Iterable[int]
  kernel_axes: tuple[str, str]
  axis: int | Iterable[int] = -1
  dtype: Any = jnp.float32
  kernel_init: Callable[..., Any] = _kernel_init
  rank: int = 0
  scale: float = 1.0

  @nn.compact
  def __call__(self, inputs: Float[Array, '...']) -> Float[Array, '...']:
    """Maps `inputs`; the new axes come last."""
    if self.rank < 0:
      raise ValueError(
          f'rank is {self.rank}: give 0 for no adapter, or a positive rank.'
      )
    features = _as_tuple(self.features)
    axis = tuple(a % inputs.ndim for a in _as_tuple(self.axis))
    in_shape = tuple(inputs.shape[a] for a in axis)
    in_size, out_size = math.prod(in_shape), math.prod(features)
    inputs = jnp.asarray(inputs, self.dtype)
    contracted = (axis, tuple(range(len(axis))))

    def project(x, kernel, shape, dims):
      kernel = jnp.asarray(kernel, self.dtype).reshape(shape)
      return lax.dot_general(x, kernel, (dims, ((), ())))

    kernel = partitioning.param_with_axes(
        'kernel',
        self.kernel_init,
        (in_size, out_size),
        jnp.float32,
        axes=self.kernel_axes,
    )
    outputs = project(inputs, kernel, in_shape + features, contracted)
    if not self.rank:
      return outputs
    in_axis, out_axis = self.kernel_axes
    left = partitioning.param_with_axes(
        LEFT,
        nn.initializers.variance_scaling(1.0, 'fan_in', 'normal'),
        (in_size, self.rank),
        jnp.float32,
        axes=(in_axis, axes.LORA_RANK),
    )
    right = partitioning.param_with_axes(
        RIGHT,
        nn.initializers.zeros,
        (self.rank, out_size),
        jnp.float32,
        axes=(axes.LORA_RANK, out_axis),
    )
    low = project(inputs, left, in_shape + (self.rank,), contracted)
    delta = project(
        low, right, (self.rank,) + features, ((low.ndim - 1,), (0,))
    )
    return outputs + jnp.asarray(self.scale, self.dtype) * delta


def merge(params: Mapping[str, Any], scale: float) -> dict[str, Any]:
  """Folds all adapters of a tree into their base kernels, on the host.

  Sums are taken in float64 and rounded once to the kernel's dtype, so a merged
  float32 kernel is within half a unit in the last place of the exact sum.

  Args:
    params: nested parameters, some of them adapters.
    scale: the adapters' factor, one for the whole tree.

  Returns:
    The tree without adapters; it computes the same in a network of rank 0.

  Raises:
    ValueError: if an adapter lacks its kernel or its other half.
  """
  flat: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(params)
  merged = {k: v for k, v in flat.items() if k[-1] not in (LEFT, RIGHT)}
  parents = {k[:-1] for k in flat if k[-1] in (LEFT, RIGHT)}
  for parent in parents:
    missing = [n for n in ('kernel', LEFT, RIGHT) if parent + (n,) not in flat]
    if missing:
      raise ValueError(
          f'Adapter {"/".join(parent)} cannot be merged: it lacks {missing}.'
      )
    kernel, left, right = (
        np.asarray(flat[parent + (name,)]).astype(np.float64)
        for name in ('kernel', LEFT, RIGHT)
    )
    # Between its two axes a scanned kernel has that of the layers.
    delta = np.einsum('i...r,r...o->i...o', left, right)
    merged[parent + ('kernel',)] = (kernel + scale * delta).astype(
        flat[parent + ('kernel',)].dtype
    )
  return traverse_util.unflatten_dict(merged)
