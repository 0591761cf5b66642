"""Describes a run without running it: no weights, no data, no files."""

from collections.abc import Callable
import math
from typing import Any

import jax

import gin
from t5x import batches
from t5x import datasets
from t5x import mesh_description
from t5x import model_info
from t5x import text_table


def describe(
    *,
    model: Any,
    train_dataset_cfg: datasets.DatasetConfig,
    partitioner: Any,
    data_layout: Any,
    get_dataset_fn: Callable[..., Any],
    train_state_initializer_cls: Callable[..., Any],
    total_steps: int,
) -> tuple[int, Any]:
  """Prints configuration, mesh, batch and parameter counts of a run.

  Args:
    model: the model.
    train_dataset_cfg: what it would train on.
    partitioner: the mesh and its rules.
    data_layout: how the batch is divided.
    get_dataset_fn: opens the training data, if their shapes follow from
      nothing else.
    train_state_initializer_cls: makes train states.
    total_steps: the step the run would end at.

  Returns:
    0 and the train state of shapes.
  """
  if get_dataset_fn is datasets.get_dataset:
    datasets.get_mixture_or_task(train_dataset_cfg)
  spec = batches.get_step_spec(
      model, train_dataset_cfg, data_layout, get_dataset_fn
  )
  initializer = train_state_initializer_cls(
      optimizer_def=model.optimizer_def,
      init_fn=model.get_initial_variables,
      input_shapes={name: feature.shape for name, feature in spec.items()},
      input_types={name: feature.dtype for name, feature in spec.items()},
      partitioner=partitioner,
  )
  state = initializer.global_train_state_shape
  lines = [
      _title('Configuration'),
      gin.operative_config_str(),
      _title('Mesh'),
      *mesh_description.mesh_lines(
          partitioner.mesh, partitioner.logical_axis_rules
      ),
      '',
      _title('Batch'),
      f'{data_layout.batch_size} examples a step in {data_layout.num_shards} '
      f'data shards, {total_steps} steps',
      *_batch_lines(spec, data_layout, partitioner),
      '',
      _title('Parameters'),
      *_parameter_lines(model, state),
      '',
      'Dry run: nothing was read, written or trained.',
  ]
  print('\n'.join(lines), flush=True)
  return 0, state


def _title(text: str) -> str:
  return f'==== {text} ===='


def _batch_lines(
    spec: dict[str, jax.ShapeDtypeStruct], data_layout: Any, partitioner: Any
) -> list[str]:
  rows = [('feature', 'global shape', 'dtype', 'MiB')]
  total = 0
  for name, feature in spec.items():
    size = math.prod(feature.shape) * feature.dtype.itemsize
    total += size
    rows.append((name, str(feature.shape), str(feature.dtype), _mib(size)))
  rows.append(('total', '', '', _mib(total)))
  per_host = data_layout.batch_size // data_layout.num_shards
  return [
      *text_table.lines(rows, right=range(1, 4)),
      f'sharded over {partitioner.data_partition_spec}; {per_host} examples a '
      'data shard',
  ]


def _parameter_lines(model: Any, state: Any) -> list[str]:
  params = state.params
  mask_fn = getattr(model.optimizer_def, 'trainable_mask', None)
  mask = mask_fn(params) if mask_fn else jax.tree.map(lambda _: True, params)
  counts = model_info.parameter_counts(state, mask)
  rows = [('module', 'trainable', 'frozen', 'MiB')]
  for name, (on, off, size) in counts.items():
    rows.append((name, f'{on:,}', f'{off:,}', _mib(size)))
  on, off, size = (sum(column) for column in zip(*counts.values()))
  rows.append(('total', f'{on:,}', f'{off:,}', _mib(size)))
  slots = sum(
      math.prod(x.shape) * x.dtype.itemsize
      for x in jax.tree.leaves(state.param_states)
  )
  return [
      *text_table.lines(rows, right=range(1, 4)),
      f'optimizer state: {_mib(slots)} MiB',
  ]


def _mib(size: int) -> str:
  return f'{size / 2**20:,.2f}'
