"""SeqIO data of a run: the training stream and the train-eval batches."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import difflib
import importlib
from typing import Any

from absl import logging
import seqio
import tensorflow as tf

from t5x import data_stream
from t5x import multihost


@dataclasses.dataclass
class DatasetConfig:
  """A SeqIO task or mixture, and how to read it.

  Attributes:
    mixture_or_task_name: a registered name, or the task or mixture itself.
    task_feature_lengths: length (or full shape, as a tuple) of each task
      feature.
    split: the split to read.
    batch_size: examples of a batch over all data shards.
    shuffle: whether to shuffle.
    seed: of shuffling and preprocessing; None takes one from the clock.
    use_cached: whether to read the offline cache.
    pack: whether several examples share a row.
    use_custom_packing_ops: whether packing uses custom TensorFlow ops.
    module: a module to import that registers the task or mixture.
    use_memory_cache: whether evaluation data stays in memory.
    trim_output_features: whether features are cut to their lengths.
    runtime_preprocessors: for AirIO data, which this package does not read.
    num_prefetch_threads: as above.
    num_workers: as above.
    max_skipped_share: of the examples a host takes for training, how many may
      be skipped, because their records are damaged, before the run ends.
  """

  mixture_or_task_name: Any
  task_feature_lengths: Mapping[str, Any] | None
  split: str
  batch_size: int
  shuffle: bool
  seed: int | None
  use_cached: bool = False
  pack: bool = False
  use_custom_packing_ops: bool = False
  module: str | None = None
  use_memory_cache: bool = True
  trim_output_features: bool = True
  runtime_preprocessors: Sequence[Any] | None = None
  num_prefetch_threads: int | None = None
  num_workers: int | None = 0
  # T5X's own come first, in its order.
  max_skipped_share: float = 0.01

  def __post_init__(self):
    if not 0 <= self.max_skipped_share <= 1:
      raise ValueError(
          'DatasetConfig.max_skipped_share is a share, from 0 to 1; got '
          f'{self.max_skipped_share}.'
      )
    for name in (
        'runtime_preprocessors',
        'num_prefetch_threads',
        'num_workers',
    ):
      if getattr(self, name):
        logging.warning('DatasetConfig.%s is ignored for SeqIO data.', name)


def import_module(module: str) -> None:
  """Imports a module for what it registers."""
  importlib.import_module(module)


def get_mixture_or_task(cfg: DatasetConfig) -> Any:
  """Returns the task or mixture of a config, after importing its module.

  Raises:
    ValueError: if no such name is registered; it tells the nearest ones.
  """
  if cfg.module:
    import_module(cfg.module)
  name = cfg.mixture_or_task_name
  if not isinstance(name, str):
    return name
  known = [*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()]
  if name in known:
    return seqio.get_mixture_or_task(name)
  near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
  raise ValueError(
      f'No SeqIO task or mixture {name!r} is registered '
      f'({len(known)} are known'
      + (f'; nearest: {", ".join(near)}' if near else '')
      + '). Import the module that registers it: '
      "MIXTURE_OR_TASK_MODULE = 'package.module' (now: "
      f'{cfg.module!r}).'
  )


def check_split(cfg: DatasetConfig) -> None:
  """Checks that some task of the config has its split, and its cache is there.

  Raises:
    ValueError: naming the splits there are; or the tasks without a cache, where
      it was looked for, and the flag that adds a directory.
  """
  mixture_or_task = get_mixture_or_task(cfg)
  tasks = seqio.get_subtasks(mixture_or_task)
  splits = {task.name: list(task.splits) for task in tasks}
  if not any(cfg.split in known for known in splits.values()):
    shown = '; '.join(f'{name}: {", ".join(s)}' for name, s in splits.items())
    raise ValueError(
        f'{mixture_or_task.name!r} has no split {cfg.split!r}. There are: '
        f'{shown}. Set DatasetConfig.split.'
    )
  if not cfg.use_cached:
    return
  missing = [task.name for task in tasks if not task.cache_dir]
  if missing:
    looked = ', '.join(seqio.utils.get_global_cache_dirs()) or 'no directory'
    raise ValueError(
        f'No cache of {", ".join(missing)} in {looked}. Name the directory that '
        'holds it with --seqio_additional_cache_dirs=DIR, build it with '
        '`python -m seqio.scripts.cache_tasks_main`, or read without one: '
        'USE_CACHED_TASKS = False (DatasetConfig.use_cached).'
    )


def get_dataset(
    cfg: DatasetConfig,
    shard_id: int,
    num_shards: int,
    feature_converter_cls: Any,
    num_epochs: int | None = None,
    continue_from_last_checkpoint: bool = False,
) -> tf.data.Dataset:
  """Returns one data shard of a config as batches of model features.

  Where all sources can be read by places, the order of an endless data set is
  a function of the step, on any number of hosts (`data_stream`).

  Args:
    cfg: what to read.
    shard_id: which shard.
    num_shards: of how many.
    feature_converter_cls: makes model features of task features.
    num_epochs: how often to read it, None for ever.
    continue_from_last_checkpoint: must be False: a tf.data pipeline goes on
      by restoring its iterator.

  Raises:
    ValueError: if shards do not divide the batch, for an unknown task or split,
      or without the cache that the config asks for.
    FileNotFoundError: if the task's files are missing.
  """
  if continue_from_last_checkpoint:
    raise ValueError(
        '`continue_from_last_checkpoint` is not supported by get_dataset; set '
        'SaveCheckpointConfig.save_dataset = True to resume the data exactly.'
    )
  if cfg.batch_size % num_shards:
    raise ValueError(
        f'Batch size {cfg.batch_size} is not divisible by {num_shards} data '
        'shards. Change BATCH_SIZE or the number of data-parallel devices.'
    )
  mixture_or_task = get_mixture_or_task(cfg)
  check_split(cfg)
  seed = multihost.shared_time_seed() if cfg.seed is None else cfg.seed
  by_places = num_epochs is None and data_stream.can_read_places(
      mixture_or_task, cfg.split, shuffle=cfg.shuffle, use_cached=cfg.use_cached
  )

  def open_at(start: int, seed: int, skips: bool) -> tf.data.Dataset:
    provider = mixture_or_task
    shard = seqio.ShardInfo(index=shard_id, num_shards=num_shards)
    if by_places:
      provider = data_stream.interleaved(provider, cfg.split, seed)
      shard = data_stream.StreamShard(
          shard_id,
          num_shards,
          batch_size=cfg.batch_size,
          start=start,
          skips=skips,
      )
    dataset = seqio.get_dataset(
        mixture_or_task_name=provider,
        task_feature_lengths=cfg.task_feature_lengths,
        dataset_split=cfg.split,
        shuffle=cfg.shuffle,
        num_epochs=num_epochs,
        feature_converter=feature_converter_cls(
            pack=cfg.pack, use_custom_packing_ops=cfg.use_custom_packing_ops
        ),
        shard_info=shard,
        use_cached=cfg.use_cached,
        seed=seed,
        trim_output_features=cfg.trim_output_features,
    )
    dataset = dataset.batch(cfg.batch_size // num_shards, drop_remainder=True)
    if by_places:
      data_stream.attach(
          dataset,
          open_at,
          start,
          provider,
          cfg.split,
          cfg.batch_size,
          seed,
          cfg.max_skipped_share,
      )
    return dataset

  with reading(cfg):
    return open_at(0, seed, False)


@contextlib.contextmanager
def reading(cfg: DatasetConfig) -> Iterator[None]:
  """Names task and split in errors that reading the data raises.

  Raises:
    FileNotFoundError: if files are missing.
    ValueError: for anything else that is wrong with the data.
  """
  name = getattr(cfg.mixture_or_task_name, 'name', cfg.mixture_or_task_name)
  where = f'Cannot read {name!r}, split {cfg.split!r}: '
  try:
    yield
  except (OSError, tf.errors.NotFoundError) as error:
    raise FileNotFoundError(where + _first_line(error)) from error
  except (ValueError, tf.errors.OpError) as error:
    raise ValueError(where + _first_line(error)) from error
  except StopIteration as error:
    raise ValueError(
        where + f'it holds less than one batch of {cfg.batch_size} examples.'
    ) from error


def _first_line(error: Exception) -> str:
  # TensorFlow adds Python tracebacks and graph nodes to its messages.
  return str(getattr(error, 'message', error)).split('\nTraceback')[0].strip()


def get_training_eval_datasets(
    cfg: DatasetConfig,
    shard_id: int,
    num_shards: int,
    eval_steps: int,
    feature_converter_cls: Any,
) -> dict[str, tf.data.Dataset]:
  """Returns `eval_steps` batches of each sub-task, and of the mixture.

  Every evaluation sees the same examples: each data set is repeated, then
  sharded, so uneven files cannot starve a shard.

  Args:
    cfg: what to read.
    shard_id: which data shard.
    num_shards: of how many.
    eval_steps: batches of an evaluation.
    feature_converter_cls: makes model features of task features.

  Returns:
    Data sets by name of the task, those without the split left out.

  Raises:
    ValueError: if shards do not divide the batch.
  """
  if cfg.batch_size % num_shards:
    raise ValueError(
        f'Batch size {cfg.batch_size} is not divisible by {num_shards} data '
        'shards.'
    )
  mixture_or_task = get_mixture_or_task(cfg)

  def eval_dataset(provider: Any) -> tf.data.Dataset:
    one = dataclasses.replace(cfg, mixture_or_task_name=provider, batch_size=1)
    # A bounded number of epochs: endless ones would hang on a shard whose
    # examples are all filtered out.
    dataset = get_dataset(
        one,
        shard_id=0,
        num_shards=1,
        feature_converter_cls=feature_converter_cls,
        num_epochs=eval_steps * cfg.batch_size,
        continue_from_last_checkpoint=False,
    )
    dataset = dataset.unbatch().repeat()
    dataset = dataset.batch(cfg.batch_size, drop_remainder=True)
    dataset = dataset.take(eval_steps)
    rows = cfg.batch_size // num_shards
    if num_shards > 1:
      # The rows of one batch, in order: the same for any number of shards.
      here = slice(shard_id * rows, (shard_id + 1) * rows)
      dataset = dataset.map(
          lambda batch: {name: x[here] for name, x in batch.items()}
      )
    return dataset.cache() if cfg.use_memory_cache else dataset

  datasets = {}
  for task in seqio.get_subtasks(mixture_or_task):
    if cfg.split not in task.splits:
      logging.info(
          'Task %s has no split %r: not evaluated.', task.name, cfg.split
      )
      continue
    datasets[task.name] = eval_dataset(task.name)
  if isinstance(mixture_or_task, seqio.Mixture) and datasets:
    datasets[mixture_or_task.name] = eval_dataset(mixture_or_task.name)
  return datasets


def get_vocabulary(cfg: DatasetConfig) -> tuple[Any, Any]:
  """Returns the vocabularies of inputs and targets of a config's features.

  Without features `inputs` and `targets`, both are the one vocabulary that all
  features share that are not passed through.

  Raises:
    ValueError: if there is none, or they differ.
  """
  features = get_mixture_or_task(cfg).output_features
  if 'inputs' in features and 'targets' in features:
    return features['inputs'].vocabulary, features['targets'].vocabulary
  every = {name: feature.vocabulary for name, feature in features.items()}
  real = {
      name: vocabulary
      for name, vocabulary in every.items()
      if not isinstance(vocabulary, seqio.PassThroughVocabulary)
  }
  found = list((real or every).items())
  if not found:
    raise ValueError(f'{cfg.mixture_or_task_name!r} has no features.')
  first_name, first = found[0]
  for name, vocabulary in found[1:]:
    if vocabulary != first:
      raise ValueError(
          f'Features {first_name!r} and {name!r} of '
          f'{cfg.mixture_or_task_name!r} have different vocabularies: {first} '
          f'and {vocabulary}.'
      )
  return first, first


def verify_matching_vocabs(cfg: DatasetConfig, model: Any) -> None:
  """Checks that a model was built with its data's vocabularies.

  A model without the attributes `input_vocabulary` and `output_vocabulary` has
  nothing to compare.

  Raises:
    ValueError: if they differ.
  """
  if not hasattr(model, 'input_vocabulary') or not hasattr(
      model, 'output_vocabulary'
  ):
    return
  inputs, outputs = get_vocabulary(cfg)
  if inputs != model.input_vocabulary or outputs != model.output_vocabulary:
    raise ValueError(
        'Model and task vocabularies do not match:\n'
        f'  task={cfg.mixture_or_task_name}\n  ds_vocabs=({inputs}, {outputs})'
        f'\n  model.input_vocabulary={model.input_vocabulary}\n'
        f'  model.output_vocabulary={model.output_vocabulary}\n'
        'Use one VOCABULARY for both.'
    )
