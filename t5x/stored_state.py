"""Reading the `state` item of an Orbax checkpoint, whole or in parts.

A checkpoint is first read as a tree of `StoredArray`s: names, shapes and
dtypes, no numbers. Transformation functions may rename, drop or replace its
leaves. Only what remains is read from disk, each array straight into the
sharding it will have.
"""

from collections.abc import Mapping
from concurrent import futures
import dataclasses
import functools
from typing import Any

from etils import epath
from flax import traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp

from t5x import checkpoint_importer
from t5x import tensorstore_array

Path = tuple[str, ...]

# How many arrays in files of their own are read, and held, at once.
_READERS = 8


class StoredArray(checkpoint_importer.LazyArray):
  """An array in a checkpoint, known by its path in the stored tree."""

  def __init__(self, directory: str, path: Path, metadata: Any):
    """Describes the array at `path` of the checkpoint in `directory`."""
    super().__init__(
        getattr(metadata, 'shape', ()),
        metadata.dtype,
        functools.partial(_read_one, directory, path),
        ['/'.join(path)],
    )
    self.directory, self.path = directory, path


def _read_one(directory: str, path: Path) -> np.ndarray:
  return read_arrays(directory, {path: ocp.RestoreArgs(np.ndarray)})[path]


def read_tree(directory: str) -> dict[str, Any]:
  """Returns the stored tree with a `StoredArray` for each leaf.

  Args:
    directory: the `state` directory of a checkpoint.
  """
  metadata = ocp.PyTreeCheckpointHandler().metadata(epath.Path(directory))
  tree = getattr(metadata, 'tree', metadata)
  flat = {
      path: StoredArray(directory, path, leaf)
      for path, leaf in flatten(tree).items()
      if hasattr(leaf, 'dtype')
  }
  return traverse_util.unflatten_dict(flat)


def read_arrays(
    directory: str, wanted: Mapping[Path, ocp.RestoreArgs]
) -> dict[Path, Any]:
  """Reads some arrays of the checkpoint in `directory`.

  Args:
    directory: the `state` directory.
    wanted: how to restore the array at each path.

  Returns:
    The arrays by path.
  """
  if not wanted:
    return {}
  args = traverse_util.unflatten_dict(dict(wanted))
  # Any leaf would do: `item` only says which names are wanted.
  item = jax.tree.map(
      lambda _: 0,
      args,
      is_leaf=lambda x: isinstance(x, ocp.RestoreArgs),
  )
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    restored = checkpointer.restore(
        epath.Path(directory),
        args=ocp.args.PyTreeRestore(
            item=item, restore_args=args, partial_restore=True
        ),
    )
  return flatten(restored)


def get_all(tree: Any) -> Any:
  """Reads all arrays of a (transformed) tree at once; others stay as they are.

  One read of all names takes about as long as a read of one name does.

  Args:
    tree: nested dicts with `LazyArray`s or arrays as leaves.

  Returns:
    The same tree with numpy arrays in place of `LazyArray`s.
  """
  wanted: dict[str, dict[Path, ocp.RestoreArgs]] = {}
  leaves, structure = jax.tree.flatten(tree)
  for leaf in leaves:
    if isinstance(leaf, StoredArray):
      by_path = wanted.setdefault(leaf.directory, {})
      by_path[leaf.path] = ocp.RestoreArgs(np.ndarray)
  arrays = {
      directory: read_arrays(directory, by_path)
      for directory, by_path in wanted.items()
  }

  def value(leaf):
    if isinstance(leaf, StoredArray):
      array = np.asarray(arrays[leaf.directory][leaf.path])
      return array.astype(leaf.dtype, copy=False)
    if isinstance(leaf, checkpoint_importer.LazyArray):
      return leaf.get()
    return leaf

  return jax.tree.unflatten(structure, [value(leaf) for leaf in leaves])


@dataclasses.dataclass(frozen=True)
class Wanted:
  """What a leaf of the train state should become.

  Attributes:
    shape: its shape.
    dtype: the dtype to cast to, None to keep the stored one.
    sharding: where it lives.
  """

  shape: tuple[int, ...]
  dtype: Any
  sharding: jax.sharding.Sharding


def load(
    leaves: Mapping[Path, Any], wanted: Mapping[Path, Wanted]
) -> dict[Path, jax.Array]:
  """Turns transformed leaves into arrays on the devices.

  Args:
    leaves: a `StoredArray` or any array for each path of the train state.
    wanted: how each is wanted.

  Returns:
    The arrays by path of the train state.
  """
  # One stored array may feed several leaves, so reading goes in rounds that
  # name each source once.
  rounds: list[dict[tuple[str, Path], Path]] = []
  result = _put_many(
      {
          k: leaf
          for k, leaf in leaves.items()
          if not isinstance(leaf, StoredArray)
      },
      wanted,
  )
  for path, leaf in leaves.items():
    if path in result:
      continue
    source = (leaf.directory, leaf.path)
    for one in rounds:
      if source not in one:
        one[source] = path
        break
    else:
      rounds.append({source: path})
  for one in rounds:
    for directory in dict.fromkeys(directory for directory, _ in one):
      sources = {p: t for (d, p), t in one.items() if d == directory}
      arrays = read_arrays(
          directory,
          {p: _restore_args(leaves[t], wanted[t]) for p, t in sources.items()},
      )
      result.update({t: arrays[p] for p, t in sources.items()})
  return {path: result[path] for path in leaves}


def _restore_args(leaf: StoredArray, want: Wanted) -> ocp.ArrayRestoreArgs:
  return ocp.ArrayRestoreArgs(
      restore_type=jax.Array,
      dtype=want.dtype or leaf.dtype,
      sharding=want.sharding,
      global_shape=want.shape,
  )


def _put_many(
    leaves: Mapping[Path, Any], wanted: Mapping[Path, Wanted]
) -> dict[Path, jax.Array]:
  """Puts arrays onto the devices; those in files of their own side by side."""
  result = {}
  with futures.ThreadPoolExecutor(_READERS) as readers:
    pending = {
        path: readers.submit(_put, leaf, wanted[path])
        for path, leaf in leaves.items()
        if isinstance(leaf, tensorstore_array.TensorStoreArray)
    }
    for path, leaf in leaves.items():
      if path not in pending:
        result[path] = _put(leaf, wanted[path])
    result.update({path: put.result() for path, put in pending.items()})
  return result


def _put(leaf: Any, want: Wanted) -> jax.Array:
  if isinstance(leaf, jax.Array):  # a fresh, maybe sharded, value
    value = leaf if want.dtype is None else leaf.astype(want.dtype)
    return jax.device_put(value, want.sharding)
  if isinstance(leaf, checkpoint_importer.LazyArray):
    lazy = leaf if want.dtype is None else leaf.astype(want.dtype)
    parts: dict[str, np.ndarray] = {}

    def read(index):
      # Devices that hold the same part share one read.
      if str(index) not in parts:
        parts[str(index)] = lazy.read(index)
      return parts[str(index)]

    return jax.make_array_from_callback(lazy.shape, want.sharding, read)
  value = np.asarray(leaf)
  value = value if want.dtype is None else value.astype(want.dtype)
  return jax.make_array_from_callback(
      value.shape, want.sharding, lambda index: value[index]
  )


def flatten(tree: Any, prefix: Path = ()) -> dict[Path, Any]:
  """Returns the leaves of nested mappings and sequences by path of strings.

  None and empty nodes are left out: a checkpoint holds arrays only.
  """
  if isinstance(tree, Mapping):
    items = tree.items()
  elif isinstance(tree, (list, tuple)) and not isinstance(
      tree, jax.sharding.PartitionSpec
  ):
    items = enumerate(tree)
  else:
    return {} if tree is None else {prefix: tree}
  flat = {}
  for key, value in items:
    flat.update(flatten(value, (*prefix, str(key))))
  return flat


def fill(tree: Any, leaves: Mapping[Path, Any], prefix: Path = ()) -> Any:
  """Returns `tree` with its leaves replaced; None and empty nodes stay."""
  if isinstance(tree, Mapping):
    return {k: fill(v, leaves, (*prefix, str(k))) for k, v in tree.items()}
  return None if tree is None else leaves[prefix]
