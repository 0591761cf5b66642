"""Metrics of texts in memory, by functions as SeqIO tasks have them."""

from collections.abc import Callable, Mapping, Sequence
import inspect
import itertools
from typing import Any

import jax
import tensorflow as tf

from t5x import multihost
from t5x.text_inference import Inferences
from t5x.text_inference import InferenceType

MetricFn = Callable[..., Mapping[str, Any]]

# The arguments of a metric function say what it is called with.
_ARGUMENTS = (
    ('targets', 'scores'),
    ('targets', 'predictions'),
    ('targets', 'predictions', 'aux_values'),
)


def compute(
    metric_fns: Sequence[MetricFn],
    targets: Sequence[Any],
    infer: Callable[[InferenceType], Inferences],
) -> dict[str, Any]:
  """Computes metrics; nothing that no function asks for is inferred.

  Args:
    metric_fns: functions of (targets, scores), of (targets, predictions) or of
      (targets, predictions, aux_values), by these names.
    targets: what to compare with.
    infer: decodes or scores the examples.

  Returns:
    Metric -> value; nothing on processes other than 0.

  Raises:
    ValueError: for a function of other arguments, or if two give a metric of
      the same name.
  """
  wanted = [_arguments(fn) for fn in metric_fns]
  names = set(itertools.chain(*wanted))
  given: dict[str, Any] = {'targets': targets}
  if 'predictions' in names:
    predictions, given['aux_values'] = infer(InferenceType.PREDICT_WITH_AUX)
    given['predictions'] = [text.decode() for _, text in predictions]
  if 'scores' in names:
    scores, _ = infer(InferenceType.SCORE)
    given['scores'] = [score for _, score in scores]
  metrics: dict[str, Any] = {}
  if jax.process_index() == 0:
    for fn, arguments in zip(metric_fns, wanted):
      found = fn(*(given[argument] for argument in arguments))
      if twice := sorted(metrics.keys() & found.keys()):
        raise ValueError(f'Two functions give the metric {twice[0]!r}.')
      metrics |= found
  multihost.sync_global_devices('text_metrics:compute')
  return metrics


def get_targets(
    dataset: tf.data.Dataset, postprocessor: Callable[..., Any] | None
) -> list[Any]:
  """Returns the target texts, as the task's postprocessor makes them.

  Args:
    dataset: task features with `targets_pretokenized`.
    postprocessor: `(text, example=, is_target=)`, None for the bytes.
  """
  targets = []
  for row in dataset.as_numpy_iterator():
    text = row['targets_pretokenized']
    if postprocessor is not None:
      text = postprocessor(text, example=row, is_target=True)
    targets.append(text)
  return targets


def _arguments(fn: MetricFn) -> tuple[str, ...]:
  names = tuple(
      name
      for name, parameter in inspect.signature(fn).parameters.items()
      if parameter.default is parameter.empty
  )
  if names not in _ARGUMENTS:
    known = ', '.join(f'({", ".join(arguments)})' for arguments in _ARGUMENTS)
    raise ValueError(
        f'A metric function takes one of {known}; {fn} takes '
        f'({", ".join(names)}).'
    )
  return names
