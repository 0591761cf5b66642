"""What a text head keeps between two decoded tokens, and the step it takes."""

from typing import Any, Protocol, runtime_checkable

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@struct.dataclass
class DecodeCache:
  """The state of decoding `K` beams for each of `M` rows.

  Attributes:
    shared: arrays that all beams of a row share and no step changes, such as
      the keys and values of the encoded image.
    beams: arrays [M, K, …] that belong to one beam, such as the keys and values
      of its own text.
    beams_axis: how many axes `beams` have before these, 1 for scanned layers.
  """

  shared: Any
  beams: Any
  beams_axis: int = struct.field(pytree_node=False, default=0)

  def reorder(self, parents: Int[Array, 'M K']) -> 'DecodeCache':
    """Moves the state of beam `parents[m, k]` to slot (m, k)."""
    # vmap keeps the rows a batch axis, so sharded rows stay where they are.
    axis = self.beams_axis
    pick = jax.vmap(
        lambda x, index: jnp.take(x, index, axis=axis, mode='clip'),
        in_axes=(axis, 0),
        out_axes=axis,
    )
    return self.replace(
        beams=jax.tree.map(lambda x: pick(x, parents), self.beams)
    )


@runtime_checkable
class StepFn(Protocol):
  """Scores the token behind a position."""

  def __call__(
      self,
      cache: DecodeCache,
      sequences: Int[Array, 'M K T'],
      index: int | Int[Array, ''],
  ) -> tuple[Float[Array, 'M K V'], DecodeCache]:
    """Reads position `index` of all beams.

    Args:
      cache: after the steps 0 … index - 1.
      sequences: tokens up to `index`, end tokens behind.
      index: the position.

    Returns:
      Logits of the token at `index + 1`, and the cache for that step.
    """
    ...
