"""How fast conversion is, and what a second process brings.

Makes sets from the pictures of the sample, under many ids, and converts them
with one process and with two, alternately, each in a process of its own that
starts from nothing: reading the annotations and starting the pool count.

    python benchmarks/convert.py
    python benchmarks/convert.py --pictures 4000 --repeats 5

prints a JSON object a source: records and megabytes of pictures per second of
both, the median of the ratios of each pair, and seconds of the processor, which
tell whether the machine had a second core to give.
"""

import argparse
import json
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

REPOSITORY = pathlib.Path(__file__).parents[1]
SAMPLE = REPOSITORY / 'tasks' / 'sample'
# Of Visual Genome and of RefCOCO's merged training set.
REGIONS_A_PICTURE = 50
OBJECTS_A_PICTURE = 3
NUM_SHARDS = 64


def make_vg(pictures: int, names: list[str]) -> dict:
  regions = [
      {'id': 1000 * picture + number, 'image_id': picture, 'iscrowd': 0}
      | {'bbox': [9 + number, 9, 40, 30], 'caption': f'dog {number} on a mat'}
      for picture in range(pictures)
      for number in range(REGIONS_A_PICTURE)
  ]
  images = [{'id': n, 'file_name': name} for n, name in enumerate(names)]
  return {'images': images, 'annotations': regions}


def make_refcoco(pictures: int, names: list[str]) -> dict:
  corners = [[20, 20], [90, 25], [120, 80], [100, 200], [30, 210], [12, 90]]
  images, annotations = [], []
  for row in range(pictures * OBJECTS_A_PICTURE):
    picture = row // OBJECTS_A_PICTURE
    images.append(
        {
            'id': row,
            'file_name': names[picture],
            'original_id': picture,
            'caption': f'the dog {row}',
        }
    )
    annotations.append(
        {
            'id': row,
            'image_id': row,
            'original_id': row,
            'category_id': 1,
            'bbox': [12, 20, 108, 190],
            'segmentation': [[x + row % 50 for xy in corners for x in xy]],
            'tokens_positive': [],
        }
    )
  return {
      'images': images,
      'annotations': annotations,
      'categories': [{'id': 1}],
  }


SOURCES = {'vg': make_vg, 'refcoco': make_refcoco}


def link_pictures(folder: pathlib.Path, pictures: int) -> list[str]:
  """Links the sample's pictures under many names; returns the names."""
  originals = sorted((SAMPLE / 'train2017').glob('*.jpg'))
  names = [f'{number}.jpg' for number in range(pictures)]
  for number, name in enumerate(names):
    (folder / name).symlink_to(originals[number % len(originals)])
  return names


def convert(source: str, folder: pathlib.Path, workers: int) -> dict:
  """Converts; returns seconds of the clock and of the processor, and bytes."""
  output = folder / 'out'
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  start = time.perf_counter()
  subprocess.run(
      [
          sys.executable,
          '-m',
          'tasks.build',
          source,
          f'--split=train={folder / "annotations.json"}',
          f'--images={folder}',
          f'--output={output}',
          f'--workers={workers}',
          f'--shards={NUM_SHARDS}',
      ],
      check=True,
      cwd=REPOSITORY,
      stdout=subprocess.DEVNULL,
  )
  seconds = time.perf_counter() - start
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  manifest = json.loads((output / 'train' / 'manifest.json').read_text())
  shards = (output / 'train').glob('*.array_record')
  result = {
      'seconds': seconds,
      'cpu_seconds': after.ru_utime
      + after.ru_stime
      - before.ru_utime
      - before.ru_stime,
      'records': manifest['num_records'],
      'picture_bytes': manifest['statistics']['picture_bytes']['total'],
      'shard_bytes': sum(path.stat().st_size for path in shards),
  }
  shutil.rmtree(output)
  return result


def measure(source: str, pictures: int, repeats: int) -> dict:
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    names = link_pictures(folder, pictures)
    document = SOURCES[source](pictures, names)
    (folder / 'annotations.json').write_text(json.dumps(document))
    convert(source, folder, 1)  # The files are in memory from here on.
    pairs = [
        (convert(source, folder, 1), convert(source, folder, 2))
        for _ in range(repeats)
    ]
  ratios = [one['seconds'] / two['seconds'] for one, two in pairs]
  report = {'source': source, 'pictures': pictures, 'cores': os.cpu_count()}
  for label, runs in zip(('one', 'two'), zip(*pairs)):
    seconds = statistics.median(run['seconds'] for run in runs)
    report[label] = {
        'seconds': round(seconds, 2),
        'cpu_seconds': round(
            statistics.median(run['cpu_seconds'] for run in runs), 2
        ),
        'records_per_second': round(runs[0]['records'] / seconds, 1),
        'megabytes_per_second': round(
            runs[0]['picture_bytes'] / seconds / 1e6, 1
        ),
    }
  report['ratios'] = [round(ratio, 2) for ratio in ratios]
  report['ratio'] = round(statistics.median(ratios), 3)
  run = pairs[0][0]
  overhead = run['shard_bytes'] / run['picture_bytes']
  report['shard_bytes_per_picture_byte'] = round(overhead, 3)
  return report


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--sources', nargs='+', default=list(SOURCES))
  parser.add_argument('--pictures', type=int, default=2000)
  parser.add_argument('--repeats', type=int, default=3)
  arguments = parser.parse_args()
  for source in arguments.sources:
    report = measure(source, arguments.pictures, arguments.repeats)
    print(json.dumps(report), flush=True)


if __name__ == '__main__':
  main()
