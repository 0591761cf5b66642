"""Training streams whose order is a function of the step alone.

By default every host reads a stream of its own, so that what a global batch
holds depends on the number of hosts, and a restart needs the saved state of
each host's iterator. Where all sources can read any record by its number, a
stream is defined by places instead: row r of the batch at step k is place
k * batch_size + r, whoever reads it. With a batch of 4, two hosts read

  host 0: 0 1 4 5 8 9 …      host 1: 2 3 6 7 10 11 …

The state of such a stream is one number, the same for all hosts, and a restart
reads nothing again, on any number of hosts.

A SeqIO source takes part by the attribute `reads_places = True`: if its
`get_dataset` is given a `shard_info` with `places`, it returns one element for
each of those places, where place p stands for place p % num_records of epoch
p // num_records. Tasks that shuffle in a buffer, or drop or add examples, keep
the default streams.

A source may also tell `num_skipped(split)`, how many examples it had to replace
by blank ones since the process began, and `waits(split)`, pairs of what it is
reading and since how many seconds. The places that it is given say by `skips`
whether it shall replace any. To be ready for that costs every example some time,
so a stream asks for it from the first batch on that could not be read.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import os
from typing import Any

from absl import logging
from clu.data import dataset_iterator
from etils import epath
import numpy as np
import seqio
import tensorflow as tf

# Skipped examples are a share of those taken, and of no fewer than these: the
# first bad record of a run does not end it.
_LEAST_TAKEN = 1000

# Draws of a mixture after which its order of tasks comes again.
_CYCLE = 2**16

_SUFFIX = '.stream.json'


@dataclasses.dataclass(frozen=True)
class Schedule:
  """Which task of a mixture each place belongs to.

  Every cycle holds the tasks by weight, to within one draw, in a random order.

  Attributes:
    tasks: [cycle] the number of the task at each place.
    ranks: [cycle] how many earlier places of the cycle are the same task's.
    counts: [tasks] places of each task in a cycle.
  """

  tasks: np.ndarray
  ranks: np.ndarray
  counts: np.ndarray

  @classmethod
  def create(
      cls, weights: Sequence[float], seed: int, cycle: int = _CYCLE
  ) -> 'Schedule':
    """Returns a cycle of tasks in proportion to their weights.

    Args:
      weights: one positive number a task.
      seed: of the order.
      cycle: its length.

    Raises:
      ValueError: for a weight that is not positive.
    """
    shares = np.asarray(weights, np.float64)
    if not (np.isfinite(shares).all() and (shares > 0).all()):
      raise ValueError(
          f'Weights of a mixture must be positive, got {list(weights)}.'
      )
    wanted = shares / shares.sum() * cycle
    counts = np.maximum(np.floor(wanted).astype(np.int64), 1)
    # What is left goes to the largest remainders.
    order = np.argsort(counts - wanted, kind='stable')
    missing = cycle - counts.sum()
    while missing:
      change = int(np.sign(missing))
      for task in order if change > 0 else order[::-1]:
        if missing and counts[task] + change > 0:
          counts[task] += change
          missing -= change
    tasks = np.repeat(np.arange(len(counts)), counts)
    tasks = np.random.default_rng(seed).permutation(tasks)
    ranks = np.empty(cycle, np.int64)
    for task, count in enumerate(counts):
      ranks[tasks == task] = np.arange(count)
    return cls(tasks, ranks, counts)

  def drawn(self, places: int) -> np.ndarray:
    """Returns how many of the first `places` draws fell on each task."""
    cycles, rest = divmod(places, len(self.tasks))
    part = np.bincount(self.tasks[:rest], minlength=len(self.counts))
    return cycles * self.counts + part


@dataclasses.dataclass(frozen=True)
class StreamShard(seqio.ShardInfo):
  """A host's rows of every batch, as places of the stream.

  Attributes:
    index: which shard of the batch.
    num_shards: of how many.
    batch_size: rows of the global batch.
    start: the place at which the stream begins.
    schedule: of the mixture, None outside of one.
    task: the number of a mixture's task whose own places these are; None for
      places of the whole stream.
    skips: whether a blank example comes in place of one that cannot be read.
  """

  batch_size: int = 1
  start: int = 0
  schedule: Schedule | None = None
  task: int | None = None
  skips: bool = False

  def _stream_places(self) -> tf.data.Dataset:
    rows = self.batch_size // self.num_shards

    def place(row: Any) -> Any:
      batch, row = row // rows, row % rows
      return self.start + batch * self.batch_size + self.index * rows + row

    return tf.data.Dataset.range(tf.int64.max).map(place)

  def places(self) -> tf.data.Dataset:
    """Returns this shard's places of one source, int64, without an end."""
    places = self._stream_places()
    if self.schedule is None or self.task is None:
      return places
    cycle, count = len(self.schedule.tasks), self.schedule.counts[self.task]
    tasks = tf.constant(self.schedule.tasks)
    ranks = tf.constant(self.schedule.ranks)
    places = places.filter(lambda p: tf.gather(tasks, p % cycle) == self.task)
    places = places.map(
        lambda p: p // cycle * count + tf.gather(ranks, p % cycle)
    )
    # A task's places never end, which a filter cannot know.
    return places.apply(
        tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    )

  def choices(self) -> tf.data.Dataset:
    """Returns the number of the task at each of this shard's places, int64."""
    assert self.schedule is not None
    tasks, cycle = tf.constant(self.schedule.tasks), len(self.schedule.tasks)
    return self._stream_places().map(lambda p: tf.gather(tasks, p % cycle))


class _Interleave(seqio.Mixture):
  """A mixture that draws its tasks by a schedule."""

  def __init__(self, mixture: seqio.Mixture, split: str, seed: int):
    rates = {
        task: mixture.get_rate(task)
        for task in mixture.tasks
        if split in task.splits
    }
    drawn = [(task, rate) for task, rate in rates.items() if rate]
    super().__init__(mixture.name, drawn)
    # In the order in which SeqIO opens them.
    self._numbers = {
        task.name: number for number, task in enumerate(self.tasks)
    }
    self.schedule = Schedule.create([rates[t] for t in self.tasks], seed)

  def get_dataset(self, *args: Any, **kwargs: Any) -> tf.data.Dataset:
    shard = dataclasses.replace(kwargs['shard_info'], schedule=self.schedule)

    def interleave(
        datasets: Sequence[tf.data.Dataset], rates: Any, seed: Any
    ) -> tf.data.Dataset:
      del rates, seed
      return tf.data.Dataset.choose_from_datasets(datasets, shard.choices())

    self._sample_fn = interleave
    return super().get_dataset(*args, **{**kwargs, 'shard_info': shard})

  def get_task_dataset(
      self, task: seqio.Task, *args: Any, **kwargs: Any
  ) -> tf.data.Dataset:
    number = self._numbers[task.name]

    def of_task(value: Any) -> Any:
      if isinstance(value, StreamShard):
        return dataclasses.replace(value, task=number)
      return value

    return super().get_task_dataset(
        task,
        *map(of_task, args),
        **{name: of_task(value) for name, value in kwargs.items()},
    )


@dataclasses.dataclass(frozen=True)
class Stream:
  """A stream by places, to be opened at any of them.

  Attributes:
    open: `(start, seed, skips)` -> batches of this host's rows.
    start: the place at which it begins.
    batch_size: rows of the global batch.
    seed: of the order.
    names: the tasks.
    schedule: how a mixture draws them, None for a single task.
    sizes: records of each task, None where its source does not tell.
    sources: of the tasks.
    split: what is read of them.
    max_skipped_share: of the examples this host takes, how many may be skipped.
  """

  open: Callable[[int, int, bool], tf.data.Dataset]
  start: int
  batch_size: int
  seed: int
  names: Sequence[str]
  schedule: Schedule | None
  sizes: Sequence[int | None]
  sources: Sequence[Any]
  split: str
  max_skipped_share: float

  def scalars(self, place: int) -> dict[str, float]:
    """Tells where a stream stands.

    Args:
      place: how many examples have been taken.

    Returns:
      `data/examples`, epochs of each task (`data/epochs/<task>`), and how many
      examples this host has skipped of them (`data/skipped/<task>`).
    """
    drawn = [place] if self.schedule is None else self.schedule.drawn(place)
    scalars = {'data/examples': float(place)}
    for name, count, size in zip(self.names, drawn, self.sizes):
      if size:
        scalars[f'data/epochs/{name}'] = float(count) / size
    skipped = self._skipped().items()
    return scalars | {f'data/skipped/{name}': float(n) for name, n in skipped}

  def _skipped(self) -> dict[str, int]:
    return {
        name: source.num_skipped(self.split)
        for name, source in zip(self.names, self.sources)
        if hasattr(source, 'num_skipped')
    }

  def num_skipped(self) -> int:
    """Returns how many examples of its tasks this process has skipped."""
    return sum(self._skipped().values())

  def check_skipped(self, skipped: int, taken: int) -> None:
    """Checks how many examples this host has skipped.

    Args:
      skipped: how many, of
      taken: how many.

    Raises:
      ValueError: if that is more than it may.
    """
    taken = max(taken, _LEAST_TAKEN)
    if skipped > self.max_skipped_share * taken:
      counts = ', '.join(f'{k}: {n}' for k, n in self._skipped().items() if n)
      raise ValueError(
          f'{skipped} of {taken} examples had to be skipped '
          f'({counts}), more than DatasetConfig.max_skipped_share = '
          f'{self.max_skipped_share:g}. The log names file, record and reason '
          'of each (`Skipped …`). Build these files again; or raise the limit '
          'to train without them.'
      )

  def waits(self) -> list[tuple[str, float]]:
    """Returns what the sources are reading, and since how many seconds."""
    return [
        wait
        for source in self.sources
        if hasattr(source, 'waits')
        for wait in source.waits(self.split)
    ]

  def describe(self, place: int) -> str:
    """Tells in words what the global batch at a place holds.

    Args:
      place: of its first row.
    """
    end = place + self.batch_size
    if self.schedule is None:
      tasks = self.names[0]
    else:
      drawn = self.schedule.drawn(end) - self.schedule.drawn(place)
      tasks = ', '.join(
          f'{name} ({count} rows)'
          for name, count in zip(self.names, drawn)
          if count
      )
    return f'places {place} to {end - 1} of the stream, tasks: {tasks}'


def can_read_places(
    mixture_or_task: Any, split: str, *, shuffle: bool, use_cached: bool
) -> bool:
  """Tells whether every task of a split can be read by places."""
  return not use_cached and all(
      getattr(task.source, 'reads_places', False) and not task.supports_caching
      # SeqIO has no public name for it.
      and (not shuffle or task._shuffle_buffer_size is None)
      for task in seqio.get_subtasks(mixture_or_task)
      if split in task.splits
  )


def interleaved(mixture_or_task: Any, split: str, seed: int) -> Any:
  """Returns what to open in place of a mixture; a task is returned as it is."""
  if isinstance(mixture_or_task, seqio.Mixture):
    return _Interleave(mixture_or_task, split, seed)
  return mixture_or_task


def attach(
    dataset: tf.data.Dataset,
    open_at: Callable[[int, int, bool], tf.data.Dataset],
    start: int,
    provider: Any,
    split: str,
    batch_size: int,
    seed: int,
    max_skipped_share: float,
) -> None:
  """Makes a data set known as a stream by places (`stream_of`).

  A task that drops or adds examples is left out: its rows are no places.

  Args:
    dataset: the batches.
    open_at: opens it at another place, with another seed, to skip or not.
    start: the place at which it begins.
    provider: from `interleaved`.
    split: the split it reads.
    batch_size: rows of the global batch.
    seed: of the order.
    max_skipped_share: of `Stream`.
  """
  if dataset.cardinality() != tf.data.INFINITE_CARDINALITY:
    logging.warning(
        '%s: a preprocessor (or packing) drops or adds examples, so the order '
        'depends on the number of hosts.',
        provider.name,
    )
    return
  tasks = [t for t in seqio.get_subtasks(provider) if split in t.splits]
  # What a user maps or batches anew loses the attribute, and rightly so.
  dataset.stream = Stream(
      open=open_at,
      start=start,
      batch_size=batch_size,
      seed=seed,
      names=[task.name for task in tasks],
      schedule=getattr(provider, 'schedule', None),
      sizes=[_size(task.source, split) for task in tasks],
      sources=[task.source for task in tasks],
      split=split,
      max_skipped_share=max_skipped_share,
  )


def _size(source: Any, split: str) -> int | None:
  count = getattr(source, 'num_records', source.num_input_examples)
  return count(split)


def stream_of(dataset: Any) -> Stream | None:
  """Returns the stream that a data set is, None for any other data set."""
  return getattr(dataset, 'stream', None)


class StreamIterator(dataset_iterator.DatasetIterator):
  """Iterates a stream; its state is a place and a seed, for all hosts."""

  def __init__(self, dataset: tf.data.Dataset):
    """Starts where a data set that is a stream does."""
    self._go_on(dataset)
    # Of this host, whatever place the stream moves to.
    self._rows, self._skipped_before = 0, self.stream.num_skipped()
    self._skips = False

  def _go_on(self, dataset: tf.data.Dataset) -> None:
    stream = stream_of(dataset)
    assert stream is not None, dataset
    self.stream, self._taken = stream, 0
    self._batches = dataset_iterator.TfDatasetIterator(
        dataset, checkpoint=False
    )

  @property
  def place(self) -> int:
    """How many examples of the global stream have been taken."""
    return self.stream.start + self._taken * self.stream.batch_size

  @property
  def element_spec(self) -> Any:
    """Shapes and dtypes of this host's rows."""
    return self._batches.element_spec

  def __next__(self) -> Mapping[str, np.ndarray]:
    try:
      batch = next(self._batches)
    except tf.errors.OpError:
      if self._skips:
        raise
      logging.warning(
          'The batch at place %d cannot be read. From there on the stream skips '
          'and names what cannot be.',
          self.place,
      )
      self._skips = True
      self._go_on(self.stream.open(self.place, self.stream.seed, True))
      batch = next(self._batches)
    self._taken += 1
    self._rows += len(next(iter(batch.values())))
    skipped = self.stream.num_skipped() - self._skipped_before
    self.stream.check_skipped(skipped, self._rows)
    return batch

  def reset(self) -> None:
    """Starts the stream anew."""
    self._go_on(self.stream.open(0, self.stream.seed, self._skips))

  def save(self, filename: epath.Path, ahead: int = 0) -> None:
    """Writes the place.

    Args:
      filename: how the file's name starts.
      ahead: batches that were taken but not used.
    """
    place = self.place - ahead * self.stream.batch_size
    epath.Path(f'{os.fspath(filename)}{_SUFFIX}').write_text(
        json.dumps({'place': place, 'seed': self.stream.seed})
    )

  def restore(self, filename: epath.Path) -> None:
    """Moves to a saved place.

    Raises:
      FileNotFoundError: if the state of another kind of stream was saved.
    """
    file = epath.Path(f'{os.fspath(filename)}{_SUFFIX}')
    if not file.exists():
      raise FileNotFoundError(
          f'{file} is missing: {filename} holds the state of a tf.data '
          'iterator, not the place of a stream. Set '
          'RestoreCheckpointConfig.restore_dataset = False to start the data '
          'anew.'
      )
    state = json.loads(file.read_text())
    place, seed = state['place'], state['seed']
    if seed != self.stream.seed:
      logging.info('The stream goes on with the seed it began with, %d.', seed)
    self._go_on(self.stream.open(place, seed, self._skips))
