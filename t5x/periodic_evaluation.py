"""What a training run measures now and then, on held-out data."""

from collections.abc import Callable, Iterator
import contextlib
import time
from typing import Any

from etils import epath
import jax

from t5x import batches
from t5x import datasets
from t5x import evaluation
from t5x import multihost
from t5x import stopping
from t5x import train_state as train_state_lib

DatasetConfig = datasets.DatasetConfig

# Holds the step whose evaluation was begun, until its metrics are written.
OWED_FILE = 'evaluation_owed'


def _to_evaluate(train_state: Any) -> Any:
  """Returns the state to evaluate: a moving average, where there is one."""
  # A state of another class is evaluated as it is.
  if not isinstance(train_state, train_state_lib.FlaxOptimTrainState):
    return train_state
  return train_state.to_evaluate()


@contextlib.contextmanager
def _holding(trainer: Any, train_state: Any) -> Iterator[None]:
  """Gives a trainer another state for a while."""
  own, trainer.train_state = trainer.train_state, train_state
  try:
    yield
  finally:
    trainer.train_state = own


class PeriodicEvaluation:
  """Both evaluations of a run: the loss on batches, and decoded results."""

  def __init__(
      self,
      *,
      model: Any,
      partitioner: Any,
      model_dir: str,
      train_eval_cfg: DatasetConfig | None,
      infer_eval_cfg: DatasetConfig | None,
      eval_steps: int,
      train_eval_get_dataset_fn: Callable[..., Any],
      inference_evaluator_cls: Callable[..., Any],
      verify_matching_vocabs_fn: Callable[..., None] | None,
      actions: stopping.ActionMap | None,
      concurrent_metrics: bool,
  ):
    """Opens the data of both; inference data are read here, once."""
    self._partitioner = partitioner
    self._actions = actions
    self._concurrent = concurrent_metrics
    # The step and the metrics that are still being computed.
    self._pending: tuple[int, Any] | None = None
    self._owed_path = epath.Path(model_dir) / OWED_FILE
    # Called with the step and the metrics by task of an inference evaluation.
    self.on_inference_metrics: Callable[[int, Any], None] | None = None
    self._compiled = False
    self._train_eval = {}
    self._evaluator = None
    if train_eval_cfg is not None:
      if verify_matching_vocabs_fn is not None:
        verify_matching_vocabs_fn(train_eval_cfg, model)
      layout = partitioner.get_data_layout(train_eval_cfg.batch_size)
      found = train_eval_get_dataset_fn(
          train_eval_cfg,
          layout.shard_id,
          layout.num_shards,
          eval_steps,
          model.FEATURE_CONVERTER_CLS,
      )
      self._train_eval = {
          name: batches.GlobalBatches(data, partitioner, layout.batch_size)
          for name, data in found.items()
      }
      if not self._train_eval:
        # Names the splits there are.
        datasets.check_split(train_eval_cfg)
    if infer_eval_cfg is not None:
      evaluator = evaluation.InferenceEvaluator(
          infer_eval_cfg,
          inference_evaluator_cls,
          model,
          partitioner,
          log_dir=model_dir,
          verify_matching_vocabs_fn=verify_matching_vocabs_fn,
      )
      self._evaluator = evaluator if evaluator.eval_tasks else None

  @property
  def is_on(self) -> bool:
    """Whether there is anything to evaluate."""
    return bool(self._train_eval or self._evaluator)

  @property
  def names(self) -> list[str]:
    """The tasks (and mixture) whose loss is measured."""
    return list(self._train_eval)

  def announce(self, step: int) -> None:
    """Notes on disk that a step is to be evaluated.

    Called before that step is saved: a run that is killed before its metrics
    are written resumes at this step, and finds what it owes (`is_owed`).

    Args:
      step: the step.
    """
    if self.is_on and jax.process_index() == 0:
      self._owed_path.write_text(str(step))

  def is_owed(self, step: int) -> bool:
    """Tells, on all hosts alike, whether a step still waits for its metrics."""
    owed = (
        jax.process_index() == 0
        and self._owed_path.exists()
        and self._owed_path.read_text() == str(step)
    )
    return self.is_on and multihost.broadcast_verdict(owed)

  def compile(self, trainer: Any) -> None:
    """Compiles the evaluation steps ahead."""
    if self._train_eval and not self._compiled:
      trainer.compile_eval(
          {
              name: batches.to_global(
                  batches.get_zeros_batch_like_dataset(data.dataset),
                  self._partitioner,
                  data.batch_size,
              )
              for name, data in self._train_eval.items()
          }
      )
    self._compiled = True

  def run(self, trainer: Any, train_state_axes: Any, step: int) -> bool:
    """Evaluates the trainer's state, with the parameters it has for that.

    Args:
      trainer: holds the state and writes the metrics.
      train_state_axes: partition specs of the state.
      step: the state's step.

    Returns:
      Whether an action asks to stop.
    """
    start = time.time()
    stop = False
    state = _to_evaluate(trainer.train_state)
    if self._train_eval:
      with _holding(trainer, state):
        summaries = trainer.eval(
            {k: iter(v) for k, v in self._train_eval.items()}
        )
      stop |= stopping.run_actions(
          'TRAIN_EVAL', self._actions, trainer.train_state, summaries
      )
    if self._evaluator:
      self._finish_pending()
      future = self._evaluator.evaluate(state, train_state_axes)
      self._pending = (step, future)
      if not self._concurrent:
        metrics = self._finish_pending()
        stop |= stopping.run_actions(
            'INFER_EVAL', self._actions, trainer.train_state, metrics or {}
        )
    else:
      self._settle(step)
    trainer.train_metrics_manager.write_scalar(
        'timing/evaluate_seconds', time.time() - start, step
    )
    return stop

  def close(self) -> None:
    """Waits for metrics; raises what went wrong in computing them."""
    self._finish_pending()
    if self._evaluator:
      self._evaluator.close()

  def _finish_pending(self) -> Any:
    if self._pending is None:
      return None
    (step, future), self._pending = self._pending, None
    # Other processes get None for metrics; waiting is the same everywhere.
    metrics = future.result()
    if self.on_inference_metrics is not None and metrics is not None:
      self.on_inference_metrics(step, metrics)
    self._settle(step)
    return metrics

  def _settle(self, step: int) -> None:
    """Forgets an owed evaluation, unless a later one was announced since."""
    if (
        jax.process_index() == 0
        and self._owed_path.exists()
        and self._owed_path.read_text() == str(step)
    ):
      self._owed_path.unlink()
