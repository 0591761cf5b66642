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
  # Every mesh is compiled anew and runs once: the compiler is in a hurry here too.
  flags = f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count=8'
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


def assert_like_one_device(report, num_combinations, tolerance):
  meshes = report['meshes']
  assert abs(report['loss']) > 0.1
  on_eight = {name: m for name, m in meshes.items() if 'cut' in m}
  assert len(on_eight) == num_combinations
  for name, mesh in meshes.items():
    assert abs(mesh['loss']) < tolerance, (name, mesh)
    worst, parameter = mesh['grads']
    assert worst < tolerance, (name, parameter, worst)
  # Where an axis is larger than 1, parameters are cut over it.
  whole = {name for name, mesh in on_eight.items() if not mesh['cut']}
  assert whole == {n for n in on_eight if n.startswith('8x1 ') and 'f' not in n}


def test_t5_on_a_mesh_with_all_axes():
  assert_like_one_device(compare('t5', 'scanned', 'few'), 1, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('form', ['scanned', 'unrolled'])
@pytest.mark.parametrize(
    'model',
    ['t5', 'trace', 'masks', 'densecap'],
)
def test_every_combination_of_axes(model, form):
  # PixelLLM is compared in float64 (`every_mesh`).
  tolerance = 1e-5 if model == 't5' else 1e-9
  assert_like_one_device(compare(model, form, 'all'), 21, tolerance)
