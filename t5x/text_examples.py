"""Texts in memory as data sets, and tasks as texts: for `interactive_model`.

An example is a text (an input alone) or a dict with `input` and `target`. SeqIO
does with them what it does with those of any task.
"""

from collections.abc import Callable, Mapping, Sequence
import itertools
from typing import Any

import seqio
import tensorflow as tf

Example = str | bytes | Mapping[str, Any]
Preprocessors = Sequence[Callable[..., tf.data.Dataset]]

# What examples go through unless told otherwise.
DEFAULT_PREPROCESSORS: Preprocessors = (
    seqio.preprocessors.tokenize,
    seqio.preprocessors.append_eos,
)


def get_dataset_from_natural_text_examples(
    examples: Sequence[Example],
    preprocessors: Preprocessors,
    task_feature_lengths: Mapping[str, int] | None,
    features: Mapping[str, seqio.Feature],
) -> tf.data.Dataset:
  """Returns examples as a task's data set would have them.

  Args:
    examples: texts, or dicts with `input` and `target`.
    preprocessors: as of a SeqIO task. They start from the features `inputs`,
      `targets` and `answers` (a list of the one target).
    task_feature_lengths: where each feature is cut off, None for nowhere.
    features: what the preprocessors must give.

  Raises:
    ValueError: for an example without input or target, or if SeqIO finds that a
      feature is missing or has another type.
  """
  task = seqio.Task(
      'examples_in_memory',
      source=_source(examples),
      preprocessors=list(preprocessors),
      output_features=features,
  )
  return task.get_dataset(
      task_feature_lengths, split='train', shuffle=False, num_epochs=1
  )


def _source(examples: Sequence[Example]) -> seqio.FunctionDataSource:
  pairs = [_pair(example) for example in examples]

  def dataset_fn(split: str, shuffle_files: bool) -> tf.data.Dataset:
    del split, shuffle_files
    return tf.data.Dataset.from_tensor_slices(
        {
            'inputs': [text for text, _ in pairs],
            'targets': [target for _, target in pairs],
            'answers': [[target] for _, target in pairs],
        }
    )

  return seqio.FunctionDataSource(dataset_fn, splits=('train', 'validation'))


def _pair(example: Example) -> tuple[Any, Any]:
  if not isinstance(example, Mapping):
    return example, ''
  missing = {'input', 'target'} - set(example)
  if missing:
    raise ValueError(
        f'Example {dict(example)} has no {" and no ".join(sorted(missing))}: '
        "give a text, or a dict with 'input' and 'target'."
    )
  return example['input'], example['target']


def get_batches_from_seqio(
    task_or_mixture_name: str,
    split: str,
    batch_size: int,
    num_batches: int,
    get_pretokenized_examples: bool = True,
    sequence_length: Mapping[str, int] | None = None,
    **get_dataset_kwargs,
) -> list[list[dict[str, Any]]]:
  """Returns the first examples of a task or mixture, in batches.

  Args:
    task_or_mixture_name: a registered name.
    split: which of its splits.
    batch_size: examples of a batch.
    num_batches: how many batches.
    get_pretokenized_examples: whether to give texts; else lists of tokens.
    sequence_length: length of each feature, None for no cut.
    **get_dataset_kwargs: more arguments of SeqIO's `get_dataset`.

  Raises:
    ValueError: if the split has fewer examples.
  """
  dataset = seqio.get_mixture_or_task(task_or_mixture_name).get_dataset(
      sequence_length=sequence_length, split=split, **get_dataset_kwargs
  )
  suffix = '_pretokenized' if get_pretokenized_examples else ''
  names = {'input': f'inputs{suffix}', 'target': f'targets{suffix}'}
  wanted = batch_size * num_batches
  rows = [
      {key: _plain(example[name]) for key, name in names.items()}
      for example in itertools.islice(dataset.as_numpy_iterator(), wanted)
  ]
  if len(rows) < wanted:
    raise ValueError(
        f'{task_or_mixture_name!r} has {len(rows)} examples in {split!r}, and '
        f'{num_batches} batches of {batch_size} need {wanted}.'
    )
  return [rows[i : i + batch_size] for i in range(0, wanted, batch_size)]


def _plain(value: Any) -> Any:
  return value.tolist() if hasattr(value, 'tolist') else value


def get_seqio_task_from_examples(
    task_name: str,
    interactive_model: Any,
    examples: Sequence[Example],
    preprocessors: Preprocessors,
    metric_fns: Sequence[Callable[..., Any]] | None = None,
    add_to_registry: bool = True,
) -> seqio.Task:
  """Makes a task of examples, for the scripts of t5x.

  Args:
    task_name: the name it gets.
    interactive_model: an `InteractiveModel`; it gives the features.
    examples: texts, or dicts with `input` and `target`.
    preprocessors: as of any task.
    metric_fns: as of any task.
    add_to_registry: whether the task is registered.
  """
  add = seqio.TaskRegistry.add if add_to_registry else seqio.Task
  task = add(
      task_name,
      source=_source(examples),
      preprocessors=list(preprocessors),
      output_features=interactive_model.features,
      metric_fns=list(metric_fns or ()),
  )
  return task
