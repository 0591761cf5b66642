"""Arguments of `loop.train` for the tiny task, for tests in this process."""

import functools

import tiny_task

from t5x import checkpoint_config
from t5x import datasets
from t5x import optimizers
from t5x import partitioning
from t5x import trainer


def dataset_cfg(split='train', task='tiny_plain_task', **overrides):
  settings = {
      'mixture_or_task_name': task,
      'task_feature_lengths': tiny_task.feature_lengths(),
      'split': split,
      'batch_size': 8,
      'shuffle': split == 'train',
      'seed': 5,
  }
  return datasets.DatasetConfig(**{**settings, **overrides})


def partitioner():
  return partitioning.PjitPartitioner(model_parallel_submesh=(1, 1, 1, 1))


def run_kwargs(model_dir, *, save=None, restore=None, **overrides):
  """Returns a run of 4 steps without evaluation that saves at its end."""
  save = {'period': 4, 'save_dataset': True, **(save or {})}
  model = overrides.pop('model', None) or tiny_task.TinyModel(
      optimizers.adamw(0.01)
  )
  kwargs = {
      'model': model,
      'train_dataset_cfg': dataset_cfg(),
      'train_eval_dataset_cfg': None,
      'infer_eval_dataset_cfg': None,
      'checkpoint_cfg': checkpoint_config.CheckpointConfig(
          save=checkpoint_config.SaveCheckpointConfig(**save),
          restore=restore,
      ),
      'partitioner': partitioner(),
      'trainer_cls': functools.partial(
          trainer.Trainer,
          learning_rate_fn=lambda step: 0.01,
          num_microbatches=None,
      ),
      'model_dir': str(model_dir),
      'total_steps': 4,
      'eval_steps': 2,
      'eval_period': 0,
      'random_seed': 3,
      'summarize_config_fn': lambda *_: None,
  }
  return {**kwargs, **overrides}
