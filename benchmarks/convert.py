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
# About those of the full sets.
REGIONS_A_PICTURE = 50
OBJECTS_A_PICTURE = 3
WORDS_A_NARRATIVE = 40
TURNS_A_ROW = 5
NUM_SHARDS = 64


def make_vg(names: list[str]) -> str:
  regions = [
      {'id': 1000 * picture + number, 'image_id': picture, 'iscrowd': 0}
      | {'bbox': [9 + number, 9, 40, 30], 'caption': f'dog {number} on a mat'}
      for picture in range(len(names))
      for number in range(REGIONS_A_PICTURE)
  ]
  images = [{'id': n, 'file_name': name} for n, name in enumerate(names)]
  return json.dumps({'images': images, 'annotations': regions})


def make_refcoco(names: list[str]) -> str:
  corners = [[20, 20], [90, 25], [120, 80], [100, 200], [30, 210], [12, 90]]
  images, annotations = [], []
  for row in range(len(names) * OBJECTS_A_PICTURE):
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
  categories = [{'id': 1}]
  return json.dumps(
      {'images': images, 'annotations': annotations, 'categories': categories}
  )


def make_ln(names: list[str]) -> str:
  # Points 17 ms apart, words of 420 ms, as people point and speak.
  seconds = 0.42 * WORDS_A_NARRATIVE
  trace = [
      {'x': 0.5, 'y': round(t / seconds, 4), 't': round(t, 3)}
      for t in (0.017 * n for n in range(int(seconds / 0.017)))
  ]
  words = [
      {'utterance': f'w{n}', 'start_time': 0.42 * n, 'end_time': 0.42 * (n + 1)}
      for n in range(WORDS_A_NARRATIVE)
  ]
  lines = [
      {'image_id': str(int(name.removesuffix('.jpg'))), 'annotator_id': 1}
      | {'caption': ' '.join(word['utterance'] for word in words)}
      | {'timed_caption': words, 'traces': [trace]}
      for name in names
  ]
  return '\n'.join(json.dumps(line) for line in lines)


def make_llava(names: list[str]) -> str:
  turns = [
      {'from': who, 'value': f'What is at place {turn}?'}
      for turn in range(TURNS_A_ROW)
      for who in ('human', 'gpt')
  ]
  rows = [{'id': n, 'image': n, 'conversations': turns} for n in names]
  return json.dumps(rows)


def make_coco_captions(names: list[str]) -> str:
  captions = [
      {'id': 10 * picture + number, 'image_id': picture}
      | {'caption': f'A dog lies on mat number {number}.'}
      for picture in range(len(names))
      for number in range(5)
  ]
  images = [{'id': n, 'file_name': name} for n, name in enumerate(names)]
  return json.dumps({'images': images, 'annotations': captions})


SOURCES = {
    'ln': make_ln,
    'vg': make_vg,
    'refcoco': make_refcoco,
    'llava': make_llava,
    'coco_captions': make_coco_captions,
}


def link_pictures(folder: pathlib.Path, pictures: int) -> list[str]:
  """Links the sample's pictures under many names; returns the names."""
  originals = sorted((SAMPLE / 'train2017').glob('*.jpg'))
  names = [f'{number:012d}.jpg' for number in range(pictures)]
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
    (folder / 'annotations.json').write_text(SOURCES[source](names))
    convert(source, folder, 1)  # The files are in memory from here on.
    pairs = [
        (convert(source, folder, 1), convert(source, folder, 2))
        for _ in range(repeats)
    ]
  ratios = [one['seconds'] / two['seconds'] for one, two in pairs]
  report = {'source': source, 'pictures': pictures, 'cores': os.cpu_count()}
  for label, runs in zip(('one', 'two'), zip(*pairs)):
    seconds = statistics.median(run['seconds'] for run in runs)
    cpu = statistics.median(run['cpu_seconds'] for run in runs)
    report[label] = {
        'seconds': round(seconds, 2),
        'cpu_seconds': round(cpu, 2),
        'records_per_cpu_second': round(runs[0]['records'] / cpu, 1),
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
  parser.add_argument(
      '--sources', nargs='+', choices=SOURCES, default=list(SOURCES)
  )
  parser.add_argument('--pictures', type=int, default=2000)
  parser.add_argument('--repeats', type=int, default=3)
  arguments = parser.parse_args()
  for source in arguments.sources:
    report = measure(source, arguments.pictures, arguments.repeats)
    print(json.dumps(report), flush=True)


if __name__ == '__main__':
  main()
