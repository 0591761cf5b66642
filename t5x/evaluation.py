"""Inference evaluation: decode, postprocess and score SeqIO tasks."""

from collections.abc import Callable, Mapping, Sequence
import functools
import os
from typing import Any

from etils import epath
import jax
import numpy as np
import seqio

from t5x import datasets
from t5x import inference
from t5x import multihost


class InferenceEvaluator:
  """Runs a SeqIO evaluator over the tasks of a dataset config.

  Its data are read once, when it is built, and kept for every evaluation.
  """

  def __init__(
      self,
      infer_eval_dataset_cfg: datasets.DatasetConfig,
      inference_evaluator_cls: Callable[..., seqio.Evaluator],
      model: Any,
      partitioner: Any,
      log_dir: str | None = None,
      verify_matching_vocabs_fn: (
          Callable[..., None] | None
      ) = datasets.verify_matching_vocabs,
  ):
    """Reads and caches the data.

    Args:
      infer_eval_dataset_cfg: the tasks, their split and lengths; not packed.
      inference_evaluator_cls: makes the SeqIO evaluator.
      model: gives the feature converter, and decodes and scores.
      partitioner: partitions the steps.
      log_dir: the evaluator's loggers write to `inference_eval` in it; None
        leaves them out.
      verify_matching_vocabs_fn: `(cfg, model)`, None to skip the check.

    Raises:
      ValueError: for an unknown task or split, or if vocabularies differ.
    """
    cfg = infer_eval_dataset_cfg
    mixture_or_task = datasets.get_mixture_or_task(cfg)
    datasets.check_split(cfg)
    if verify_matching_vocabs_fn is not None:
      verify_matching_vocabs_fn(cfg, model)
    self._model = model
    self._partitioner = partitioner
    self._batch_size = cfg.batch_size
    # Division of the batch by the mesh fails here, before any data is read.
    partitioner.get_data_layout(cfg.batch_size)
    logging_kwargs = {}
    if log_dir is None:
      logging_kwargs['logger_cls'] = ()
    else:
      results_dir = epath.Path(log_dir) / 'inference_eval'
      logging_kwargs['log_dir'] = os.fspath(results_dir)
      if jax.process_index() == 0:
        # SeqIO's JSON logger counts on another one to make it.
        results_dir.mkdir(parents=True, exist_ok=True)
    self._evaluator = inference_evaluator_cls(
        mixture_or_task_name=mixture_or_task.name,
        feature_converter=model.FEATURE_CONVERTER_CLS(pack=False),
        eval_split=cfg.split,
        use_cached=cfg.use_cached,
        seed=cfg.seed,
        sequence_length=cfg.task_feature_lengths,
        use_memory_cache=cfg.use_memory_cache,
        **logging_kwargs,
    )
    self._model_fns = None

  @property
  def model_feature_shapes(self) -> Mapping[str, tuple[int, ...]]:
    """Shape of each model feature of an example."""
    return self._evaluator.model_feature_shapes

  @property
  def model_feature_types(self) -> Mapping[str, np.dtype]:
    """Type of each model feature."""
    dataset = next(iter(self._evaluator.cached_model_datasets.values()))
    _, spec = dataset.element_spec
    return {
        name: np.dtype(feature.dtype.as_numpy_dtype)
        for name, feature in spec.items()
        if name in self.model_feature_shapes
    }

  @property
  def eval_tasks(self) -> Sequence[seqio.Task]:
    """The tasks that have the split and metrics."""
    return self._evaluator.eval_tasks

  def evaluate(self, train_state: Any, train_state_axes: Any) -> Any:
    """Decodes and scores every task.

    Args:
      train_state: the state to evaluate; its step labels the results.
      train_state_axes: its partition specs.

    Returns:
      A future of the metrics by task (None on processes other than 0).
    """
    if self._model_fns is None:
      self._model_fns = self._get_model_fns(train_state_axes)
    rng = jax.random.PRNGKey(0)
    metrics, _ = self._evaluator.evaluate(
        compute_metrics=jax.process_index() == 0,
        step=int(multihost.get_local_data(train_state.step)),
        **{
            name: functools.partial(fn, train_state=train_state, rng=rng)
            for name, fn in self._model_fns.items()
        },
    )
    return metrics

  def close(self) -> None:
    """Waits until all metrics are written."""
    self._evaluator.close()

  def _get_model_fns(self, train_state_axes: Any) -> dict[str, Any]:
    infer_fn = functools.partial(
        inference.get_infer_fn,
        batch_size=self._batch_size,
        train_state_axes=train_state_axes,
        partitioner=self._partitioner,
        # SeqIO turns aux lists into arrays anyway; masks are large.
        keep_aux_as_numpy=True,
    )
    return {
        'predict_fn': infer_fn(infer_step=self._model.predict_batch),
        'predict_with_aux_fn': infer_fn(
            infer_step=self._model.predict_batch_with_aux
        ),
        'score_fn': infer_fn(infer_step=self._model.score_batch),
    }
