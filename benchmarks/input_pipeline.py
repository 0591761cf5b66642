"""What the input pipeline gives, beside the least that it has to do.

For each task, images a second of the training stream at the recipes' sizes,
and of a bare `tf.image.decode_jpeg` and resize of the same pictures, which are
in memory. Both run in turn in one process of their own, whose peak memory is
told as well. Then records a second: random reads of ArrayRecord beside one
sequential pass over a TFRecord of the same records.

    PIXEL_LLM_DATA_DIR=data python benchmarks/input_pipeline.py
    python benchmarks/input_pipeline.py --tasks ln_coco_trace --seconds 30

prints a JSON object a line. `ratio` is the stream's share of the bare rate.
"""

import argparse
from collections.abc import Callable, Iterator
import concurrent.futures
import json
import multiprocessing
import pathlib
import random
import resource
import statistics
import tempfile
import time
from typing import Any

from array_record.python import array_record_module
import seqio
import tensorflow as tf

from pixel_llm import feature_converters
from pixel_llm import features
from t5x import data_stream
from t5x import datasets
from tasks import records

SIZE = 384
BATCH = 8
ROUNDS = 3
# N, T, C of the recipes, by the end of a task's name.
SHAPES = {
    'trace': (1, 128, 8),
    'caption': (1, 128, 8),
    'densecap': (100, 40, 8),
    'refexp': (16, 40, 40),
    'refseg': (16, 40, 40),
    'conversation': (16, 128, 32),
}
TASKS = (
    'ln_sample_trace',
    'vg_sample_densecap',
    'refcoco_sample_refseg',
    'refcoco_sample_refexp',
    'coco_sample_caption',
    'llava_sample_conversation',
)


def task_stream(name: str) -> tf.data.Dataset:
  """Batches of a task as a run on one host reads them."""
  masks = name.endswith('refseg')
  lengths = features.feature_lengths(
      SIZE, *SHAPES[name.rpartition('_')[2]], with_masks=masks
  )
  converter = (
      feature_converters.PixelLLMMaskFeatureConverter
      if masks
      else feature_converters.PixelLLMFeatureConverter
  )
  cfg = datasets.DatasetConfig(name, lengths, 'train', BATCH, True, 0)
  return datasets.get_dataset(cfg, 0, 1, converter)


def pictures(name: str) -> list[bytes]:
  """The encoded pictures of a task, in the order in which it first shows them."""
  source: Any = seqio.get_mixture_or_task(name).source
  places = source.get_dataset(
      'train', seed=0, shard_info=data_stream.StreamShard(0, 1)
  )
  encoded = []
  for place in places.take(source.num_records('train')).as_numpy_iterator():
    fields = tf.train.Example.FromString(place['record']).features.feature
    key = 'image/encoded' if 'image/encoded' in fields else 'image'
    encoded.append(fields[key].bytes_list.value[0])
  return encoded


def bare_stream(encoded: list[bytes]) -> tf.data.Dataset:
  """The same pictures, decoded and resized to the network input."""

  def decode(data: tf.Tensor) -> tf.Tensor:
    image = tf.image.decode_jpeg(data, channels=3)
    return tf.cast(tf.image.resize(image, [SIZE, SIZE]), tf.uint8)

  dataset = tf.data.Dataset.from_tensor_slices(encoded).repeat()
  dataset = dataset.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
  return dataset.batch(BATCH).prefetch(tf.data.AUTOTUNE)


def rate(iterator: Iterator[Any], seconds: float) -> float:
  """Images a second."""
  start, count = time.perf_counter(), 0
  while (spent := time.perf_counter() - start) < seconds:
    next(iterator)
    count += BATCH
  return count / spent


def measure(name: str, seconds: float) -> dict[str, Any]:
  """Measures one task; in a process of its own."""
  streams = {
      'task': iter(task_stream(name)),
      'bare': iter(bare_stream(pictures(name))),
  }
  for stream in streams.values():
    rate(stream, min(seconds, 3.0))  # TensorFlow finds its threads.
  rates = {kind: [] for kind in streams}
  for _ in range(ROUNDS):
    for kind, stream in streams.items():
      rates[kind].append(rate(stream, seconds))
  task, bare = (statistics.median(rates[kind]) for kind in ('task', 'bare'))
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
  return {
      'task': name,
      'images_per_s': round(task, 1),
      'bare_images_per_s': round(bare, 1),
      'ratio': round(task / bare, 3),
      'peak_mb': round(peak),
  }


def timed(read: Callable[[], int]) -> float:
  """Records a second, the median of some runs."""
  rates = []
  for _ in range(ROUNDS):
    start = time.perf_counter()
    count = read()
    rates.append(count / (time.perf_counter() - start))
  return statistics.median(rates)


def measure_reads(name: str, megabytes: int, threads: int) -> dict[str, Any]:
  """Reads the records of a task, written again and again, in two formats."""
  source: Any = seqio.get_mixture_or_task(name).source
  kept = source.records('train')
  some = [kept.read(index) for index in range(len(kept))]
  repeats = -(-(megabytes * 2**20) // sum(map(len, some)))
  with tempfile.TemporaryDirectory() as folder:
    plain = str(pathlib.Path(folder, 'records.tfrecord'))
    array = str(pathlib.Path(folder, 'records.array_record'))
    random_writer = array_record_module.ArrayRecordWriter(array, 'group_size:1')
    with tf.io.TFRecordWriter(plain) as writer:
      for record in some * repeats:
        writer.write(record)
        random_writer.write(record)
    random_writer.close()
    count = len(some) * repeats
    opened = records.Records([(array, count)])
    order = random.Random(0).sample(range(count), count)

    def read_randomly() -> int:
      with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return sum(1 for _ in pool.map(opened.read, order))

    def read_in_turn() -> int:
      return sum(1 for _ in tf.data.TFRecordDataset(plain))

    randomly, in_turn = timed(read_randomly), timed(read_in_turn)
  return {
      'records': name,
      'mb': megabytes,
      'array_record_random_per_s': round(randomly),
      'tf_record_in_turn_per_s': round(in_turn),
      'ratio': round(randomly / in_turn, 3),
  }


def main() -> None:
  """Prints the figures, a line a measurement."""
  parser = argparse.ArgumentParser(
      description=__doc__.split('\n', maxsplit=1)[0]
  )
  parser.add_argument('--tasks', nargs='+', default=TASKS)
  parser.add_argument('--seconds', type=float, default=8.0)
  parser.add_argument('--megabytes', type=int, default=200)
  parser.add_argument('--threads', type=int, default=4)
  args = parser.parse_args()
  for name in args.tasks:
    # What is missing is told now, with the command that makes it.
    source: Any = seqio.get_mixture_or_task(name).source
    source.list_shards('train')
  # A fresh process each, for its peak of memory.
  spawn = multiprocessing.get_context('spawn')
  for name in args.tasks:
    with spawn.Pool(1) as pool:
      print(json.dumps(pool.apply(measure, (name, args.seconds))), flush=True)
  with spawn.Pool(1) as pool:
    reads = args.tasks[0], args.megabytes, args.threads
    print(json.dumps(pool.apply(measure_reads, reads)), flush=True)


if __name__ == '__main__':
  main()
