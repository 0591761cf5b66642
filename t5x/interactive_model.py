"""A model to play with: train, decode, score and evaluate texts in memory.

For notebooks. Each call is what the scripts do, on examples that stand in the
call; `get_gin_config_from_interactive_model` and `get_seqio_task_from_examples`
lead from there to the scripts. A model whose tasks are not texts needs its own
features and preprocessors, and so the scripts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import itertools
import os
from typing import Any

from etils import epath
import jax
import numpy as np
import seqio
import tensorflow as tf

from t5x import batches as batches_lib
from t5x import checkpoint_config
from t5x import checkpoint_managers
from t5x import initializer as initializer_lib
from t5x import learning_rates
from t5x import model_info
from t5x import multihost
from t5x import text_metrics
from t5x import trainer as trainer_lib
from t5x.interactive_config import T5XScriptType
from t5x.interactive_config import get_gin_config_from_interactive_model
from t5x.text_examples import DEFAULT_PREPROCESSORS
from t5x.text_examples import Example
from t5x.text_examples import Preprocessors
from t5x.text_examples import get_batches_from_seqio
from t5x.text_examples import get_dataset_from_natural_text_examples
from t5x.text_examples import get_seqio_task_from_examples
from t5x.text_inference import Inferences
from t5x.text_inference import InferenceType
from t5x.text_inference import TextInference

__all__ = [
    'InferenceType',
    'InteractiveModel',
    'T5XScriptType',
    'get_batches_from_seqio',
    'get_dataset_from_natural_text_examples',
    'get_gin_config_from_interactive_model',
    'get_seqio_task_from_examples',
]


class InteractiveModel:
  """A model with its train state, trainer and directory."""

  def __init__(
      self,
      batch_size: int,
      task_feature_lengths: Mapping[str, int],
      output_dir: str,
      partitioner: Any,
      model: Any,
      dtype: str | None,
      restore_mode: str,
      checkpoint_path: str | None,
      input_shapes: Mapping[str, Sequence[int]],
      input_types: Mapping[str, Any] | None = None,
      init_random_seed: int = 42,
      add_eos: bool = True,
      eval_names: Sequence[str] | None = None,
  ):
    """Restores the model, or initializes it where there is no checkpoint.

    Args:
      batch_size: examples of a batch, of training and of inference.
      task_feature_lengths: length of `inputs` and `targets`.
      output_dir: where checkpoints, curves and `model-info.txt` go.
      partitioner: the mesh and its rules.
      model: a `BaseTransformerModel`.
      dtype: of restored and saved parameters; None keeps theirs.
      restore_mode: 'specific' checkpoint or 'latest' of a directory.
      checkpoint_path: where to start from; '' or None takes the latest of
        `output_dir`.
      input_shapes: global shape of each model feature.
      input_types: their types, by default float32.
      init_random_seed: of parameters and dropout.
      add_eos: whether texts end with an end token.
      eval_names: names of data sets for `trainer.eval`.

    Raises:
      ValueError: if the batch or the mesh does not fit the devices, or several
        checkpoints are asked for.
    """
    self._batch_size = batch_size
    self._task_feature_lengths = task_feature_lengths
    self._output_dir = output_dir
    self._partitioner = partitioner
    self._model = model
    # Division of the batch by the mesh fails here, before anything is read.
    self._layout = partitioner.get_data_layout(batch_size)
    if jax.process_index() == 0:
      epath.Path(output_dir).mkdir(parents=True, exist_ok=True)
    multihost.sync_global_devices('interactive_model:output_dir')
    self._converter = model.FEATURE_CONVERTER_CLS(pack=False)
    self.features = {
        'inputs': seqio.Feature(model.input_vocabulary, add_eos=add_eos),
        'targets': seqio.Feature(model.output_vocabulary, add_eos=add_eos),
    }
    self.restore_checkpoint_cfg = None
    if checkpoint_path:
      self.restore_checkpoint_cfg = checkpoint_config.RestoreCheckpointConfig(
          path=checkpoint_path, mode=restore_mode, dtype=dtype
      )
    self.save_checkpoint_cfg = checkpoint_config.SaveCheckpointConfig(
        dtype=dtype, period=1000, keep=5
    )
    init_rng, trainer_rng = jax.random.split(
        jax.random.PRNGKey(init_random_seed)
    )
    self._initializer = initializer_lib.TrainStateInitializer(
        optimizer_def=model.optimizer_def,
        init_fn=model.get_initial_variables,
        input_shapes=input_shapes,
        input_types=input_types,
        partitioner=partitioner,
    )
    shape = self._initializer.global_train_state_shape
    model_info.log_model_info(
        os.path.join(output_dir, 'model-info.txt'), shape, partitioner
    )
    own = checkpoint_config.RestoreCheckpointConfig(
        path=output_dir, mode='latest', dtype=dtype
    )
    given = self.restore_checkpoint_cfg
    state = self._initializer.from_checkpoint_or_scratch(
        [own] if given is None else [given, own], init_rng=init_rng
    )
    self._manager = checkpoint_managers.create_checkpoint_manager(
        save_cfg=self.save_checkpoint_cfg,
        train_state=shape,
        partitioner=partitioner,
        model_dir=output_dir,
    )
    self._inference = TextInference(
        model=model,
        partitioner=partitioner,
        train_state_axes=self.train_state_axes,
        batch_size=batch_size,
        task_feature_lengths=task_feature_lengths,
        features=self.features,
    )
    self._train_summary: Any = None
    self._trainer = trainer_lib.Trainer(
        model=model,
        train_state=state,
        partitioner=partitioner,
        eval_names=list(eval_names or ()),
        summary_dir=output_dir,
        train_state_axes=self._initializer.train_state_axes,
        rng=trainer_rng,
        learning_rate_fn=learning_rates.create_learning_rate_scheduler(),
        num_microbatches=None,
    )

  @property
  def trainer(self) -> trainer_lib.Trainer:
    """Trains and holds the state."""
    return self._trainer

  @property
  def partitioner(self) -> Any:
    """The mesh and its rules."""
    return self._partitioner

  @property
  def model(self) -> Any:
    """The model."""
    return self._model

  @property
  def train_state(self) -> Any:
    """Parameters and optimizer state, as the last step left them."""
    return self._trainer.train_state

  @property
  def train_state_axes(self) -> Any:
    """Partition specs of the train state."""
    return self._initializer.train_state_axes

  @property
  def train_summary(self) -> Mapping[str, Any]:
    """Metrics of the last training step."""
    return self._train_summary.result()

  @property
  def step(self) -> int:
    """Training steps that the state has seen."""
    return int(multihost.get_local_data(self.train_state.step))

  @property
  def batch_size(self) -> int:
    """Examples of a batch."""
    return self._batch_size

  @property
  def task_feature_lengths(self) -> Mapping[str, int]:
    """Length of `inputs` and `targets`."""
    return self._task_feature_lengths

  @property
  def output_dir(self) -> str:
    """Where checkpoints and curves go."""
    return self._output_dir

  # ---- Training --------------------------------------------------------------

  def train_step(self, examples: Sequence[Example]) -> None:
    """Trains one step on the first `batch_size` examples, and saves.

    Args:
      examples: texts, or dicts with `input` and `target`.
    """
    self.train_step_with_preprocessors(examples, DEFAULT_PREPROCESSORS)

  def train_step_with_preprocessors(
      self, examples: Sequence[Example], preprocessors: Preprocessors
  ) -> None:
    """Trains one step on the first `batch_size` examples, and saves.

    Args:
      examples: texts, or dicts with `input` and `target`.
      preprocessors: as of a SeqIO task.

    Raises:
      ValueError: for fewer examples than a batch has.
      PreemptionError: asked to stop; the state is saved.
    """
    if len(examples) < self._batch_size:
      raise ValueError(
          f'A step takes {self._batch_size} examples, got {len(examples)}: give '
          'more, or make the model with a smaller batch_size.'
      )
    dataset = self._converter(
        self._task_dataset(examples, preprocessors), self._task_feature_lengths
    )
    try:
      self.train_step_from_batch_iterator(self._global_batches(dataset))
    finally:
      # What was trained is kept, also if the platform asks to stop.
      self.save_checkpoint()

  def train_step_from_batch_iterator(self, iterator: Iterator[Any]) -> None:
    """Trains one step on the next batch, an array of all hosts a feature."""
    self._train_summary = self._trainer.train(iterator, 1, start_step=self.step)
    multihost.sync_global_devices('interactive_model:train_step')

  def save_checkpoint(self) -> None:
    """Saves the train state to `output_dir`."""
    self._manager.save(
        self.train_state, self.save_checkpoint_cfg.state_transformation_fns
    )
    self._manager.wait_until_finished()

  # ---- Inference -------------------------------------------------------------

  def predict_with_aux(self, examples: Sequence[Example]) -> Inferences:
    """Decodes examples.

    Args:
      examples: texts, or dicts with `input` and `target`.

    Returns:
      (task features, prediction as UTF-8 bytes) of each example, and by name
      what else the model tells, a list over examples.
    """
    return self.infer_with_preprocessors(
        InferenceType.PREDICT_WITH_AUX, examples, DEFAULT_PREPROCESSORS
    )

  def score(
      self, examples: Sequence[Example]
  ) -> list[tuple[dict[str, Any], Any]]:
    """Scores targets.

    Args:
      examples: dicts with `input` and `target`.

    Returns:
      (task features, log likelihood of the target) of each example.
    """
    scores, _ = self.infer_with_preprocessors(
        InferenceType.SCORE, examples, DEFAULT_PREPROCESSORS
    )
    return scores

  def infer_with_preprocessors(
      self,
      mode: InferenceType,
      examples: Sequence[Example],
      preprocessors: Preprocessors,
      **inference_kwargs,
  ) -> Inferences:
    """Decodes or scores examples.

    Args:
      mode: which of the two.
      examples: texts, or dicts with `input` and `target`.
      preprocessors: as of a SeqIO task.
      **inference_kwargs: arguments of the model's `predict_batch_with_aux` or
        `score_batch`.

    Returns:
      As `predict_with_aux` or, with scores, like it.
    """
    return self._inference.infer(
        self.train_state, mode, examples, preprocessors, inference_kwargs
    )

  # ---- Evaluation ------------------------------------------------------------

  def evaluate(
      self,
      examples: Sequence[Example],
      metric_fns: Sequence[text_metrics.MetricFn],
  ) -> Mapping[str, Any]:
    """Computes metrics over examples.

    Args:
      examples: dicts with `input` and `target`.
      metric_fns: functions of (targets, scores), of (targets, predictions) or
        of (targets, predictions, aux_values), by these names.

    Returns:
      Metric -> value; nothing on processes other than 0.
    """
    return self.evaluate_with_preprocessors(
        examples, DEFAULT_PREPROCESSORS, metric_fns
    )

  def evaluate_with_preprocessors(
      self,
      examples: Sequence[Example],
      preprocessors: Preprocessors,
      metric_fns: Sequence[text_metrics.MetricFn],
      postprocessor: Callable[..., Any] | None = None,
  ) -> Mapping[str, Any]:
    """Computes metrics over examples.

    Args:
      examples: dicts with `input` and `target`.
      preprocessors: as of a SeqIO task.
      metric_fns: see `evaluate`.
      postprocessor: `(text, example=, is_target=)` makes of a target text what
        the metrics compare; predictions are left as they were decoded.

    Returns:
      Metric -> value; nothing on processes other than 0.
    """
    dataset = self._task_dataset(examples, preprocessors)
    return text_metrics.compute(
        metric_fns,
        text_metrics.get_targets(dataset, postprocessor),
        lambda mode: self.infer_with_preprocessors(
            mode, examples, preprocessors
        ),
    )

  # ---- All of it -------------------------------------------------------------

  def train_loop(
      self,
      num_steps: int,
      eval_period: int = 1,
      train_batches: Sequence[Any] | None = None,
      predict_batches: Sequence[Any] | None = None,
      score_batches: Sequence[Any] | None = None,
      eval_batches: Sequence[Any] | None = None,
      metrics_fns: Sequence[text_metrics.MetricFn] | None = None,
  ) -> tuple[Any, Any, Any]:
    """Trains, and looks at what has been learned as it goes.

    Args:
      num_steps: how many steps.
      eval_period: steps between looks; the first comes after the first step.
      train_batches: a batch, or batches that are taken in turn; None leaves the
        model as it is.
      predict_batches: a batch or batches to decode, or None.
      score_batches: a batch or batches to score, or None.
      eval_batches: a batch or batches to evaluate, or None.
      metrics_fns: see `evaluate`.

    Returns:
      Predictions, scores and metrics of the last batch at the last look; None
      for what was not asked for.
    """
    predictions = scores = metrics = None
    turns = itertools.cycle(_as_batches(train_batches) or [None])
    for step, batch in zip(range(num_steps), turns):
      if batch is not None:
        self.train_step(batch)
      if step % eval_period:
        continue
      for batch in _as_batches(predict_batches):
        predictions, _ = self.predict_with_aux(batch)
      for batch in _as_batches(score_batches):
        scores = self.score(batch)
      for batch in _as_batches(eval_batches):
        metrics = self.evaluate(batch, metrics_fns or ())
    return predictions, scores, metrics

  def close(self) -> None:
    """Ends the background work of trainer and checkpoints."""
    self._trainer.close()
    self._manager.close()

  def _task_dataset(
      self, examples: Sequence[Example], preprocessors: Preprocessors
  ) -> tf.data.Dataset:
    return get_dataset_from_natural_text_examples(
        examples, preprocessors, self._task_feature_lengths, self.features
    )

  def _global_batches(self, dataset: tf.data.Dataset) -> Iterator[Any]:
    """Yields whole batches; every process holds all examples, takes its rows."""
    size = self._batch_size // self._layout.num_shards
    first = self._layout.shard_id * size
    whole = dataset.batch(self._batch_size, drop_remainder=True)
    for batch in whole.as_numpy_iterator():
      rows = {k: np.asarray(x)[first : first + size] for k, x in batch.items()}
      yield batches_lib.to_global(rows, self._partitioner, self._batch_size)


def _as_batches(batches: Sequence[Any] | None) -> Sequence[Any]:
  """Returns a list of batches, also for a single one."""
  if not batches:
    return []
  is_single = isinstance(batches[0], (str, bytes, Mapping))
  return [batches] if is_single else batches
