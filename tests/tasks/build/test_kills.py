"""A conversion that is killed or met by another one ends with the same bytes."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tasks.build import __main__ as build

REPOSITORY = pathlib.Path(__file__).parents[3]
SAMPLE = REPOSITORY / 'tasks' / 'sample'
NUM_PICTURES = 40
NUM_SHARDS = 20
# Seconds; what is waited for takes a small part of it.
PATIENCE = 60.0


@pytest.fixture(scope='module')
def arguments(tmp_path_factory):
  """The arguments of a conversion of pictures of which every tenth is cut."""
  root = tmp_path_factory.mktemp('kills')
  pictures = sorted((SAMPLE / 'train2017').glob('*.jpg'))
  regions = {'images': [], 'annotations': []}
  for number in range(NUM_PICTURES):
    content = pictures[number % len(pictures)].read_bytes()
    if number % 10 == 0:
      content = content[: len(content) // 2]
    (root / f'{number}.jpg').write_bytes(content)
    name = {'id': number, 'file_name': f'{number}.jpg'}
    regions['images'].append(name)
    region = {'id': number, 'image_id': number, 'caption': f'dog {number}'}
    regions['annotations'].append({**region, 'bbox': [9, 9, 20, 300]})
  file = root / 'train.json'
  file.write_text(json.dumps(regions))
  options = ['--images', str(root), '--shards', str(NUM_SHARDS)]
  return ['vg', '--split', f'train={file}', *options]


@pytest.fixture(scope='module')
def whole(arguments, tmp_path_factory):
  """Name to bytes of every file of a conversion that nobody kills."""
  output = tmp_path_factory.mktemp('whole')
  assert build.main([*arguments, '--output', str(output)]) == 3
  return _files(output / 'train')


def _files(directory):
  return {path.name: path.read_bytes() for path in directory.iterdir()}


def _start(arguments, output, workers):
  command = [sys.executable, '-m', 'tasks.build', *arguments]
  return subprocess.Popen(
      [*command, '--output', str(output), '--workers', str(workers)],
      cwd=REPOSITORY,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      start_new_session=True,
  )


def _wait_until(happened):
  deadline = time.monotonic() + PATIENCE
  while not happened():
    assert time.monotonic() < deadline
    time.sleep(0.001)


def _group_is_gone(process):
  """Whether the processes that a killed one started have ended as well."""
  try:
    os.killpg(process.pid, 0)
  except ProcessLookupError:
    return True
  return False


def _kill_at_random(arguments, output, workers, rng):
  """Starts a conversion and kills it; returns whether it was not done yet."""
  directory = output / 'train'

  def finished():
    return len(list(directory.glob('data-*.json')))

  # From before a shard is written to after the last one is there; the first
  # time, two workers have begun.
  wanted = rng.randint(min(finished() + workers, NUM_SHARDS) - 1, NUM_SHARDS)
  process = _start(arguments, output, workers)
  _wait_until(lambda: finished() >= wanted or process.poll() is not None)
  time.sleep(rng.uniform(0, 0.03))
  process.kill()
  killed = process.wait() == -signal.SIGKILL
  # A worker that went on would write into the next run's folder.
  _wait_until(lambda: _group_is_gone(process))
  return killed


def _convert_with_kills(kills, arguments, whole, tmp_path, rng):
  """Kills so many conversions, and finishes whenever one is nearly done."""
  killed = round_number = 0
  while killed < kills:
    output = tmp_path / str(round_number)
    round_number += 1
    for number in range(min(4, kills - killed)):
      workers = 2 - number % 2
      killed += _kill_at_random(arguments, output, workers, rng)
    assert build.main([*arguments, '--output', str(output)]) == 3
    assert _files(output / 'train') == whole
    shutil.rmtree(output)


def test_four_kills_leave_the_same_bytes(arguments, whole, tmp_path):
  rng = random.Random()  # Another every time.
  _convert_with_kills(4, arguments, whole, tmp_path, rng)


@pytest.mark.slow
def test_twenty_kills_leave_the_same_bytes(arguments, whole, tmp_path):
  rng = random.Random()
  _convert_with_kills(20, arguments, whole, tmp_path, rng)


def test_a_folder_that_a_conversion_writes_to_is_left_to_it(
    arguments, whole, tmp_path, capsys
):
  process = _start(arguments, tmp_path, workers=2)
  _wait_until(lambda: list((tmp_path / 'train').glob('.*.tmp')))
  os.killpg(process.pid, signal.SIGSTOP)
  written = set((tmp_path / 'train').iterdir())
  assert build.main([*arguments, '--output', str(tmp_path)]) == 1
  assert 'another conversion writes there' in capsys.readouterr().err
  assert set((tmp_path / 'train').iterdir()) == written
  os.killpg(process.pid, signal.SIGCONT)
  assert process.wait(PATIENCE) == 3
  assert _files(tmp_path / 'train') == whole
