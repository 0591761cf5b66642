"""Every mesh of eight devices gives the loss and gradients of one device.

For T5 and PixelLLM: data, FSDP and tensor axes, microbatches, and both forms of
the layers.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parent / 'every_mesh.py'
ROOT = SCRIPT.parents[1]


def compare(model, form, which):
  flags = '--xla_force_host_platform_device_count=8'
  # Every mesh is compiled anew and runs once.
  flags += ' --xla_backend_optimization_level=0'
  flags += ' --xla_llvm_disable_expensive_passes=true'
  result = subprocess.run(
      [sys.executable, str(SCRIPT), model, form, which],
      env={
          **os.environ,
          'XLA_FLAGS': flags,
          'JAX_PLATFORMS': 'cpu',
          # Beside the script lies tests/pixel_llm, which is not meant.
          'PYTHONPATH': str(ROOT),
      },
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
  )
  assert result.returncode == 0, result.stderr
  return json.loads(result.stdout.splitlines()[-1])


def assert_like_one_device(report, num_combinations):
  meshes = report['meshes']
  assert abs(report['loss']) > 0.1
  on_eight = {name: m for name, m in meshes.items() if 'cut' in m}
  assert len(on_eight) == num_combinations
  for name, mesh in meshes.items():
    assert abs(mesh['loss']) < 1e-5, (name, mesh)
    worst, parameter = mesh['grads']
    assert worst < 1e-5, (name, parameter, worst)
  # Where an axis is larger than 1, parameters are cut over it.
  whole = {name for name, mesh in on_eight.items() if not mesh['cut']}
  assert whole == {n for n in on_eight if n.startswith('8x1 ') and 'f' not in n}


def test_t5_on_a_mesh_with_all_axes():
  assert_like_one_device(compare('t5', 'scanned', 'few'), 1)


@pytest.mark.slow
@pytest.mark.parametrize('form', ['scanned', 'unrolled'])
@pytest.mark.parametrize(
    'model',
    ['t5', 'trace', 'masks', 'densecap'],
)
def test_every_combination_of_axes(model, form):
  assert_like_one_device(compare(model, form, 'all'), 21)
