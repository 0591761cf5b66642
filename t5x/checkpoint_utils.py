"""Single checkpoint directories: pins, removal, and which layout they have."""

import enum
import os

from absl import logging
from etils import epath

_PINNED_FILENAME = 'PINNED'
_TF_MARK = b'model_checkpoint_path'
_ORBAX_MARKS = ('_CHECKPOINT_METADATA', '_METADATA', 'state')


class CheckpointTypes(enum.Enum):
  """The layouts a checkpoint can have."""

  ORBAX = 'ORBAX'
  T5X = 'T5X'
  T5X_TF = 'T5X_TF'


def pinned_checkpoint_filepath(ckpt_dir: str) -> str:
  """Returns the file whose presence keeps a checkpoint from being pruned."""
  return os.path.join(ckpt_dir, _PINNED_FILENAME)


def is_pinned_checkpoint(ckpt_dir: str) -> bool:
  """Tells whether a checkpoint is kept whatever the pruning rules say."""
  return epath.Path(pinned_checkpoint_filepath(ckpt_dir)).exists()


def pin_checkpoint(ckpt_dir: str, txt: str = '1') -> None:
  """Keeps a checkpoint from being pruned.

  Args:
    ckpt_dir: the `checkpoint_<step>` directory.
    txt: what the pin says, such as the reason.
  """
  epath.Path(pinned_checkpoint_filepath(ckpt_dir)).write_text(txt)


def unpin_checkpoint(ckpt_dir: str) -> None:
  """Lets a checkpoint be pruned again."""
  epath.Path(pinned_checkpoint_filepath(ckpt_dir)).unlink(missing_ok=True)


def remove_checkpoint_dir(ckpt_dir: str) -> None:
  """Removes a checkpoint unless it is pinned."""
  if is_pinned_checkpoint(ckpt_dir):
    logging.info('Checkpoint %s is pinned: not removed.', ckpt_dir)
    return
  path = epath.Path(ckpt_dir)
  if path.exists():
    path.rmtree()


def remove_dataset_checkpoint(ckpt_dir: str, train_ds_prefix: str) -> None:
  """Removes the files of the dataset iterator unless the checkpoint is pinned.

  Args:
    ckpt_dir: the `checkpoint_<step>` directory, or its `dataset` item.
    train_ds_prefix: how the files' names start.
  """
  if is_pinned_checkpoint(ckpt_dir):
    logging.info('Checkpoint %s is pinned: dataset state kept.', ckpt_dir)
    return
  for path in epath.Path(ckpt_dir).glob(f'{train_ds_prefix}*'):
    if path.is_dir():
      path.rmtree()
    else:
      path.unlink()


def detect_checkpoint_type(checkpoint_path: str) -> CheckpointTypes:
  """Tells the layout of a checkpoint from what lies in it.

  Args:
    checkpoint_path: the `checkpoint_<step>` directory, its file `checkpoint`,
      or the prefix of a TensorFlow checkpoint.

  Raises:
    FileNotFoundError: if there is no checkpoint.
  """
  path = epath.Path(checkpoint_path)
  if epath.Path(f'{checkpoint_path}.index').exists():
    return CheckpointTypes.T5X_TF
  if path.is_dir():
    if any((path / mark).exists() for mark in _ORBAX_MARKS):
      return CheckpointTypes.ORBAX
    path = path / 'checkpoint'
  if not path.exists():
    raise FileNotFoundError(f'No checkpoint at {checkpoint_path}.')
  with path.open('rb') as file:
    head = file.read(256)
  if head.startswith(_TF_MARK):
    return CheckpointTypes.T5X_TF
  # The legacy msgpack map opens with its version or its optimizer.
  if b'version' in head or b'optimizer' in head:
    return CheckpointTypes.T5X
  return CheckpointTypes.ORBAX
