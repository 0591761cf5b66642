"""Evaluating checkpoints after the run, one by one: `python -m t5x.eval`.

What is evaluated is on record in `eval.<task>.ckpt`, so that a job that was cut
off, or is started again later, goes on with the checkpoints it has not seen.
"""

from collections.abc import Callable
import contextlib
import os
from typing import Any

from absl import logging
from etils import epath
import jax
import seqio

from t5x import batches
from t5x import checkpoint_config
from t5x import checkpoint_dirs
from t5x import datasets
from t5x import evaluation
from t5x import gin_utils
from t5x import inference_states
from t5x import initializer as initializer_lib
from t5x import multihost


def evaluate(
    *,
    model: Any,
    dataset_cfg: datasets.DatasetConfig,
    restore_checkpoint_cfg: checkpoint_config.RestoreCheckpointConfig,
    partitioner: Any,
    output_dir: str,
    inference_evaluator_cls: Callable[..., Any] = seqio.Evaluator,
    training_evaluator_cls: Callable[..., Any] | None = None,
    summarize_config_fn: Callable[
        [str, Any, int], None
    ] = gin_utils.summarize_gin_config,
    train_state_initializer_cls: Callable[
        ..., Any
    ] = initializer_lib.TrainStateInitializer,
    train_eval_get_dataset_fn: Callable[
        ..., Any
    ] = datasets.get_training_eval_datasets,
    fallback_init_rng: int | None = None,
    use_orbax: bool = True,
    eval_steps: int | None = None,
) -> None:
  """Decodes and scores a data set with each checkpoint.

  Args:
    model: a `models.BaseModel`.
    dataset_cfg: the tasks, their split and lengths; not packed.
    restore_checkpoint_cfg: which checkpoints; mode 'all' skips those that are
      on record.
    partitioner: the mesh and its rules.
    output_dir: where metrics, results and the record are written.
    inference_evaluator_cls: makes the SeqIO evaluator.
    training_evaluator_cls: a `trainer.Trainer`, maybe with settings bound, to
      measure the loss as well; None measures none.
    summarize_config_fn: `(output_dir, None, 0)` writes the configuration.
    train_state_initializer_cls: makes train states.
    train_eval_get_dataset_fn: opens the data for `training_evaluator_cls`.
    fallback_init_rng: a seed for parameters that a checkpoint lacks, None if
      none may be missing.
    use_orbax: which manager reads; either reads both layouts.
    eval_steps: batches for `training_evaluator_cls`, None if
      `train_eval_get_dataset_fn` knows. Ours.

  Raises:
    ValueError: if no task has metrics for the split, if there is no checkpoint,
      or if vocabularies differ.
  """
  output_dir = checkpoint_dirs.absolute(output_dir)
  task_name = datasets.get_mixture_or_task(dataset_cfg).name
  partitioner.get_data_layout(dataset_cfg.batch_size)
  if jax.process_index() == 0:
    epath.Path(output_dir).mkdir(parents=True, exist_ok=True)
  multihost.sync_global_devices('eval:output_dir')
  summarize_config_fn(output_dir, None, 0)
  evaluator = evaluation.InferenceEvaluator(
      dataset_cfg,
      inference_evaluator_cls,
      model,
      partitioner,
      log_dir=output_dir,
  )
  if not evaluator.eval_tasks:
    raise ValueError(
        f'{task_name!r} has no metrics for evaluation on split '
        f'{dataset_cfg.split!r}: give its tasks metric_fns or metric_objs.'
    )
  states = inference_states.InferenceStates(
      model=model,
      input_shapes={
          name: (dataset_cfg.batch_size, *shape)
          for name, shape in evaluator.model_feature_shapes.items()
      },
      input_types=evaluator.model_feature_types,
      partitioner=partitioner,
      restore_cfg=restore_checkpoint_cfg,
      model_info_path=os.path.join(output_dir, 'model-info.txt'),
      train_state_initializer_cls=train_state_initializer_cls,
      fallback_init_rng=fallback_init_rng,
      use_orbax=use_orbax,
  )
  record = _Record(os.path.join(output_dir, f'eval.{task_name}.ckpt'))
  # All processes must agree, whatever one of them writes meanwhile.
  done = record.read() if restore_checkpoint_cfg.mode == 'all' else []
  multihost.sync_global_devices('eval:record')
  with contextlib.ExitStack() as closing:
    closing.callback(evaluator.close)
    losses = None
    if training_evaluator_cls is not None:
      losses = _LossEvaluation(
          model=model,
          dataset_cfg=dataset_cfg,
          partitioner=partitioner,
          output_dir=output_dir,
          trainer_cls=training_evaluator_cls,
          get_dataset_fn=train_eval_get_dataset_fn,
          eval_steps=eval_steps,
          train_state_axes=states.axes,
      )
      closing.callback(losses.close)
    for path in states.paths:
      if path in done:
        logging.info('%s is evaluated already.', path)
        continue
      logging.info('Evaluating %s.', path)
      train_state = states.restore(path)
      if losses is not None:
        losses.evaluate(train_state)
      # Other processes get no metrics; waiting is the same everywhere.
      evaluator.evaluate(train_state, states.axes).result()
      # The next state takes its memory.
      del train_state
      multihost.sync_global_devices(f'eval:{path}')
      if jax.process_index() == 0:
        record.add(path)
  logging.info('Evaluation finished: see %s.', output_dir)


class _Record:
  """The checkpoints that are done with: a file, one path a line."""

  def __init__(self, path: str):
    self._path = epath.Path(path)

  def read(self) -> list[str]:
    """Returns the paths, none without a file."""
    if not self._path.exists():
      return []
    return self._path.read_text().splitlines()

  def add(self, path: str) -> None:
    """Adds a path, unless it is there; the file is whole at any time."""
    done = dict.fromkeys([*self.read(), path])
    new = self._path.with_name(f'{self._path.name}.tmp')
    new.write_text(''.join(f'{path}\n' for path in done))
    new.replace(self._path)


class _LossEvaluation:
  """Measures the loss on batches, as a training run does."""

  def __init__(
      self,
      *,
      model: Any,
      dataset_cfg: datasets.DatasetConfig,
      partitioner: Any,
      output_dir: str,
      trainer_cls: Callable[..., Any],
      get_dataset_fn: Callable[..., Any],
      eval_steps: int | None,
      train_state_axes: Any,
  ):
    steps = {} if eval_steps is None else {'eval_steps': eval_steps}
    if not steps and get_dataset_fn is datasets.get_training_eval_datasets:
      raise ValueError(
          'training_evaluator_cls measures the loss on some batches: set '
          'evaluate.eval_steps to their number.'
      )
    layout = partitioner.get_data_layout(dataset_cfg.batch_size)
    found = get_dataset_fn(
        dataset_cfg,
        layout.shard_id,
        layout.num_shards,
        feature_converter_cls=model.FEATURE_CONVERTER_CLS,
        **steps,
    )
    self._batches = {
        name: batches.GlobalBatches(data, partitioner, layout.batch_size)
        for name, data in found.items()
    }
    self._trainer = trainer_cls(
        model=model,
        train_state=None,
        partitioner=partitioner,
        train_state_axes=train_state_axes,
        eval_names=list(self._batches),
        summary_dir=output_dir,
        rng=jax.random.PRNGKey(0),
        # It never trains.
        learning_rate_fn=None,
        num_microbatches=None,
    )

  def evaluate(self, train_state: Any) -> None:
    """Writes the loss of a state, and lets go of it."""
    self._trainer.train_state = train_state
    self._trainer.eval({k: iter(v) for k, v in self._batches.items()})
    self._trainer.train_state = None

  def close(self) -> None:
    """Waits until all is written."""
    self._trainer.close()
