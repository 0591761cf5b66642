"""From a checkpoint of any layout to a train state on the mesh.

Names, shapes and dtypes are read first; transformation functions rename or drop
what they like; what is left is matched with the model's names and read, each
array straight into the sharding it will have. So the mesh, the number of hosts
and the dtype may be other ones than those that saved.
"""

from collections.abc import Mapping, Sequence
import os
from typing import Any

from absl import logging
from etils import epath
import jax
import jax.numpy as jnp

from t5x import checkpoint_reader
from t5x import checkpoint_utils
from t5x import dataset_item
from t5x import restore_report
from t5x import state_matching
from t5x import stored_state


def restore(
    path: str,
    train_state: Any,
    partitioner: Any,
    *,
    restore_dtype: Any = None,
    fallback_state: state_matching.Fallback | None = None,
    state_transformation_fns: Sequence[Any] = (),
    lazy_parameters: bool = False,
) -> tuple[Any, restore_report.RestoreReport]:
  """Restores a train state.

  Args:
    path: a `checkpoint_<step>` directory or a legacy file.
    train_state: a train state of arrays or shapes: names and structure.
    partitioner: gives the mesh and the mesh axes of the state.
    restore_dtype: dtype to which floating parameters are cast, None for the
      stored one; those that the state keeps in half precision stay so.
    fallback_state: a state dict for leaves that the checkpoint lacks, or a
      function from their paths to their values.
    state_transformation_fns: `(stored, target) -> stored`, applied in order
      to the tree of stored arrays before anything is read.
    lazy_parameters: whether stored leaves stay `LazyArray`s.

  Returns:
    A train state like the given one, sharded over the mesh, and which of its
    arrays came from where.

  Raises:
    FileNotFoundError: if there is no such checkpoint.
    ValueError: if leaves are missing or have other shapes.
  """
  logging.info('Restoring %s.', path)
  target = train_state.state_dict()
  original = checkpoint_reader.read_tree(path)
  stored = original
  for fn in state_transformation_fns:
    stored = fn(stored, target)
  leaves = state_matching.match(stored, target, fallback_state, path)
  report = restore_report.describe(path, original, stored, target)
  if not lazy_parameters:
    leaves = _load(leaves, train_state, partitioner, restore_dtype)
  state = train_state.restore_state(stored_state.fill(target, leaves))
  return state, report


def _load(
    leaves: Mapping[stored_state.Path, Any],
    train_state: Any,
    partitioner: Any,
    restore_dtype: Any,
) -> dict[stored_state.Path, jax.Array]:
  mesh_axes = stored_state.flatten(
      partitioner.get_mesh_axes(train_state).state_dict()
  )
  wanted = {
      key: stored_state.Wanted(
          tuple(leaf.shape),
          _restored_dtype(key, leaf, restore_dtype),
          jax.sharding.NamedSharding(
              partitioner.mesh,
              mesh_axes.get(key) or jax.sharding.PartitionSpec(),
          ),
      )
      for key, leaf in stored_state.flatten(train_state.state_dict()).items()
  }
  return stored_state.load(leaves, wanted)


def _restored_dtype(
    path: stored_state.Path, leaf: Any, restore_dtype: Any
) -> Any:
  if path[0] == 'target' and jnp.issubdtype(leaf.dtype, jnp.floating):
    # A state that keeps a leaf in half precision does so to save memory.
    return leaf.dtype if leaf.dtype.itemsize < 4 else restore_dtype
  return None


def restore_dataset(path: str, iterator: Any, filename: str) -> None:
  """Moves a dataset iterator to where it stood when a checkpoint was saved.

  Args:
    path: the `checkpoint_<step>` directory or a legacy file.
    iterator: an iterator with `restore`.
    filename: how the files of this data shard start.

  Raises:
    FileNotFoundError: if there is no checkpoint, or it has no state of this
      data shard.
  """
  checkpoint_utils.detect_checkpoint_type(path)  # or there is none
  if not epath.Path(path).is_dir():
    path = os.path.dirname(path)
  for directory in (os.path.join(path, dataset_item.ITEM), path):
    if list(epath.Path(directory).glob(f'{filename}*')):
      iterator.restore(epath.Path(directory) / filename)
      return
    others = dataset_item.list_shards(directory)
    if others and getattr(iterator, 'is_same_for_all_shards', False):
      iterator.restore(epath.Path(directory) / others[0])
      return
    if others:
      saved = int(others[0].rpartition('-')[2])
      raise FileNotFoundError(
          f'{directory} holds the input pipeline of {saved} data shards, this '
          f'run reads {filename}. Run on as many hosts, or set '
          'RestoreCheckpointConfig.restore_dataset = False to start the data '
          'anew.'
      )
  raise FileNotFoundError(
      f'{path} holds no state of the input pipeline ({filename}). '
      'Set RestoreCheckpointConfig.restore_dataset (or '
      'SaveCheckpointConfig.save_dataset) = False to start the data anew.'
  )
