"""The trainer: runs compiled steps over batches and reports their metrics.

`Trainer.train` takes batches from an iterator, `Trainer.eval` runs evaluation
tasks. A step is three free functions, looked up in this module when a step is
traced: `accumulate_grads_microbatched`, `apply_grads` and `eval_step`.
"""

import abc
from collections.abc import Callable, Iterator, Mapping
import concurrent.futures
import difflib
import functools
import math
import time
from typing import Any

from absl import logging
from flax.core import freeze
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np

from t5x import interval_metrics
from t5x import models
from t5x import partitioning
from t5x import preemption
from t5x import reporting
from t5x import run_sizes
from t5x import step_guard
from t5x import train_state as train_state_lib
from t5x.actions import ActionMapType
from t5x.actions import ActionMode
from t5x.actions import BaseAction
from t5x.actions import EarlyStoppingAction
from t5x.actions import TerminateOnNanAction
from t5x.gradients import DATA_PARTITION_SPEC
from t5x.gradients import MetricMap
from t5x.gradients import WeightMetricsComputer
from t5x.gradients import accumulate_grads_microbatched
from t5x.gradients import apply_grads
from t5x.gradients import eval_step
from t5x.gradients import merge_metrics
from t5x.preemption import PreemptionError

__all__ = [
    'ActionMapType',
    'ActionMode',
    'BaseAction',
    'BaseTrainer',
    'EarlyStoppingAction',
    'LearningRateCallable',
    'MetricMap',
    'MetricsManager',
    'PreemptionError',
    'TerminateOnNanAction',
    'Trainer',
    'WeightMetricsComputer',
    'accumulate_grads_microbatched',
    'apply_grads',
    'eval_step',
    'merge_metrics',
    'train_with_lr',
]

LearningRateCallable = Callable[[jax.Array], jax.Array]


def _time() -> float:
  """The trainer's only clock, in seconds."""
  return time.time()


class MetricsManager(reporting.MetricsManager):
  """`reporting.MetricsManager` on the trainer's clock."""

  def __init__(self, name: str, summary_dir: str | None = None):
    super().__init__(name, summary_dir, clock=lambda: _time())


def _shape_key(batch: Any) -> Any:
  """Identifies the shapes and types of a batch, as compilation sees them."""
  leaves, treedef = jax.tree.flatten(batch)
  shapes = tuple((np.shape(x), jax.dtypes.result_type(x)) for x in leaves)
  return treedef, shapes


class BaseTrainer(abc.ABC):
  """Runs training and evaluation steps that a subclass defines.

  Attributes:
    train_state: the state after the last step.
    stop_training: set it to end the training; the loop asks for it.
    on_step: called after each step's dispatch with its metrics, or None.
    train_metrics_manager: writes to `train/`.
    eval_metrics_managers: by task, write to `training_eval/<task>/`.
  """

  # Judges the steps, if a subclass sets one; its steps report to it.
  _guard: step_guard.StepGuard | None = None

  def __init__(
      self,
      model: models.BaseModel,
      train_state: train_state_lib.TrainState,
      partitioner: partitioning.BasePartitioner,
      eval_names: list[str],
      summary_dir: str | None,
      train_state_axes: Any,
      rng: jax.Array,
  ):
    """Opens the metric writers.

    Args:
      model: the model.
      train_state: the state to start from. Its memory is taken over by the
        first step.
      partitioner: places arrays on devices.
      eval_names: evaluation tasks.
      summary_dir: where metrics go, None for nowhere.
      train_state_axes: mesh axes, as from `partitioner.get_mesh_axes`.
      rng: random key; step s uses `fold_in(rng, s)`.
    """
    self._start_time = _time()
    self._model = model
    self._partitioner = partitioner
    self._train_state_axes = train_state_axes
    self._base_rng = rng
    self.train_state = train_state
    self.stop_training = False
    self.on_step: Callable[[MetricMap], None] | None = None
    self._compiled_train_step: Any = None
    self._compiled_eval_steps: dict[str, Any] = {}
    self._compiled_eval_by_shape: dict[Any, Any] = {}
    self.train_metrics_manager = MetricsManager('train', summary_dir)
    self.eval_metrics_managers = {
        name: MetricsManager(f'training_eval/{name}', summary_dir)
        for name in eval_names
    }

  @property
  @abc.abstractmethod
  def _partitioned_train_step(self) -> Any:
    """(state, batch) → (new state, metrics), on the mesh."""

  @property
  @abc.abstractmethod
  def _partitioned_eval_step(self) -> Any:
    """(state, batch) → metrics, on the mesh."""

  def _get_step_rng(self, step: jax.Array) -> jax.Array:
    return jax.random.fold_in(jnp.asarray(self._base_rng), step)

  def train(
      self,
      batch_iter: Iterator[models.Batch],
      num_steps: int,
      start_step: int | None = None,
  ) -> concurrent.futures.Future:
    """Trains for some steps.

    Args:
      batch_iter: gives a global batch a step.
      num_steps: number of steps, at least 1.
      start_step: the step to count from, by default the state's (reading it
        waits for the device).

    Returns:
      The future of the interval's metric values by name.

    Raises:
      ValueError: if there is no step to run.
      PreemptionError: if the machine is about to go away; the state is whole,
        and the metrics up to its step are written.
      BadStepError: if the guard ends the run; likewise.
    """
    if num_steps < 1:
      raise ValueError(f'num_steps must be at least 1, got {num_steps}.')
    if start_step is None:
      start_step = int(self.train_state.step)
    manager = self.train_metrics_manager
    # A copy: the first step takes over the state's own buffers, maybe before
    # the timer's thread has seen that they are computed.
    manager.start_duration_timer(block_on=jnp.copy(self.train_state.step))
    metrics = interval_metrics.IntervalMetrics()
    step, stops, bad_step = start_step, False, None
    guard_log = None
    if self._guard is not None:
      guard_log = step_guard.GuardLog(self._guard, batch_iter)
    for step in range(start_step, start_step + num_steps):
      logging.log_every_n_seconds(logging.INFO, 'Training: step %d', 10, step)
      with jax.profiler.StepTraceAnnotation('train', step_num=step):
        batch = next(batch_iter)
        step_fn = self._compiled_train_step or self._partitioned_train_step
        self.train_state, update = step_fn(self.train_state, batch)
        if self.on_step is not None:
          self.on_step(update)
        metrics.add(update)
        if guard_log is not None:
          bad_step = guard_log.add(step, batch, update)
      stops = preemption.reached()
      if stops or bad_step:
        break
    if guard_log is not None:
      bad_step = bad_step or guard_log.finish()
    end_step = step + 1
    # In the background, so that the clock is read in the interval's order.
    manager.write_scalar(
        'timing/uptime', lambda: _time() - self._start_time, end_step
    )
    summary = manager.write_metrics_summary(
        metrics.result(), end_step, end_step - start_step
    )
    if bad_step is not None:
      raise bad_step
    if stops:
      raise PreemptionError(f'Asked to stop; step {end_step} is done.')
    return summary

  def eval(
      self, batch_iters: Mapping[str, Iterator[models.Batch]]
  ) -> dict[str, Mapping[str, Any]]:
    """Evaluates the current state.

    Args:
      batch_iters: batches by task, each iterator to its end.

    Returns:
      Metric values by task and name.

    Raises:
      ValueError: for an unknown task, or one without a batch.
      PreemptionError: if the machine is about to go away.
    """
    summaries = {}
    step = int(self.train_state.step)
    for name, batch_iter in batch_iters.items():
      manager = self._eval_metrics_manager(name)
      manager.start_duration_timer(block_on=self.train_state)
      step_fn = self._compiled_eval_steps.get(name)
      step_fn = step_fn or self._partitioned_eval_step
      metrics, num_steps = interval_metrics.IntervalMetrics(), 0
      for batch in batch_iter:
        update = step_fn(self.train_state, batch)
        num_steps += 1
        metrics.add(update)
        preemption.raise_if_reached()
      if not num_steps:
        raise ValueError(
            f'Evaluation task {name!r} has no batch; check its split and that'
            ' it has at least one full batch.'
        )
      summaries[name] = manager.write_metrics_summary(
          metrics.result(), step, num_steps
      )
    return {name: summary.result() for name, summary in summaries.items()}

  def _eval_metrics_manager(self, name: str) -> MetricsManager:
    managers = self.eval_metrics_managers
    if name not in managers:
      close = difflib.get_close_matches(name, managers) or sorted(managers)
      raise ValueError(
          f'Evaluation task {name!r} is not in eval_names; nearest: {close}.'
      )
    return managers[name]

  def compile_train(self, batch: models.Batch) -> None:
    """Compiles the training step for batches (or shapes) like this one."""
    start = _time()
    self._compiled_train_step = self._partitioner.compile(
        self._partitioned_train_step, self.train_state, batch
    )
    self.train_metrics_manager.write_scalar(
        'timing/compilation_seconds', _time() - start, self.train_state.step
    )

  def compile_eval(self, batches: Mapping[str, models.Batch]) -> None:
    """Compiles the evaluation step, once per distinct shape.

    Args:
      batches: a batch (or its shapes) by task.
    """
    for name, batch in batches.items():
      start = _time()
      key = _shape_key(batch)
      if key not in self._compiled_eval_by_shape:
        self._compiled_eval_by_shape[key] = self._partitioner.compile(
            self._partitioned_eval_step, self.train_state, batch
        )
      self._compiled_eval_steps[name] = self._compiled_eval_by_shape[key]
      self._eval_metrics_manager(name).write_scalar(
          'timing/compilation_seconds', _time() - start, self.train_state.step
      )

  def close(self) -> None:
    """Writes what is left and closes the writers."""
    for manager in (
        self.train_metrics_manager,
        *self.eval_metrics_managers.values(),
    ):
      manager.close()


def train_with_lr(
    train_state: train_state_lib.TrainState,
    batch: models.Batch,
    learning_rate: jax.Array,
    dropout_rng: jax.Array,
    model: models.BaseModel,
    num_microbatches: int | None,
    weight_metrics_computer: WeightMetricsComputer | None = None,
    data_partition_spec: PartitionSpec = DATA_PARTITION_SPEC,
    guard: step_guard.StepGuard | None = None,
) -> tuple[train_state_lib.TrainState, MetricMap]:
  """Runs one training step.

  Args:
    train_state: the state before the step.
    batch: arrays [B, ...] by feature.
    learning_rate: this step's learning rate.
    dropout_rng: this step's random key.
    model: the model.
    num_microbatches: see `accumulate_grads_microbatched`.
    weight_metrics_computer: adds metrics of weights, if given.
    data_partition_spec: mesh axes of the batch dimension.
    guard: takes a bad step back, if given.

  Returns:
    (the state after the step, metrics by name).
  """
  grads, metrics, flax_mutables = accumulate_grads_microbatched(
      model,
      train_state,
      batch,
      dropout_rng,
      num_microbatches,
      data_partition_spec,
  )
  others = None
  if flax_mutables:
    others = {'flax_mutables': freeze(flax_mutables)}
  new_state, metrics = apply_grads(
      train_state,
      grads,
      metrics,
      learning_rate,
      weight_metrics_computer,
      other_state_variables=others,
  )
  if guard is None:
    return new_state, metrics
  return guard.judge(train_state, new_state, grads, metrics)


class Trainer(BaseTrainer):
  """Trains with gradient steps on one learning rate schedule."""

  def __init__(
      self,
      model: models.BaseModel,
      train_state: train_state_lib.TrainState,
      partitioner: partitioning.BasePartitioner,
      eval_names: list[str],
      summary_dir: str | None,
      train_state_axes: Any,
      rng: jax.Array,
      learning_rate_fn: LearningRateCallable,
      num_microbatches: int | None,
      weight_metrics_computer: WeightMetricsComputer | None = None,
      guard: step_guard.StepGuard | None = None,
  ):
    """Keeps the settings.

    Args:
      model: see the base class.
      train_state: see the base class. With the memory of a guard, the guard
        goes on with it.
      partitioner: see the base class.
      eval_names: see the base class.
      summary_dir: see the base class.
      train_state_axes: see the base class.
      rng: see the base class.
      learning_rate_fn: learning rate by step.
      num_microbatches: slices of a batch, None for one.
      weight_metrics_computer: adds metrics of weights, if given.
      guard: skips the updates of bad steps and may end the run; None, as in
        upstream T5X, takes every step.
    """
    memory = getattr(train_state, 'guard_memory', None)
    # Without a state, as in `t5x.eval`, a trainer never trains.
    if guard is not None and train_state is not None:
      # It rides in the state, so that a step keeps its arguments.
      memory = guard.memory() if memory is None else guard.resume(memory)
      axes = PartitionSpec()
      if isinstance(train_state.step, jax.Array):
        memory = partitioner.move_params_to_devices(memory, axes)
      train_state = train_state.replace(guard_memory=memory)
      train_state_axes = train_state_axes.replace(guard_memory=axes)
    elif memory is not None:
      train_state = train_state.replace(guard_memory=None)
    super().__init__(
        model,
        train_state,
        partitioner,
        eval_names,
        summary_dir,
        train_state_axes,
        rng,
    )
    self._learning_rate_fn = learning_rate_fn
    self._num_microbatches = num_microbatches
    self._weight_metrics_computer = weight_metrics_computer
    self._guard = guard

  @functools.cached_property
  def _partitioned_train_step(self) -> Any:
    def train_step(train_state, batch):
      self._check_microbatches(batch)
      return train_with_lr(
          train_state,
          batch,
          learning_rate=self._learning_rate_fn(train_state.step),
          dropout_rng=self._get_step_rng(train_state.step),
          model=self._model,
          num_microbatches=self._num_microbatches,
          weight_metrics_computer=self._weight_metrics_computer,
          data_partition_spec=self._partitioner.data_partition_spec,
          guard=self._guard,
      )

    return self._partitioner.partition(
        train_step,
        in_axis_resources=(
            self._train_state_axes,
            self._partitioner.data_partition_spec,
        ),
        out_axis_resources=(self._train_state_axes, None),
        donate_argnums=(0,),
    )

  def _check_microbatches(self, batch: models.Batch) -> None:
    """Refuses microbatches of which some devices would have no example.

    Raises:
      ValueError: with the numbers that would do.
    """
    batch_size = jnp.shape(jax.tree.leaves(batch)[0])[0]
    count = self._num_microbatches or 1
    axes = np.atleast_1d(self._partitioner.data_partition_spec[0]).tolist()
    parts = math.prod(self._partitioner.mesh.shape[axis] for axis in axes)
    if batch_size % count or batch_size % parts:
      return  # Told where the batch is cut.
    told = f'parts of mesh axis {" and ".join(map(repr, axes))}'
    fault = run_sizes.microbatch_fault(batch_size, count, parts, told)
    if fault:
      raise ValueError(f'Trainer: {fault}')

  @functools.cached_property
  def _partitioned_eval_step(self) -> Any:
    return self._partitioner.partition(
        lambda state, batch: eval_step(self._model, state, batch),
        in_axis_resources=(
            self._train_state_axes,
            self._partitioner.data_partition_spec,
        ),
        out_axis_resources=None,
    )
