"""Device meshes: which device holds which slice of data and of model.

A mesh has the axes (`data`, `model`), or (`replica`, `data`, `model`) when the
job spans several slices. Devices that share one copy of the model sit next to
each other on the hardware (a *submesh*), and a host's devices stay one block
of the mesh, so that every host reads one contiguous part of the batch.

Example: 4x4 chips of two cores, hosts of 2x2 chips, submesh (2, 1, 1, 2).
The model axis runs over 2 chips in x and both cores (4 devices), the data axis
over the remaining 2 x 4 positions, host by host (8 rows).
"""

from collections.abc import Sequence
import math
from typing import Any

from absl import logging
import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType
from jax.sharding import Mesh
import numpy as np

# Size along (x, y, z, core) on TPUs, along (host, device) elsewhere.
HardwareMesh = tuple[int, ...]

_TPU_KINDS = (
    'TPU v2',
    'TPU v3',
    'TPU v4',
    'TPU v4 lite',
    'TPU v5',
    'TPU v5 lite',
    'TPU v5p',
    'TPU v6 lite',
    'TPU7x',
)


def _make_mesh(devices: np.ndarray, axis_names: Sequence[str]) -> Mesh:
  # Auto: the compiler chooses shardings inside the step, from constraints.
  return Mesh(devices, axis_names, axis_types=(AxisType.Auto,) * devices.ndim)


def bounds_from_last_device(last_device: Any) -> HardwareMesh:
  """Returns the size of the whole hardware, read off its last device."""
  if hasattr(last_device, 'coords'):
    x, y, z = last_device.coords
    return x + 1, y + 1, z + 1, last_device.core_on_chip + 1
  return jax.process_count(), jax.local_device_count()


def get_coords(device: Any) -> HardwareMesh:
  """Returns a device's place: (x, y, z, core), or (host, device of the host)."""
  if hasattr(device, 'coords'):
    return (*device.coords, device.core_on_chip)
  return device.process_index, device.id % jax.local_device_count()


def _split_dimension(
    size: int, model: int, host: int
) -> tuple[int, int, int, int]:
  """Splits one hardware dimension into data and model, each by host, inside.

  Args:
    size: devices along this dimension.
    model: devices of one model copy along it.
    host: devices of one host along it.

  Returns:
    (data over hosts, data inside a host, model over hosts, model inside a
    host); the product is `size`.
  """
  data_inside, model_over = max(host // model, 1), max(model // host, 1)
  block = max(host, model)
  if size % block or block % model or block % host:
    raise ValueError(
        f'A submesh of {model} does not tile {size} devices with {host} a host'
        ' along one hardware dimension. Use sizes that divide, or are'
        ' multiples of, the devices of a host.'
    )
  return size // block, data_inside, model_over, min(model, host)


def get_mesh(
    model_parallel_submesh: HardwareMesh,
    input_devices: Sequence[Any] = (),
    input_local_devices: Sequence[Any] = (),
    backend: str | None = None,
) -> Mesh:
  """Builds a (`data`, `model`) mesh from a hardware submesh of one model copy.

  Args:
    model_parallel_submesh: (x, y, z, core) of one model copy. On devices
      without coordinates (CPU, GPU) only the product counts: that many devices
      hold one copy, filled inside a host first.
    input_devices: devices to use, by default all.
    input_local_devices: those of this host, by default JAX's local devices.
    backend: platform to use, by default JAX's.

  Returns:
    The mesh.

  Raises:
    ValueError: if the submesh does not tile the hardware.
  """
  devices = list(input_devices) or jax.devices(backend)
  local_devices = list(input_local_devices) or jax.local_devices(
      backend=backend
  )
  bounds = bounds_from_last_device(devices[-1])
  submesh = tuple(model_parallel_submesh)
  if not hasattr(devices[-1], 'coords'):
    copy_size = math.prod(submesh)
    inside = math.gcd(copy_size, bounds[-1])
    submesh = (copy_size // inside, inside)
  if len(submesh) != len(bounds) or min(submesh) < 1:
    raise ValueError(
        f'model_parallel_submesh {tuple(model_parallel_submesh)} must have'
        f' {len(bounds)} sizes of at least 1, for hardware of {bounds}.'
    )
  local_coords = np.array([get_coords(d) for d in local_devices])
  host = local_coords.max(axis=0) - local_coords.min(axis=0) + 1
  splits = [
      _split_dimension(size, model, int(inside))
      for size, model, inside in zip(bounds, submesh, host)
  ]
  grid = np.empty(bounds, dtype=object)
  for device in devices:
    grid[get_coords(device)] = device
  grid = grid.reshape([part for split in splits for part in split])
  # Every dimension gave four parts; bring like parts together, hosts first.
  order = [4 * d + part for part in range(4) for d in range(len(splits))]
  num_model = math.prod(submesh)
  return _make_mesh(
      grid.transpose(order).reshape(-1, num_model), ('data', 'model')
  )


def get_cpu_mesh() -> Mesh:
  """Returns the CPU mesh: (processes, devices of a process).

  All devices of one process go to `model`, whatever the number of partitions.
  `model_parallel_submesh=(1, 1, 1, 1)` puts them on `data` instead.
  """
  devices = np.array(
      sorted(jax.devices('cpu'), key=lambda d: (d.process_index, d.id)),
      dtype=object,
  )
  return _make_mesh(devices.reshape(jax.process_count(), -1), ('data', 'model'))


def get_gpu_mesh(num_partitions: int) -> Mesh:
  """Returns a GPU mesh with `num_partitions` devices on `model`.

  A model copy fills the devices of a host before it crosses to another one.
  """
  return get_mesh((num_partitions,))


def _tpu_submesh(num_partitions: int, bounds: HardwareMesh) -> HardwareMesh:
  """Chooses the most compact submesh: cores first, then x, y, z in turn."""
  if num_partitions < 1 or num_partitions & (num_partitions - 1):
    raise ValueError(
        f'num_partitions={num_partitions} must be a power of two on TPUs; set'
        ' model_parallel_submesh for another layout.'
    )
  submesh = [1, 1, 1, min(bounds[3], num_partitions)]
  while math.prod(submesh) < num_partitions:
    fitting = [d for d in range(3) if bounds[d] % (2 * submesh[d]) == 0]
    if not fitting:
      raise ValueError(
          f'num_partitions={num_partitions} does not fit hardware of'
          f' {bounds}; set model_parallel_submesh.'
      )
    smallest = min(fitting, key=lambda d: submesh[d])
    submesh[smallest] *= 2
  return tuple(submesh)


def _multi_slice_mesh(
    ici_mesh_shape: Sequence[int],
    dcn_mesh_shape: Sequence[int],
    devices: Sequence[Any],
) -> Mesh:
  """Builds the (`replica`, `data`, `model`) mesh of a multi-slice job."""
  if len(ici_mesh_shape) != 3 or len(dcn_mesh_shape) != 3:
    raise ValueError(
        f'ici_mesh_shape {tuple(ici_mesh_shape)} and dcn_mesh_shape'
        f' {tuple(dcn_mesh_shape)} need three sizes: (replica, data, model).'
    )
  wanted = math.prod(ici_mesh_shape) * math.prod(dcn_mesh_shape)
  if wanted != len(devices):
    raise ValueError(
        f'ici_mesh_shape {tuple(ici_mesh_shape)} and dcn_mesh_shape'
        f' {tuple(dcn_mesh_shape)} are a mesh of {wanted} devices, and there are'
        f' {len(devices)}: the product of all sizes must be that number.'
    )
  if math.prod(dcn_mesh_shape) == 1:
    grid = mesh_utils.create_device_mesh(
        ici_mesh_shape, devices, allow_split_physical_axes=True
    )
  else:
    grid = mesh_utils.create_hybrid_device_mesh(
        ici_mesh_shape,
        dcn_mesh_shape,
        devices,
        # Without slices (CPU, GPU) the slow network is the one between hosts.
        process_is_granule=not hasattr(devices[0], 'slice_index'),
        # 8 x 2 chips of a 4 x 4 slice: one of its dimensions is cut in two.
        allow_split_physical_axes=True,
    )
  mesh = _make_mesh(grid, ('replica', 'data', 'model'))
  try:
    _ = mesh.local_mesh
  except ValueError as error:
    raise ValueError(
        f'ici_mesh_shape {tuple(ici_mesh_shape)} and dcn_mesh_shape'
        f' {tuple(dcn_mesh_shape)} scatter the devices of a host over the mesh;'
        ' its part of a batch must be one block. Take sizes that are products'
        ' of the dimensions of a slice.'
    ) from error
  return mesh


def default_mesh(
    num_partitions: int | None,
    model_parallel_submesh: HardwareMesh | None = None,
    backend: str | None = None,
    ici_mesh_shape: Sequence[int] | None = None,
    dcn_mesh_shape: Sequence[int] | None = None,
    devices: Sequence[Any] = (),
) -> Mesh:
  """Builds the mesh for this job's hardware.

  Args:
    num_partitions: devices that share one copy of the model.
    model_parallel_submesh: (x, y, z, core) of one copy; replaces the former.
    backend: platform to use, by default JAX's.
    ici_mesh_shape: (replica, data, model) inside a slice.
    dcn_mesh_shape: (replica, data, model) over slices.
    devices: devices to build it of, such as those of hardware that is not
      here; by default JAX's.

  Returns:
    The mesh: see the module's documentation.

  Raises:
    ValueError: if the layout does not fit, or the TPU kind is not known.
  """
  local_devices = [d for d in devices if d.process_index == jax.process_index()]
  devices = list(devices) or jax.devices(backend)
  last_device = devices[-1]
  if ici_mesh_shape is not None and dcn_mesh_shape is not None:
    return _multi_slice_mesh(ici_mesh_shape, dcn_mesh_shape, devices)
  _check_one_slice(devices)
  if model_parallel_submesh:
    return get_mesh(model_parallel_submesh, devices, local_devices, backend)
  if last_device.platform == 'cpu':
    return get_cpu_mesh()
  if not hasattr(last_device, 'coords'):
    return get_gpu_mesh(num_partitions)
  if last_device.device_kind not in _TPU_KINDS:
    raise ValueError(
        f'No default mesh for {last_device.device_kind!r} (known:'
        f' {", ".join(_TPU_KINDS)}); set model_parallel_submesh.'
    )
  submesh = _tpu_submesh(num_partitions, bounds_from_last_device(last_device))
  logging.info('Model submesh for %d partitions: %s', num_partitions, submesh)
  return get_mesh(submesh, devices, local_devices, backend)


def _check_one_slice(devices: Sequence[Any]) -> None:
  """Refuses several TPU slices: coordinates tell places inside one."""
  slices = {getattr(d, 'slice_index', None) or 0 for d in devices}
  if hasattr(devices[-1], 'coords') and len(slices) > 1:
    raise ValueError(
        f'The devices stand in {len(slices)} slices: set ici_mesh_shape and'
        ' dcn_mesh_shape, each (replica, data, model).'
    )


def platform() -> str:
  """Returns the platform that a step is traced for: 'tpu', 'gpu' or 'cpu'.

  It is that of the mesh around, which need not be here: a step for a pod may
  be compiled on a CPU. Without a mesh it is JAX's own.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform
