"""Decoding and scoring of texts in memory: for `interactive_model`."""

from collections.abc import Mapping, Sequence
import dataclasses
import enum
import functools
from typing import Any

import jax
import seqio
import tensorflow as tf

from t5x import inference
from t5x import text_examples

# (task features, output) of each example; name -> what else there is of each.
Inferences = tuple[list[tuple[dict[str, Any], Any]], dict[str, list[Any]]]


class InferenceType(enum.Enum):
  """What is computed of examples."""

  PREDICT_WITH_AUX = 1
  SCORE = 2


@dataclasses.dataclass
class TextInference:
  """Runs a model over texts, compiling each kind of call once.

  Attributes:
    model: a `BaseTransformerModel`.
    partitioner: partitions the steps.
    train_state_axes: partition specs of the train state.
    batch_size: examples of a batch.
    task_feature_lengths: length of `inputs` and `targets`.
    features: SeqIO's features of that name.
  """

  model: Any
  partitioner: Any
  train_state_axes: Any
  batch_size: int
  task_feature_lengths: Mapping[str, int]
  features: Mapping[str, seqio.Feature]

  def __post_init__(self):
    self._converter = self.model.FEATURE_CONVERTER_CLS(pack=False)
    self._infer_fns: dict[Any, inference.InferFn] = {}

  def infer(
      self,
      train_state: Any,
      mode: InferenceType,
      examples: Sequence[text_examples.Example],
      preprocessors: text_examples.Preprocessors,
      inference_kwargs: Mapping[str, Any],
  ) -> Inferences:
    """Decodes or scores examples.

    Batch number n has the key `fold_in(PRNGKey(0), n)`, as a chunk of `t5x.infer`
    has.

    Args:
      train_state: gives the parameters.
      mode: which of the two.
      examples: texts, or dicts with `input` and `target`.
      preprocessors: as of a SeqIO task.
      inference_kwargs: arguments of the model's `predict_batch_with_aux` or
        `score_batch`.

    Returns:
      Task features with the prediction, as UTF-8 bytes, or the score, and aux.

    Raises:
      ValueError: for another mode.
    """
    infer_fn = self._infer_fn(mode, inference_kwargs)
    dataset = text_examples.get_dataset_from_natural_text_examples(
        examples, preprocessors, self.task_feature_lengths, self.features
    )
    rows = list(dataset.as_numpy_iterator())
    model_dataset = self._converter(dataset, self.task_feature_lengths)
    outputs, aux = [], {}
    for number, start in enumerate(range(0, len(rows), self.batch_size)):
      part = model_dataset.skip(start).take(self.batch_size)
      rng = jax.random.fold_in(jax.random.PRNGKey(0), number)
      result = infer_fn(part.enumerate(), train_state, rng=rng)
      indexed, more = result if isinstance(result, tuple) else (result, {})
      outputs += [output for _, output in indexed]
      for name, values in more.items():
        aux.setdefault(name, []).extend(values)
    if mode is InferenceType.PREDICT_WITH_AUX:
      decode = self.features['targets'].vocabulary.decode_tf
      outputs = [decode(tf.constant(tokens)).numpy() for tokens in outputs]
    return list(zip(rows, outputs, strict=True)), aux

  def _infer_fn(
      self, mode: InferenceType, inference_kwargs: Mapping[str, Any]
  ) -> inference.InferFn:
    steps = {
        InferenceType.PREDICT_WITH_AUX: self.model.predict_batch_with_aux,
        InferenceType.SCORE: self.model.score_batch,
    }
    if mode not in steps:
      raise ValueError(
          f'mode must be one of {", ".join(map(str, steps))}, got {mode!r}.'
      )
    key = mode, repr(sorted(inference_kwargs.items()))
    if key not in self._infer_fns:
      self._infer_fns[key] = inference.get_infer_fn(
          functools.partial(steps[mode], **inference_kwargs),
          self.batch_size,
          self.train_state_axes,
          self.partitioner,
      )
    return self._infer_fns[key]
