"""A model over a data set, chunk by chunk: `python -m t5x.infer`.

A chunk is inferred, written and marked; a job that was cut off goes on with the
first chunk without a mark. The results of all chunks become one file.
"""

from collections.abc import Callable
import concurrent.futures
import dataclasses
import json
import os
from typing import Any

from absl import logging
from etils import epath
import jax
import numpy as np
import seqio
import tensorflow as tf

from t5x import checkpoint_config
from t5x import checkpoint_dirs
from t5x import chunked_input
from t5x import datasets
from t5x import gin_utils
from t5x import inference
from t5x import inference_files
from t5x import inference_states
from t5x import initializer as initializer_lib
from t5x import multihost

_STEPS = {
    'predict': 'predict_batch',
    'predict_with_aux': 'predict_batch_with_aux',
    'score': 'score_batch',
}


def infer(
    *,
    mode: str,
    model: Any,
    dataset_cfg: datasets.DatasetConfig,
    restore_checkpoint_cfg: checkpoint_config.RestoreCheckpointConfig,
    partitioner: Any,
    output_dir: str,
    checkpoint_period: int,
    shard_id: int = 0,
    num_shards: int = 1,
    merge_chunked_results: bool = True,
    write_fn: inference_files.WriteFn = inference_files.write_inferences_to_file,
    checkpoint_ds_iter: bool = True,
    train_state_initializer_cls: Callable[
        ..., Any
    ] = initializer_lib.TrainStateInitializer,
    fallback_init_rng: int | None = None,
    merge_fn: inference_files.MergeFn = inference_files.merge_chunks_to_file,
    summarize_config_fn: Callable[
        [str, Any, int], None
    ] = gin_utils.summarize_gin_config,
    verify_matching_vocabs_fn: (
        Callable[..., None] | None
    ) = datasets.verify_matching_vocabs,
    output_vocab_feature_name: str = 'targets',
    file_extension: str = 'jsonl',
    keep_aux_as_numpy: bool = False,
    use_orbax: bool = True,
) -> None:
  """Runs a model over every example of a split, once and in order.

  Args:
    mode: 'predict', 'score', or 'predict_with_aux'.
    model: a `models.BaseModel`.
    dataset_cfg: the tasks, their split and lengths; not packed, not shuffled.
    restore_checkpoint_cfg: the checkpoint to use.
    partitioner: the mesh and its rules.
    output_dir: where results are written.
    checkpoint_period: batches of a chunk.
    shard_id: which part of the data this job takes.
    num_shards: of how many.
    merge_chunked_results: whether chunks end up in one file.
    write_fn: `(path, (outputs, aux), examples, mode, vocabulary)` writes a
      chunk.
    checkpoint_ds_iter: whether the position in the input is saved, so that a
      restart need not read what comes before.
    train_state_initializer_cls: makes train states.
    fallback_init_rng: a seed for parameters that the checkpoint lacks, None if
      none may be missing.
    merge_fn: `(output_dir, name, tmp_dir, step)` makes one file of chunks.
    summarize_config_fn: `(output_dir, None, 0)` writes the configuration.
    verify_matching_vocabs_fn: `(cfg, model)`, None to skip the check.
    output_vocab_feature_name: the feature whose vocabulary turns predictions
      into text.
    file_extension: of the results.
    keep_aux_as_numpy: whether auxiliary values stay arrays instead of lists.
    use_orbax: which manager reads; either reads both layouts.

  Raises:
    ValueError: for an unknown mode, shard, feature or split, for lengths that
      leave a shape open, without exactly one checkpoint, or if an unfinished
      job in `output_dir` had other settings.
  """
  _check_settings(mode, checkpoint_period, shard_id, num_shards, dataset_cfg)
  output_dir = checkpoint_dirs.absolute(output_dir)
  provider = datasets.get_mixture_or_task(dataset_cfg)
  datasets.check_split(dataset_cfg)
  if verify_matching_vocabs_fn is not None:
    verify_matching_vocabs_fn(dataset_cfg, model)
  tasks = [
      task
      for task in seqio.get_subtasks(provider)
      if dataset_cfg.split in task.splits
  ]
  vocabularies = {
      task.name: _vocabulary(task, output_vocab_feature_name, mode)
      for task in tasks
  }
  if jax.process_index() == 0:
    epath.Path(output_dir).mkdir(parents=True, exist_ok=True)
  multihost.sync_global_devices('infer:output_dir')
  if shard_id == 0:
    summarize_config_fn(output_dir, None, 0)
  converter = model.FEATURE_CONVERTER_CLS(pack=False)
  shard = seqio.ShardInfo(index=shard_id, num_shards=num_shards)
  data = {
      task.name: _open(task, dataset_cfg, converter, shard) for task in tasks
  }
  _, spec = data[tasks[0].name].element_spec
  states = inference_states.InferenceStates(
      model=model,
      input_shapes=_global_shapes(spec, dataset_cfg.batch_size),
      input_types={
          k: np.dtype(s.dtype.as_numpy_dtype) for k, s in spec.items()
      },
      partitioner=partitioner,
      restore_cfg=restore_checkpoint_cfg,
      model_info_path=(
          os.path.join(output_dir, 'model-info.txt') if shard_id == 0 else None
      ),
      train_state_initializer_cls=train_state_initializer_cls,
      fallback_init_rng=fallback_init_rng,
      use_orbax=use_orbax,
  )
  if len(states.paths) != 1:
    raise ValueError(
        f'Inference takes one checkpoint, found {len(states.paths)}: '
        f'{", ".join(states.paths)}. Set RestoreCheckpointConfig.mode to '
        "'specific' or 'latest'."
    )
  train_state = states.restore(states.paths[0])
  infer_fn = inference.get_infer_fn(
      infer_step=getattr(model, _STEPS[mode]),
      batch_size=dataset_cfg.batch_size,
      train_state_axes=states.axes,
      partitioner=partitioner,
      keep_aux_as_numpy=keep_aux_as_numpy,
  )
  for task in tasks:
    name = f'{task.name}-{mode}.{file_extension}'
    name += f'-{shard_id:05d}-of-{num_shards:05d}'
    _TaskInference(
        run=lambda chunk, rng: infer_fn(chunk, train_state, rng=rng),
        output_dir=output_dir,
        output_fname=name,
        # Of this mode alone: another job may write here at the same time.
        tmp_dir=os.path.join(output_dir, f'tmp-{name}'),
        settings={
            'mode': mode,
            'checkpoint': states.paths[0],
            'split': dataset_cfg.split,
            'chunk_size': checkpoint_period * dataset_cfg.batch_size,
        },
        mode=mode,
        vocabulary=vocabularies[task.name],
        write_fn=write_fn,
        merge_fn=merge_fn if merge_chunked_results else None,
        saves_positions=checkpoint_ds_iter,
        step=int(multihost.get_local_data(train_state.step)),
    ).infer(data[task.name], dataset_cfg)


@dataclasses.dataclass
class _TaskInference:
  """The inference of one task: its files, and how they come about."""

  run: Callable[..., Any]
  output_dir: str
  output_fname: str
  tmp_dir: str
  settings: dict[str, Any]
  mode: str
  vocabulary: Any
  write_fn: inference_files.WriteFn
  merge_fn: inference_files.MergeFn | None
  saves_positions: bool
  step: int

  def infer(
      self, dataset: tf.data.Dataset, cfg: datasets.DatasetConfig
  ) -> None:
    """Infers all chunks that are not done, and merges."""
    output = os.path.join(self.output_dir, self.output_fname)
    if multihost.broadcast_verdict(inference_files.is_complete(output)):
      logging.info('%s is complete already.', output)
      self._clean_up()
      return
    first = self._first_chunk()
    inputs = chunked_input.ChunkedInput(
        dataset,
        self.settings['chunk_size'],
        os.path.join(self.tmp_dir, f'{self.output_fname}.input')
        if self.saves_positions
        else None,
    )
    with datasets.reading(cfg):
      inputs.start_at(first)
    multihost.sync_global_devices(f'infer:{self.output_fname}:start')
    writes: list[concurrent.futures.Future] = []
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as writer:
      chunk = first
      while True:
        with datasets.reading(cfg):
          examples = inputs.next_chunk()
        if not examples and chunk:
          break
        if not examples:
          logging.warning('%s: no example in this part.', self.output_fname)
        logging.info('%s: chunk %d.', self.output_fname, chunk)
        inferences = self._infer_chunk(inputs, examples, chunk)
        # One chunk is written while the next is inferred; errors end the job.
        while writes:
          writes.pop().result()
        if jax.process_index() == 0:
          inputs.save_position(chunk + 1)
          writes.append(
              writer.submit(self._write, inputs, examples, inferences, chunk)
          )
        chunk += 1
      while writes:
        writes.pop().result()
    if jax.process_index() == 0:
      if self.merge_fn is not None:
        self.merge_fn(
            self.output_dir, self.output_fname, self.tmp_dir, self.step
        )
      inference_files.mark_complete(output)
    multihost.sync_global_devices(f'infer:{self.output_fname}:complete')
    self._clean_up()
    logging.info('Results: %s', output)

  def _infer_chunk(
      self,
      inputs: chunked_input.ChunkedInput,
      examples: list[Any],
      chunk: int,
  ) -> inference_files.Inferences:
    if not examples:
      return [], {}
    rng = jax.random.fold_in(jax.random.PRNGKey(0), chunk)
    result = self.run(inputs.as_dataset(examples, part=1).enumerate(), rng)
    indexed, aux = result if isinstance(result, tuple) else (result, {})
    return [output for _, output in indexed], aux

  def _write(
      self,
      inputs: chunked_input.ChunkedInput,
      examples: list[Any],
      inferences: inference_files.Inferences,
      chunk: int,
  ) -> None:
    path = inference_files.chunk_path(self.tmp_dir, self.output_fname, chunk)
    task_ds = inputs.as_dataset(examples, part=0)
    self.write_fn(path, inferences, task_ds, self.mode, self.vocabulary)
    inference_files.mark_complete(path)
    inputs.forget_positions(chunk)

  def _first_chunk(self) -> int:
    """Returns the first chunk without a mark; checks the job's settings."""
    first = 0
    if jax.process_index() == 0:
      epath.Path(self.tmp_dir).mkdir(parents=True, exist_ok=True)
      self._check_same_settings()
      while inference_files.is_complete(
          inference_files.chunk_path(self.tmp_dir, self.output_fname, first)
      ):
        first += 1
      if first:
        logging.info('%s: goes on at chunk %d.', self.output_fname, first)
    return multihost.broadcast_step(first) or 0

  def _check_same_settings(self) -> None:
    path = epath.Path(self.tmp_dir) / f'{self.output_fname}.settings.json'
    if not path.exists():
      new = path.with_name(f'{path.name}.new')
      new.write_text(json.dumps(self.settings))
      new.replace(path)
      return
    before = json.loads(path.read_text())
    for name, value in self.settings.items():
      if before.get(name) != value:
        raise ValueError(
            f'{self.tmp_dir} holds part of a job with {name} = '
            f'{before.get(name)!r}, this one has {value!r}. Go on with that, '
            'take another output_dir, or remove that directory.'
        )

  def _clean_up(self) -> None:
    if self.merge_fn is not None and jax.process_index() == 0:
      path = epath.Path(self.tmp_dir)
      if path.exists():
        path.rmtree()


def _check_settings(
    mode: str,
    checkpoint_period: int,
    shard_id: int,
    num_shards: int,
    cfg: datasets.DatasetConfig,
) -> None:
  if mode not in _STEPS:
    raise ValueError(f'`mode` must be one of {sorted(_STEPS)}, got {mode!r}.')
  if checkpoint_period < 1:
    raise ValueError(
        f'checkpoint_period must be at least 1, got {checkpoint_period}.'
    )
  if not 0 <= shard_id < num_shards:
    raise ValueError(
        f'shard_id must be from 0 to {num_shards - 1} (num_shards = '
        f'{num_shards}), got {shard_id}.'
    )
  for name in ('pack', 'shuffle'):
    if getattr(cfg, name):
      logging.warning('Inference ignores DatasetConfig.%s = True.', name)


def _vocabulary(task: Any, feature: str, mode: str) -> Any:
  if feature in task.output_features:
    return task.output_features[feature].vocabulary
  if mode == 'score':
    return None
  raise ValueError(
      f'Task {task.name!r} has no feature {feature!r}, but '
      f'{sorted(task.output_features)}: set infer.output_vocab_feature_name.'
  )


def _open(
    task: Any,
    cfg: datasets.DatasetConfig,
    converter: Any,
    shard: seqio.ShardInfo,
) -> tf.data.Dataset:
  """Returns pairs of task features and model features, an example each."""
  with datasets.reading(cfg):
    dataset = task.get_dataset(
        sequence_length=cfg.task_feature_lengths,
        split=cfg.split,
        shuffle=False,
        num_epochs=1,
        shard_info=shard,
        use_cached=cfg.use_cached,
        seed=cfg.seed,
        trim_output_features=cfg.trim_output_features,
    )
    features = converter(dataset, cfg.task_feature_lengths)
  return tf.data.Dataset.zip((dataset, features))


def _global_shapes(spec: Any, batch_size: int) -> dict[str, tuple[int, ...]]:
  shapes = {name: tuple(feature.shape) for name, feature in spec.items()}
  for name, shape in shapes.items():
    if None in shape:
      raise ValueError(
          f'The shape of {name!r} is open, {shape}: TASK_FEATURE_LENGTHS must '
          'give every feature a length.'
      )
  return {name: (batch_size, *shape) for name, shape in shapes.items()}
