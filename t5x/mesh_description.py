"""A mesh in words: its devices, and what each of its axes is for.

Example, of four slices of TPU chips:

    Mesh of 256 TPU v5 lite (tpu), 64 processes: replica 4, data 16, model 4
      replica 4, between slices: cuts batch
      data 16, between processes: cuts batch, embed
      model 4, inside a process: cuts vocab, mlp, heads, joined_kv
"""

from collections.abc import Iterator
from typing import Any

from jax.sharding import Mesh
import numpy as np

from t5x import axis_rules


def mesh_lines(mesh: Mesh, rules: axis_rules.LogicalAxisRules) -> Iterator[str]:
  """Yields a line for the mesh and one for each of its axes.

  Args:
    mesh: the devices; those of hardware that is not here will do.
    rules: from logical names to mesh axes.
  """
  device = mesh.devices.flat[0]
  processes = len({d.process_index for d in mesh.devices.flat})
  sizes = ', '.join(f'{axis} {size}' for axis, size in mesh.shape.items())
  yield (
      f'Mesh of {mesh.size} {device.device_kind} ({device.platform}),'
      f' {processes} process{"" if processes == 1 else "es"}: {sizes}'
  )
  for number, (axis, size) in enumerate(mesh.shape.items()):
    names = dict.fromkeys(
        name for name, to in rules if axis in axis_rules.mesh_axis_names(to)
    )
    cuts = f'cuts {", ".join(names)}' if names else 'no rule cuts over it'
    yield f'  {axis} {size}{_reach(mesh.devices, number)}: {cuts}'


def _reach(devices: np.ndarray, number: int) -> str:
  """Tells over what one axis of the mesh runs."""
  if devices.shape[number] == 1:
    return ''
  lines = np.moveaxis(devices, number, -1).reshape(-1, devices.shape[number])

  def crosses(place: str) -> bool:
    return any(
        len({_place(device, place) for device in line}) > 1 for line in lines
    )

  if crosses('slice_index'):
    return ', between slices'
  if crosses('process_index'):
    return ', between processes'
  return ', inside a process'


def _place(device: Any, place: str) -> int:
  # Devices of a single slice may know of none.
  return getattr(device, place, None) or 0
