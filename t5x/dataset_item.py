"""The item `dataset` of a checkpoint: where the input pipeline stands."""

import contextlib
import dataclasses
import re
from typing import Any

from etils import epath
import orbax.checkpoint as ocp

ITEM = 'dataset'
PREFIX = 'train_ds'


def get_filename(shard_id: int, num_shards: int) -> str:
  """Returns how the files of a data shard start."""
  return f'{PREFIX}-{shard_id:03d}-of-{num_shards:03d}'


def list_shards(directory: epath.PathLike) -> list[str]:
  """Returns how the files of each saved data shard start."""
  names = [path.name for path in epath.Path(directory).glob(f'{PREFIX}-*')]
  pattern = re.compile(rf'{PREFIX}-\d+-of-\d+')
  return sorted({m[0] for m in map(pattern.match, names) if m})


class DatasetCheckpointHandler(ocp.AsyncCheckpointHandler):
  """Saves the state of this process's dataset iterator."""

  async def async_save(
      self, directory: epath.Path, args: 'DatasetSave'
  ) -> list[ocp.future.Future]:
    """Writes as `save` does, yet an error waits in what is returned.

    Raised here, it would leave the other processes alone in this save's next
    barrier.
    """

    async def write():
      self.save(directory, args)

    written = ocp.future.CommitFutureAwaitingContractedSignals(write())
    # Blocking on purpose: a tf.data iterator moves on with the next batch.
    with contextlib.suppress(Exception):
      written.result()
    return [written]

  def save(self, directory: epath.Path, args: 'DatasetSave') -> None:
    """Writes the iterator's state into `directory`."""
    if args.iterator is not None:
      args.iterator.save(directory / args.filename)

  def restore(self, directory: epath.Path, args: 'DatasetRestore') -> Any:
    """Moves the iterator to where it stood."""
    args.iterator.restore(directory / args.filename)
    return args.iterator


@ocp.args.register_with_handler(DatasetCheckpointHandler, for_save=True)
@dataclasses.dataclass
class DatasetSave(ocp.args.CheckpointArgs):
  """The iterator to save, None where another process saves its shard."""

  iterator: Any
  filename: str


@ocp.args.register_with_handler(DatasetCheckpointHandler, for_restore=True)
@dataclasses.dataclass
class DatasetRestore(ocp.args.CheckpointArgs):
  """The iterator to restore."""

  iterator: Any
  filename: str
