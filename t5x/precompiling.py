"""Compiles the steps of a configured run for a topology (`t5x.precompile`)."""

from collections.abc import Callable, Sequence
import dataclasses
import inspect
import os
from typing import Any

import jax

import gin
from t5x import compiled_step
from t5x import datasets
from t5x import initializer as initializer_lib
from t5x import loop
from t5x import step_programs
from t5x import topology as topology_lib
from t5x import trainer as trainer_lib


@dataclasses.dataclass(frozen=True)
class Report:
  """Compiled steps of one run.

  Attributes:
    topology: what they were compiled for.
    mesh_shape: devices by mesh axis.
    steps: one each.
  """

  topology: topology_lib.Topology
  mesh_shape: dict[str, int]
  steps: tuple[compiled_step.CompiledStep, ...]


def configured_run() -> dict[str, Any]:
  """Returns those arguments of `precompile` that gin sets for `loop.train`."""
  bindings = gin.get_bindings(gin.get_configurable(loop.train))
  defaults = inspect.signature(loop.train).parameters
  wanted = inspect.signature(precompile).parameters
  values = {
      name: parameter.default
      for name, parameter in defaults.items()
      if parameter.default is not inspect.Parameter.empty
  } | bindings
  return {
      name: value
      for name, value in values.items()
      if name in wanted and name != 'model_dir'
  }


def precompile(
    *,
    model: Any,
    train_dataset_cfg: datasets.DatasetConfig,
    partitioner: Any,
    model_dir: str | None,
    random_seed: int | None,
    get_dataset_fn: Callable[..., Any] = datasets.get_dataset,
    infer_eval_dataset_cfg: datasets.DatasetConfig | None = None,
    trainer_cls: Callable[..., Any] = trainer_lib.Trainer,
    train_state_initializer_cls: Callable[
        ..., Any
    ] = initializer_lib.TrainStateInitializer,
    use_hardware_rng: bool = False,
    topology: str = 'cpu:8',
    num_slices: int = 1,
    memory_limit: int | None = None,
    steps: Sequence[str] = ('train',),
) -> Report:
  """Compiles steps of a run for hardware that need not be here.

  Args:
    model: a `models.BaseModel`.
    train_dataset_cfg: what it trains on; no data are needed if its lengths
      tell the shapes.
    partitioner: the mesh and its rules; the mesh is built here.
    model_dir: a local directory where XLA leaves the text of the programs, in
      `<step>/`; None for nowhere.
    random_seed: None for keys of the fast generator, as a run takes them.
    get_dataset_fn: opens the data, where lengths do not tell.
    infer_eval_dataset_cfg: what the predict step reads.
    trainer_cls: makes the trainer.
    train_state_initializer_cls: makes train states.
    use_hardware_rng: whether keys use the accelerator's fast generator.
    topology: see `topology.get_topology`.
    num_slices: likewise.
    memory_limit: bytes that a device has, by default those of the chip.
    steps: of 'train' and 'predict'.

  Raises:
    ValueError: for a topology or mesh that cannot be.
  """
  hardware = topology_lib.get_topology(topology, num_slices)
  if hardware.chip is not None:
    partitioner.use_devices(hardware.devices)
  programs = step_programs.trace_steps(
      model=model,
      train_dataset_cfg=train_dataset_cfg,
      infer_eval_dataset_cfg=infer_eval_dataset_cfg,
      partitioner=partitioner,
      trainer_cls=trainer_cls,
      random_seed=random_seed,
      use_hardware_rng=use_hardware_rng,
      get_dataset_fn=get_dataset_fn,
      train_state_initializer_cls=train_state_initializer_cls,
      steps=tuple(steps),
  )
  compiled = []
  for program in programs:
    directory = os.path.join(model_dir, program.name) if model_dir else None
    with jax.set_mesh(partitioner.mesh):
      compiled.append(
          compiled_step.compile_step(
              program,
              hardware,
              partitioner.mesh,
              memory_limit=memory_limit,
              dump_dir=directory,
          )
      )
  return Report(hardware, dict(partitioner.mesh.shape), tuple(compiled))
