"""`launch/local_pod.sh`: real processes, and what becomes of them."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import shallow_runs

ROOT = shallow_runs.ROOT
T5X_TESTS = ROOT / 'tests/t5x'
LOCAL_POD = ROOT / 'launch/local_pod.sh'

# A module that ends as its file says: process INDEX reads `end-INDEX`.
_ENDS = """
import pathlib, signal, sys, time
index = sys.argv[-1].rpartition('=')[2]
here = pathlib.Path(__file__).parent
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
(here / f'started-{index}').touch()
kind, _, seconds = (here / f'end-{index}').read_text().partition(' ')
time.sleep(float(seconds or 0))
sys.exit(int(kind))
"""


def start(count, *args, cwd, **variables):
  paths = [str(cwd), str(ROOT), os.environ.get('PYTHONPATH', '')]
  environment = {
      **os.environ,
      'PYTHON': sys.executable,
      'PYTHONPATH': os.pathsep.join(paths),
      **variables,
  }
  # Tests that a shell runs in the background hear no Ctrl-C, and what they start
  # would inherit that.
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    return subprocess.Popen(
        [str(LOCAL_POD), str(count), *args],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
  finally:
    signal.signal(signal.SIGINT, before)


def train(count, gin_file, model_dir, *args, **variables):
  """Runs `t5x.train` to its end; returns its status and what it wrote."""
  cwd = variables.pop('cwd', T5X_TESTS)
  process = start(
      count,
      't5x.train',
      f'--gin_file={gin_file}',
      f"--gin.MODEL_DIR='{model_dir}'",
      *args,
      cwd=cwd,
      LOG_DIR=str(model_dir.parent / 'logs'),
      **variables,
  )
  try:
    _, stderr = process.communicate(timeout=1800)
  finally:
    # It passes that on to its processes.
    process.terminate()
  return process.returncode, stderr


def test_two_processes_train_one_run(tmp_path):
  model_dir = tmp_path / 'run'
  partitioner = '--gin.partitioning.PjitPartitioner'
  status, stderr = train(
      2,
      'numbered.gin',
      model_dir,
      '--gin.TRAIN_STEPS=5',
      f'{partitioner}.ici_mesh_shape=(1, 4, 1)',
      f'{partitioner}.dcn_mesh_shape=(1, 1, 1)',
      DEVICES='2',
  )
  assert status == 0, stderr
  assert 'Process 0 of 2 (flags): 2 of 4 devices' in stderr
  assert (model_dir / 'checkpoint_5').is_dir()
  other = (tmp_path / 'logs/process-1.log').read_text()
  assert 'Process 1 of 2 (flags): 2 of 4 devices' in other
  assert 'Finished at step 5.' in other


@pytest.mark.parametrize('expected, status', [(4, 0), (6, 1)])
def test_devices_are_counted_over_all_processes(tmp_path, expected, status):
  process = start(
      2,
      't5x.check_devices',
      f'--expected={expected}',
      cwd=ROOT,
      DEVICES='2',
      LOG_DIR=str(tmp_path),
  )
  stdout, stderr = process.communicate(timeout=120)
  assert process.returncode == status, stderr
  if status == 0:
    assert '4 devices of cpu, seen by process 0 of 2.' in stdout
  else:
    assert '4 devices in 2 processes, expected 6: process 0 has 2.' in stderr


@pytest.mark.slow
def test_four_processes_train_the_tiny_recipe(tmp_path):
  shallow_runs.build_sample(
      tmp_path / 'data', ('refcoco',), ('train2017', 'val2017')
  )
  unscored = [
      f'--gin.train_script.train.{name}_dataset_cfg=None'
      for name in ('infer_eval', 'train_eval')
  ]
  status, stderr = train(
      4,
      'gin/pixel_llm_tiny_refseg.gin',
      tmp_path / 'run',
      '--gin.BATCH_SIZE=4',
      '--gin.WARMUP_STEPS=1',
      '--gin.TRAIN_STEPS=3',
      *unscored,
      cwd=ROOT,
      PIXEL_LLM_DATA_DIR=f'{tmp_path}/data',
  )
  assert status == 0, stderr
  assert 'Process 0 of 4 (flags): 1 of 4 devices' in stderr
  assert (tmp_path / 'run/checkpoint_3').is_dir()
  losses = (tmp_path / 'run/train-metrics.jsonl').read_text()
  assert re.search(r'"loss": [0-9.]+', losses)


def ends(directory, *kinds):
  """Writes how each process ends: a status, and after how many seconds."""
  (directory / 'ends.py').write_text(_ENDS)
  for index, kind in enumerate(kinds):
    (directory / f'end-{index}').write_text(kind)
  return len(kinds)


@pytest.mark.parametrize(
    'kinds, status',
    [
        (('0', '0'), 0),
        # All were asked to stop.
        (('75', '75 0.5'), 75),
        # One fails, and those that miss it end first.
        (('76', '1 0.6', '134 0.3'), 1),
        (('134', '74 0.5'), 74),
        (('137', '0'), 137),
    ],
)
def test_the_status_is_that_of_the_run(tmp_path, kinds, status):
  count = ends(tmp_path, *kinds)
  process = start(count, 'ends', cwd=tmp_path, LOG_DIR=str(tmp_path / 'logs'))
  _, stderr = process.communicate(timeout=30)
  assert process.returncode == status, stderr


def test_the_rest_is_killed_when_one_dies(tmp_path):
  count = ends(tmp_path, '0 600', '76 0.1')
  process = start(
      count, 'ends', cwd=tmp_path, GRACE='1', LOG_DIR=str(tmp_path / 'logs')
  )
  _, stderr = process.communicate(timeout=30)
  assert process.returncode == 76, stderr
  assert 'process 1 ended with status 76' in stderr
  assert 'killing the 1 that are left' in stderr
  assert 'process 0 ended with status 137' in stderr


@pytest.mark.parametrize(
    'number, status', [(signal.SIGTERM, 75), (signal.SIGINT, 130)]
)
def test_a_signal_is_passed_on_to_all(tmp_path, number, status):
  count = ends(tmp_path, '0 600', '0 600')
  process = start(count, 'ends', cwd=tmp_path, LOG_DIR=str(tmp_path / 'logs'))
  deadline = time.monotonic() + 30
  while len(list(tmp_path.glob('started-*'))) < count:
    assert time.monotonic() < deadline
    time.sleep(0.05)
  with process:
    process.send_signal(number)
    try:
      _, stderr = process.communicate(timeout=30)
    finally:
      process.kill()
  assert process.returncode == status, stderr


def test_what_the_script_itself_tells_is_refused(tmp_path):
  process = start(2, 't5x.train', '--process_count=3', cwd=tmp_path)
  _, stderr = process.communicate(timeout=30)
  assert process.returncode == 1
  assert '--process_count=3 is told by this script' in stderr
