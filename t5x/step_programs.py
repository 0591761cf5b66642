"""The steps of a run as traced programs: shapes only, no weights, no data.

The train step is the trainer's own, with what gin sets there (microbatches,
schedule); the predict step is what inference evaluation runs. Both are traced
for the partitioner's mesh, whose devices need not be here.
"""

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any

from absl import logging
import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import seqio

from t5x import batches
from t5x import datasets
from t5x import inference
from t5x import initializer as initializer_lib
from t5x import multihost
from t5x.state_axes import is_spec

# The order in which they are compiled.
STEPS = ('train', 'predict')


@dataclasses.dataclass(frozen=True)
class Argument:
  """One array that a step takes.

  Attributes:
    name: of a parameter, of a part of the optimizer state, or of a feature.
    shape: of the global array.
    dtype: its type.
    spec: the mesh axis of each dimension.
    device_bytes: what one device holds of it.
  """

  name: str
  shape: tuple[int, ...]
  dtype: str
  spec: tuple[Any, ...]
  device_bytes: int


@dataclasses.dataclass(frozen=True)
class StepProgram:
  """A traced step.

  Attributes:
    name: 'train' or 'predict'.
    traced: gives the jaxpr, and lowers.
    arguments: what it takes, the largest share of a device first.
    batch_size: examples of the global batch.
  """

  name: str
  traced: jax.stages.Traced
  arguments: tuple[Argument, ...]
  batch_size: int


def trace_steps(
    *,
    model: Any,
    train_dataset_cfg: datasets.DatasetConfig,
    infer_eval_dataset_cfg: datasets.DatasetConfig | None,
    partitioner: Any,
    trainer_cls: Callable[..., Any],
    random_seed: int | None,
    use_hardware_rng: bool,
    get_dataset_fn: Callable[..., Any],
    train_state_initializer_cls: Callable[..., Any],
    steps: tuple[str, ...],
) -> list[StepProgram]:
  """Traces steps of a run; arguments as of `loop.train`.

  Args:
    model: see `loop.train`.
    train_dataset_cfg: see `loop.train`.
    infer_eval_dataset_cfg: see `loop.train`.
    partitioner: see `loop.train`.
    trainer_cls: see `loop.train`.
    random_seed: see `loop.train`.
    use_hardware_rng: see `loop.train`.
    get_dataset_fn: see `loop.train`.
    train_state_initializer_cls: see `loop.train`.
    steps: which of `STEPS`.

  Raises:
    ValueError: for an unknown step, or 'predict' without the data it is about.
  """
  unknown = sorted(set(steps) - set(STEPS))
  if unknown or not steps:
    raise ValueError(f'Steps must be of {STEPS}, got {steps}.')
  if 'predict' in steps and infer_eval_dataset_cfg is None:
    raise ValueError(
        'The predict step is that of inference evaluation, and this run has'
        ' none: infer_eval_dataset_cfg is None. Compile the train step only.'
    )
  if use_hardware_rng or random_seed is None:
    multihost.set_hardware_rng_ops()
  # Any seed gives the same program.
  rng = jax.random.PRNGKey(random_seed or 0)
  layout = partitioner.get_data_layout(train_dataset_cfg.batch_size)
  spec = batches.get_step_spec(model, train_dataset_cfg, layout, get_dataset_fn)
  initializer = train_state_initializer_cls(
      optimizer_def=model.optimizer_def,
      init_fn=model.get_initial_variables,
      input_shapes={name: feature.shape for name, feature in spec.items()},
      input_types={name: feature.dtype for name, feature in spec.items()},
      partitioner=partitioner,
  )
  programs = []
  if 'train' in steps:
    programs.append(
        _train_step(initializer, spec, model, partitioner, trainer_cls, rng)
    )
  if 'predict' in steps:
    cfg = infer_eval_dataset_cfg
    if cfg.task_feature_lengths is None:
      logging.warning(
          'The lengths of inference evaluation follow from its data; the'
          ' predict step is compiled with those of training: %s.',
          train_dataset_cfg.task_feature_lengths,
      )
      lengths = train_dataset_cfg.task_feature_lengths
      cfg = dataclasses.replace(cfg, task_feature_lengths=lengths)
    programs.append(
        _predict_step(initializer, cfg, model, partitioner, get_dataset_fn)
    )
  return programs


def _train_step(
    initializer: initializer_lib.TrainStateInitializer,
    spec: Mapping[str, jax.ShapeDtypeStruct],
    model: Any,
    partitioner: Any,
    trainer_cls: Callable[..., Any],
    rng: jax.Array,
) -> StepProgram:
  state, axes = (
      initializer.global_train_state_shape,
      initializer.train_state_axes,
  )
  trainer = trainer_cls(
      model=model,
      train_state=state,
      partitioner=partitioner,
      train_state_axes=axes,
      eval_names=[],
      summary_dir=None,
      rng=rng,
  )
  traced = trainer._partitioned_train_step.trace(trainer.train_state, spec)
  trainer.close()
  named = _named(state.state_dict(), axes.state_dict(), partitioner.mesh)
  return _program('train', traced, named, spec, partitioner)


def _predict_step(
    initializer: initializer_lib.TrainStateInitializer,
    cfg: datasets.DatasetConfig,
    model: Any,
    partitioner: Any,
    get_dataset_fn: Callable[..., Any],
) -> StepProgram:
  layout = partitioner.get_data_layout(cfg.batch_size)
  spec = batches.get_step_spec(model, cfg, layout, get_dataset_fn)
  state, axes = (
      initializer.global_train_state_shape,
      initializer.train_state_axes,
  )
  step = inference.partition_infer_step(
      getattr(model, _predict_method(cfg)), axes, partitioner
  )
  rng = jax.eval_shape(lambda: jax.random.PRNGKey(0))
  traced = step.trace(state.params, spec, rng, state.flax_mutables)
  named = _named(
      {'target': state.params}, {'target': axes.params}, partitioner.mesh
  )
  return _program('predict', traced, named, spec, partitioner)


def _predict_method(cfg: datasets.DatasetConfig) -> str:
  """Names the model's method that the metrics of the tasks ask for."""
  tasks = seqio.get_subtasks(datasets.get_mixture_or_task(cfg))
  if any(task.predict_with_aux_metric_fns for task in tasks):
    return 'predict_batch_with_aux'
  if any(task.predict_metric_fns for task in tasks):
    return 'predict_batch'
  return 'score_batch'


def _program(
    name: str,
    traced: jax.stages.Traced,
    state: list[Argument],
    spec: Mapping[str, jax.ShapeDtypeStruct],
    partitioner: Any,
) -> StepProgram:
  axes = {feature: partitioner.data_partition_spec for feature in spec}
  arguments = [*state, *_named(spec, axes, partitioner.mesh, 'batch/')]
  arguments.sort(key=lambda argument: -argument.device_bytes)
  batch_size = next(iter(spec.values())).shape[0]
  return StepProgram(name, traced, tuple(arguments), batch_size)


def _named(
    shapes: Any, axes: Any, mesh: jax.sharding.Mesh, prefix: str = ''
) -> list[Argument]:
  """Lists the arrays of a tree of dicts with their mesh axes."""
  specs = dict(jax.tree_util.tree_leaves_with_path(axes, is_leaf=is_spec))
  arguments = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
    spec = specs.get(path) or PartitionSpec()
    shard = NamedSharding(mesh, spec).shard_shape(leaf.shape)
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    arguments.append(
        Argument(
            prefix + name,
            leaf.shape,
            str(leaf.dtype),
            tuple(spec),
            math.prod(shard) * leaf.dtype.itemsize,
        )
    )
  return arguments
