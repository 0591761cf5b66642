"""Partitioners: place the train state and the batch on a device mesh.

A partitioner owns the mesh and the rules from logical axis names to mesh axes.
The trainer asks it for the layout of the input data, for the mesh axes of a
train state, and for jitted functions that run inside mesh and rules.

On CPU the default mesh is (processes, local devices), so all devices of one
process stand on `model`, whatever `num_partitions` says. To split the batch
over eight virtual CPU devices, use `model_parallel_submesh=(1, 1, 1, 1)`, and
`(1, 1, 1, 2)` for a 4 x 2 mesh.
"""

import abc
from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import functools
import math
from typing import Any

from absl import logging
from flax.core import spmd
import jax
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from t5x import mesh_description
from t5x.axis_rules import LogicalAxisRules
from t5x.axis_rules import standard_logical_axis_rules
from t5x.axis_rules import update_logical_axis_rules
from t5x.local_chunks import LocalChunker
from t5x.local_chunks import LocalChunkInfo
from t5x.mesh import HardwareMesh
from t5x.mesh import bounds_from_last_device
from t5x.mesh import default_mesh
from t5x.mesh import get_coords
from t5x.mesh import get_cpu_mesh
from t5x.mesh import get_gpu_mesh
from t5x.mesh import get_mesh
from t5x.mesh import platform
from t5x.state_axes import AxisNames
from t5x.state_axes import TowerRules
from t5x.state_axes import is_spec
from t5x.state_axes import mesh_axes_of_state

__all__ = [
    'AxisNames',
    'BasePartitioner',
    'BasePjitPartitioner',
    'DataLayout',
    'HardwareMesh',
    'LocalChunkInfo',
    'LocalChunker',
    'LogicalAxisRules',
    'Mesh',
    'PartitionSpec',
    'PjitPartitioner',
    'PjittedFnWithContext',
    'bounds_from_last_device',
    'default_mesh',
    'get_coords',
    'get_cpu_mesh',
    'get_gpu_mesh',
    'get_mesh',
    'host_local_array_to_global_array',
    'standard_logical_axis_rules',
    'update_logical_axis_rules',
    'with_sharding_constraint',
]


@dataclasses.dataclass(frozen=True)
class DataLayout:
  """How the global batch is split over hosts.

  Attributes:
    batch_size: examples of the global batch.
    shard_id: which part this host reads.
    num_shards: number of different parts.
    is_first_host_in_replica_set: True on one of the hosts that read this part.
  """

  batch_size: int
  shard_id: int
  num_shards: int
  is_first_host_in_replica_set: bool


def with_sharding_constraint(x: Any, axis_resources: Any) -> Any:
  """Constrains arrays to mesh axes; on CPU and outside a mesh, a no-op."""
  no_mesh = jax.sharding.get_abstract_mesh().empty
  if no_mesh or platform() == 'cpu':
    return x
  return jax.lax.with_sharding_constraint(x, axis_resources)


def host_local_array_to_global_array(
    arr: np.ndarray, global_mesh: Mesh, pspec: PartitionSpec
) -> jax.Array:
  """Joins each host's part of a batch into one global array.

  Args:
    arr: this host's part.
    global_mesh: the mesh of all hosts.
    pspec: mesh axes of the global array.

  Returns:
    The global array, sharded as `pspec` says.
  """
  sharding = NamedSharding(global_mesh, pspec)
  return jax.make_array_from_process_local_data(sharding, np.asarray(arr))


class PjittedFnWithContext:
  """A jitted function that runs inside a mesh and logical axis rules."""

  def __init__(
      self, fn: Callable[..., Any], mesh: Mesh, rules: LogicalAxisRules = ()
  ):
    self._fn = fn
    self._mesh = mesh
    self._rules = tuple(rules)

  @contextlib.contextmanager
  def _context(self):
    with jax.set_mesh(self._mesh), spmd.logical_axis_rules(self._rules):
      yield

  def __call__(self, *args, **kwargs):
    """Runs the function."""
    with self._context():
      return self._fn(*args, **kwargs)

  def trace(self, *args, **kwargs) -> jax.stages.Traced:
    """Traces the function for these arguments, arrays or their shapes."""
    with self._context():
      return self._fn.trace(*args, **kwargs)

  def lower(self, *args, **kwargs) -> jax.stages.Lowered:
    """Lowers the function for these arguments, arrays or their shapes."""
    with self._context():
      return self._fn.lower(*args, **kwargs)


class BasePartitioner(metaclass=abc.ABCMeta):
  """Interface of all partitioners.

  Attributes:
    params_on_devices: False keeps the parameters in host memory until
      `move_params_to_devices`.
  """

  def __init__(
      self,
      num_partitions: int | None = None,
      model_parallel_submesh: HardwareMesh | None = None,
      params_on_devices: bool = True,
      backend: str | None = None,
      ici_mesh_shape: Sequence[int] | None = None,
      dcn_mesh_shape: Sequence[int] | None = None,
  ):
    """Checks the layout.

    Args:
      num_partitions: devices that share one copy of the model.
      model_parallel_submesh: (x, y, z, core) of one copy; wins over the former.
      params_on_devices: see the class.
      backend: platform to use, by default JAX's.
      ici_mesh_shape: (replica, data, model) inside a slice.
      dcn_mesh_shape: (replica, data, model) over slices.

    Raises:
      ValueError: if neither of the first two is given.
    """
    if not num_partitions and not model_parallel_submesh:
      raise ValueError(
          'At least one of `num_partitions` or `model_parallel_submesh` must be'
          f' set, got {num_partitions!r} and {model_parallel_submesh!r}.'
      )
    if num_partitions and model_parallel_submesh:
      if math.prod(model_parallel_submesh) != num_partitions:
        logging.warning(
            'num_partitions=%d is ignored: model_parallel_submesh=%s is set.',
            num_partitions,
            model_parallel_submesh,
        )
    if (ici_mesh_shape is None) != (dcn_mesh_shape is None):
      raise ValueError(
          'Set both or none of ici_mesh_shape and dcn_mesh_shape, got'
          f' {ici_mesh_shape} and {dcn_mesh_shape}.'
      )
    self._num_partitions = num_partitions
    self._model_parallel_submesh = model_parallel_submesh
    self._backend = backend
    self._ici_mesh_shape = ici_mesh_shape
    self._dcn_mesh_shape = dcn_mesh_shape
    self._devices: Sequence[Any] = ()
    self._data_axis = 'data' if ici_mesh_shape is None else ('replica', 'data')
    self.params_on_devices = params_on_devices

  @property
  @abc.abstractmethod
  def mesh(self) -> Mesh:
    """The mesh of all devices."""

  @property
  @abc.abstractmethod
  def logical_axis_rules(self) -> LogicalAxisRules:
    """Rules from logical names to mesh axes, in priority order."""

  def use_devices(self, devices: Sequence[Any]) -> None:
    """Builds the mesh of these devices instead of JAX's own.

    Functions can be compiled for devices that are not here, but not run.

    Args:
      devices: such as those of `topology.get_topology`.

    Raises:
      RuntimeError: if the mesh is built already.
    """
    if 'mesh' in vars(self):
      raise RuntimeError('The mesh is built already: set its devices before.')
    self._devices = tuple(devices)

  @property
  def data_partition_spec(self) -> PartitionSpec:
    """Mesh axes of the batch dimension."""
    return PartitionSpec(self._data_axis)

  @functools.cached_property
  def _local_chunker(self) -> LocalChunker:
    return LocalChunker(self.mesh)

  def get_data_layout(self, batch_size: int | None = None) -> DataLayout:
    """Splits a global batch over the hosts.

    Args:
      batch_size: examples of the global batch; by default one per device of
        the data axis.

    Returns:
      This host's part.

    Raises:
      ValueError: if the batch does not divide over the data axis.
    """
    axes = np.atleast_1d(self._data_axis).tolist()
    size = math.prod(self.mesh.shape[axis] for axis in axes)
    batch_size = size if batch_size is None else batch_size
    if batch_size <= 0 or batch_size % size:
      below, above = batch_size // size * size, -(-batch_size // size) * size
      nearest = [n for n in dict.fromkeys((below, above)) if n > 0] or [size]
      raise ValueError(
          f'Batch size ({batch_size}) must be a positive multiple of the size'
          f' ({size}) of mesh axis {self._data_axis!r}; nearest:'
          f' {" or ".join(map(str, nearest))}.'
      )
    chunker = self._local_chunker
    chunk = chunker.get_local_chunk_info((batch_size,), [axes])
    num_shards = math.prod(chunker.num_chunks[axis] for axis in axes)
    # One shard means an unbounded slice only if the axis were unsplit; here
    # the slice always has a start.
    shard_id = chunk.slice[0].start * num_shards // batch_size
    return DataLayout(batch_size, shard_id, num_shards, chunk.replica_id == 0)

  def get_local_chunk_info(
      self, global_shape: Sequence[int], mesh_axes: Sequence[Any]
  ) -> LocalChunkInfo:
    """Returns this host's part of a global array."""
    return self._local_chunker.get_local_chunk_info(global_shape, mesh_axes)

  def get_logical_axes(self, train_state: Any) -> Any:
    """Returns the train state with logical axis names for arrays."""
    return train_state.as_logical_axes()

  @abc.abstractmethod
  def get_mesh_axes(self, train_state: Any) -> Any:
    """Returns the train state with a mesh PartitionSpec (or None) a leaf."""

  @abc.abstractmethod
  def partition(
      self,
      fn: Callable[..., Any],
      in_axis_resources: Any,
      out_axis_resources: Any,
      static_argnums: int | Sequence[int] = (),
      donate_argnums: int | Sequence[int] = (),
  ) -> PjittedFnWithContext:
    """Jits a function with its arguments and results placed on the mesh.

    Args:
      fn: the function.
      in_axis_resources: a tuple with a PartitionSpec (or None, replicated) for
        each leaf of the arguments; a spec may stand for a whole sub-tree.
      out_axis_resources: the same for the results.
      static_argnums: arguments that are constants; without an entry above.
      donate_argnums: arguments whose memory the results may take over.

    Returns:
      A callable with `.lower`.
    """

  def compile(self, fn: PjittedFnWithContext, *args) -> jax.stages.Compiled:
    """Compiles a partitioned function ahead of its first call."""
    return fn.lower(*args).compile()

  @abc.abstractmethod
  def move_params_to_devices(self, train_state: Any, axes: Any) -> Any:
    """Moves a train state to the devices, placed as `axes` says."""


class BasePjitPartitioner(BasePartitioner):
  """A partitioner that places arrays with jit's sharding arguments."""

  @functools.cached_property
  def mesh(self) -> Mesh:
    """The mesh of all devices; building it is logged."""
    mesh = default_mesh(
        self._num_partitions,
        self._model_parallel_submesh,
        self._backend,
        self._ici_mesh_shape,
        self._dcn_mesh_shape,
        self._devices,
    )
    if jax.process_index() == 0:
      # Here, so that it stands before whatever may not fit it.
      for line in mesh_description.mesh_lines(mesh, self.logical_axis_rules):
        logging.info('%s', line)
    return mesh

  def _shardings(self, axis_resources: Any) -> Any:
    """Replaces specs by shardings; None is replicated."""
    return jax.tree.map(
        lambda spec: NamedSharding(
            self.mesh, PartitionSpec() if spec is None else spec
        ),
        axis_resources,
        is_leaf=is_spec,
    )

  def partition(
      self,
      fn: Callable[..., Any],
      in_axis_resources: Any,
      out_axis_resources: Any,
      static_argnums: int | Sequence[int] = (),
      donate_argnums: int | Sequence[int] = (),
  ) -> PjittedFnWithContext:
    """Jits a function on the mesh; see the base class."""
    jitted = jax.jit(
        fn,
        in_shardings=self._shardings(in_axis_resources),
        out_shardings=self._shardings(out_axis_resources),
        static_argnums=static_argnums,
        donate_argnums=donate_argnums,
    )
    return PjittedFnWithContext(jitted, self.mesh, self.logical_axis_rules)

  def move_params_to_devices(self, train_state: Any, axes: Any) -> Any:
    """Moves a train state to the devices, placed as `axes` says."""
    return jax.device_put(train_state, self._shardings(axes))


class PjitPartitioner(BasePjitPartitioner):
  """Partitions by logical axis names and rules."""

  def __init__(
      self,
      num_partitions: int | None = None,
      model_parallel_submesh: HardwareMesh | None = None,
      params_on_devices: bool = True,
      backend: str | None = None,
      ici_mesh_shape: Sequence[int] | None = None,
      dcn_mesh_shape: Sequence[int] | None = None,
      logical_axis_rules: LogicalAxisRules | None = None,
      tower_rules: TowerRules = (),
  ):
    """Checks layout and rules.

    Args:
      num_partitions: see the base class.
      model_parallel_submesh: see the base class.
      params_on_devices: see the base class.
      backend: see the base class.
      ici_mesh_shape: see the base class.
      dcn_mesh_shape: see the base class.
      logical_axis_rules: rules in priority order, by default the standard ones.
      tower_rules: pairs of a regular expression, searched in parameters' names,
        and rules that replace those of the same logical names there. They place
        parameters and moments; activations keep the common rules.

    Raises:
      ValueError: for an incomplete layout.
    """
    super().__init__(
        num_partitions,
        model_parallel_submesh,
        params_on_devices,
        backend,
        ici_mesh_shape,
        dcn_mesh_shape,
    )
    if logical_axis_rules is None:
      logical_axis_rules = standard_logical_axis_rules()
    if ici_mesh_shape is not None:
      logical_axis_rules = update_logical_axis_rules(
          logical_axis_rules, (('batch', self._data_axis),)
      )
    self._logical_axis_rules = tuple(
        (name, axis) for name, axis in logical_axis_rules
    )
    self._tower_rules = tuple(tower_rules)

  @property
  def logical_axis_rules(self) -> LogicalAxisRules:
    """Rules from logical names to mesh axes, in priority order."""
    return self._logical_axis_rules

  @property
  def tower_rules(self) -> TowerRules:
    """Other rules for some parameters: see the constructor."""
    return self._tower_rules

  def get_mesh_axes(self, train_state: Any) -> Any:
    """Returns the train state with a mesh PartitionSpec (or None) a leaf.

    Args:
      train_state: arrays or their shapes, with `as_logical_axes`.

    Returns:
      The state of specs, as `partition` takes it.

    Raises:
      ValueError: if a parameter's axes have no rule or do not divide evenly,
        and the message names the parameter; or if a pattern of the tower rules
        matches none.
    """
    return mesh_axes_of_state(
        train_state,
        self.get_logical_axes(train_state),
        self._logical_axis_rules,
        dict(self.mesh.shape),
        self._tower_rules,
    )
