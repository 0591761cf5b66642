"""Where the examples come from: ArrayRecord files, read at random places.

A data set is a folder that `python -m tasks.build` wrote: shards of records
and a `manifest.json`. Paths are resolved when a data set is read, so tasks
can be registered without any data.

The order is a full permutation of the record numbers, a function of (seed,
epoch) and of nothing else: neither of the shards, nor of the number of hosts,
nor of the buffer sizes. Only record numbers are shuffled, so an iterator's
checkpoint holds a position and no decoded image.

Training by places (`t5x.data_stream`) goes on without a record that cannot be
used, if these say so (`skipping`); all other reading ends with an error.
"""

from collections.abc import Collection, Mapping
import functools
import json
import os
import pathlib

import numpy as np
import seqio
import tensorflow as tf

from tasks import records as records_lib
from tasks import skipping

ENVIRONMENT_VARIABLE = 'PIXEL_LLM_DATA_DIR'
DEFAULT_DATA_DIR = 'data'
MANIFEST = 'manifest.json'
SCHEMA_VERSION = 1
TRAINING = 'training'

# Python is entered once for so many records.
_READ_AT_ONCE = 8


def data_dir() -> pathlib.Path:
  """Returns `$PIXEL_LLM_DATA_DIR`, or `./data` where it is not set."""
  return pathlib.Path(os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT_DATA_DIR)


class ArrayRecordSource(seqio.DataSource):
  """Serialized records and their seeds from a folder of ArrayRecord shards.

  Each element has
  * `record`: the serialized `tf.train.Example`,
  * `index`: its number in the split,
  * `records`: what its shards are opened as (`records.opened`), in training by
    places that skip, where a record that cannot be read is empty,
  * `training`: True, in splits to train on; others have no such field,
  * `seed`: int64 [2], a function of (seed, epoch, index). Preprocessors draw
    from it alone, so an example looks the same however many hosts there are.

  `num_input_examples` stays None on purpose: SeqIO would otherwise keep small
  sets in memory in their first epoch's order, and save them with every
  checkpoint. `num_records` tells the number.
  """

  # T5X here then makes the order of a run a function of the step alone, and
  # asks for places (`t5x.data_stream`); upstream asks for shards.
  reads_places = True

  def __init__(
      self,
      splits: Mapping[str, str],
      build_command: str,
      training_splits: Collection[str] = ('train',),
  ):
    """Makes a source.

    Args:
      splits: split name to its folder below the data directory.
      build_command: what makes these folders, for the error message; `<data>`
        stands for the data directory.
      training_splits: names of the splits that preprocessors randomise.
    """
    super().__init__(
        splits=tuple(splits),
        num_input_examples=None,
        caching_permitted=False,
        performs_internal_shuffling=True,
    )
    self._directories = dict(splits)
    self._command_template = build_command
    self._training_splits = tuple(training_splits)

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """True: every record can be read by itself."""
    return True

  @property
  def _build_command(self) -> str:
    return self._command_template.replace('<data>', str(data_dir()))

  def directory(self, split: str) -> pathlib.Path:
    """Returns the folder of a split, which need not exist."""
    return data_dir() / self._directories[split]

  def list_shards(self, split: str) -> list[str]:
    """Returns the paths of the shards of a split.

    Args:
      split: name of the split.

    Returns:
      The paths in the order of the records.

    Raises:
      FileNotFoundError: if the manifest or a shard is missing.
      ValueError: if another version of the converter wrote the split.
    """
    return [file for file, _ in self._shards(split)]

  def _shards(self, split: str) -> list[tuple[str, int]]:
    directory = self.directory(split)
    manifest_path = directory / MANIFEST
    if not manifest_path.exists():
      raise FileNotFoundError(self._advice(split, manifest_path))
    manifest = json.loads(manifest_path.read_text(encoding='utf-8'))
    if manifest['schema_version'] != SCHEMA_VERSION:
      raise ValueError(
          f'{manifest_path}: schema_version is {manifest["schema_version"]},'
          f' this code reads {SCHEMA_VERSION}. Convert the data again with'
          f' `{self._build_command}`.'
      )
    for shard in manifest['shards']:
      if not (directory / shard['file']).exists():
        raise FileNotFoundError(self._advice(split, directory / shard['file']))
    return [
        (str(directory / shard['file']), shard['num_records'])
        for shard in manifest['shards']
    ]

  def records(self, split: str) -> records_lib.Records:
    """Opens the records of a split; raises as `list_shards`."""
    return records_lib.open_records(
        str(self.directory(split)), self._shards(split)
    )

  def num_records(self, split: str) -> int:
    """Returns how many records a split has, as its manifest tells."""
    return len(self.records(split))

  def num_skipped(self, split: str) -> int:
    """Returns how often this process went on without a record it drew."""
    return self.records(split).num_skipped

  def waits(self, split: str) -> list[tuple[str, float]]:
    """Returns what is being read, and since how many seconds."""
    return self.records(split).waits()

  def get_dataset(
      self,
      split: str = 'train',
      shuffle: bool = True,
      seed: int | None = None,
      shard_info: seqio.ShardInfo | None = None,
      *,
      sequence_length: Mapping[str, int] | None = None,
      use_cached: bool = False,
      num_epochs: int | None = 1,
  ) -> tf.data.Dataset:
    """Reads one epoch; repeating the data set gives the next epochs.

    Args:
      split: name of the split.
      shuffle: whether to permute the records anew each epoch.
      seed: of the permutation and of the examples' seeds; None draws one.
      shard_info: reads every `num_shards`-th place of the order only; one
        with `places` names the places itself, in all epochs.
      sequence_length: unused.
      use_cached: unused.
      num_epochs: unused, SeqIO repeats the data set.

    Returns:
      A data set of `record`, `index` and `seed`.

    Raises:
      FileNotFoundError: if the split is not there.
    """
    del sequence_length, use_cached, num_epochs
    records = str(self.directory(split))
    num_records = self.num_records(split)
    if not num_records:
      raise ValueError(
          f'{self.directory(split)} holds no record: the converter rejected'
          ' everything, see rejects.jsonl there.'
      )
    own_seed = tf.constant(seed or 0, tf.int64)
    # A field that is there or not can be told before any element is read.
    is_training = split in self._training_splits
    marks = {TRAINING: tf.constant(True)} if is_training else {}
    shard_places = getattr(shard_info, 'places', None)
    skips = is_training and getattr(shard_info, 'skips', False)
    if skips:
      marks[skipping.RECORDS] = tf.constant(records)

    def record_number(
        epoch_seed: tf.Tensor, place: tf.Tensor
    ) -> dict[str, tf.Tensor]:
      key, index = tf.stack([epoch_seed, own_seed]), place
      if shuffle:
        index = tf.random.experimental.index_shuffle(
            place, key, tf.constant(num_records - 1, tf.int64)
        )
      return {
          skipping.INDEX: index,
          **marks,
          'seed': tf.random.fold_in(key, index),
      }

    if shard_places is not None:
      numbers = shard_places().map(
          lambda place: record_number(place // num_records, place % num_records)
      )
    else:
      numbers = _one_epoch(num_records, seed, shard_info).map(record_number)
    opened = records_lib.opened(records)
    if shard_places is not None:
      some = numbers.batch(_READ_AT_ONCE).map(
          functools.partial(_read_some, opened, skips),
          num_parallel_calls=tf.data.AUTOTUNE,
      )
      return some.unbatch()
    places = numbers.map(
        functools.partial(_read, opened), num_parallel_calls=tf.data.AUTOTUNE
    )
    # Checkpoints then hold the places of the readers, not what lies between
    # them and the consumer.
    options = tf.data.Options()
    options.experimental_symbolic_checkpoint = True
    return places.with_options(options)

  def _advice(self, split: str, missing: pathlib.Path) -> str:
    return (
        f'{missing} is missing (split {split!r}; data directory'
        f' {data_dir().resolve()}, from the environment variable'
        f' {ENVIRONMENT_VARIABLE}, or ./{DEFAULT_DATA_DIR} where that is not'
        f' set). Set {ENVIRONMENT_VARIABLE}, or convert the data first:'
        f' `{self._build_command}`.'
    )


def _one_epoch(
    num_records: int, seed: int | None, shard_info: seqio.ShardInfo | None
) -> tf.data.Dataset:
  """Returns the places of a shard, with a number of the epoch's own."""
  shard = shard_info or seqio.ShardInfo(index=0, num_shards=1)

  def places(epoch_seed: tf.Tensor) -> tf.data.Dataset:
    places = tf.data.Dataset.range(shard.index, num_records, shard.num_shards)
    return places.map(lambda place: (epoch_seed, place))

  # One random number an epoch: the generator is part of the iterator's
  # checkpoint, and is drawn again each time the data set is repeated.
  epochs = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
  return epochs.take(1).flat_map(places)


def _read(
    records: records_lib.Records, place: Mapping[str, tf.Tensor]
) -> dict[str, tf.Tensor]:
  """Adds the bytes of one record."""
  record = tf.numpy_function(
      # Reading has no side effects; a stateful function could not be saved.
      lambda index: records.read(int(index)),
      [place[skipping.INDEX]],
      tf.string,
      stateful=False,
  )
  return {**place, 'record': tf.ensure_shape(record, [])}


def _read_some(
    records: records_lib.Records,
    skips: bool,
    places: Mapping[str, tf.Tensor],
) -> dict[str, tf.Tensor]:
  """Adds the bytes of some records; none, where it skips an unreadable one."""

  def read(index: int) -> bytes:
    try:
      return records.read(index)
    # Whatever keeps it from being read: `skipping` tries again and tells.
    except Exception:
      if not skips:
        raise
      return b''

  def read_all(indices: np.ndarray) -> np.ndarray:
    return np.array([read(int(index)) for index in indices], object)

  some = tf.numpy_function(
      read_all, [places[skipping.INDEX]], tf.string, stateful=False
  )
  return {**places, 'record': tf.ensure_shape(some, [None])}
