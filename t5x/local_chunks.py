"""Which part of a global array this host reads or writes."""

from collections.abc import Sequence
import dataclasses
import math

from jax.sharding import Mesh
import numpy as np

MeshAxes = str | Sequence[str] | None


@dataclasses.dataclass(frozen=True)
class LocalChunkInfo:
  """This host's part of one global array.

  Attributes:
    slice: the part, a slice per dimension.
    replica_id: 0 on exactly one of the hosts that hold the same part.
  """

  slice: tuple[slice, ...]
  replica_id: int


class LocalChunker:
  """Splits global arrays by host, along the axes of a mesh.

  Attributes:
    global_mesh: the mesh of all hosts.
    local_mesh: this host's block of it.
    num_chunks: hosts along each mesh axis.
    chunk_ids: this host's position along each mesh axis.
  """

  def __init__(self, global_mesh: Mesh):
    self.global_mesh = global_mesh
    self.local_mesh = global_mesh.local_mesh
    first_device = self.local_mesh.devices.flat[0]
    position = next(
        index
        for index, device in np.ndenumerate(global_mesh.devices)
        if device is first_device
    )
    self.num_chunks: dict[str, int] = {}
    self.chunk_ids: dict[str, int] = {}
    for axis, start in zip(global_mesh.axis_names, position):
      local_size = self.local_mesh.shape[axis]
      self.num_chunks[axis] = global_mesh.shape[axis] // local_size
      self.chunk_ids[axis] = start // local_size

  def get_local_chunk_info(
      self, global_shape: Sequence[int], mesh_axes: Sequence[MeshAxes]
  ) -> LocalChunkInfo:
    """Returns this host's part of an array.

    Args:
      global_shape: shape of the whole array.
      mesh_axes: a mesh axis, several, or None (unsplit) per dimension.

    Returns:
      The part, and which copy of it this host holds.

    Raises:
      ValueError: if a dimension does not divide by its number of hosts.
    """
    parts, used = [], set()
    for size, entry in zip(global_shape, mesh_axes, strict=True):
      if entry is None:
        parts.append(slice(None))
        continue
      axes = (entry,) if isinstance(entry, str) else tuple(entry)
      used.update(axes)
      num_chunks = math.prod(self.num_chunks[axis] for axis in axes)
      if size % num_chunks:
        raise ValueError(
            f'A dimension of size {size} in shape {tuple(global_shape)} does'
            f' not divide over {num_chunks} hosts along {axes}.'
        )
      chunk_id = self._rank(axes)
      chunk_size = size // num_chunks
      parts.append(slice(chunk_id * chunk_size, (chunk_id + 1) * chunk_size))
    replica_id = self._rank(
        [axis for axis in self.num_chunks if axis not in used]
    )
    return LocalChunkInfo(tuple(parts), replica_id)

  def _rank(self, axes: Sequence[str]) -> int:
    """Numbers this host along several axes, the last one fastest."""
    rank = 0
    for axis in axes:
      rank = rank * self.num_chunks[axis] + self.chunk_ids[axis]
    return rank
