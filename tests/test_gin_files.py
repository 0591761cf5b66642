"""Every gin file of a run parses, and builds its model abstractly."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
RUNS = sorted(path.name for path in (ROOT / 'gin').glob('*.gin'))


def dry_run(name, *args):
  return subprocess.run(
      [
          sys.executable,
          '-m',
          't5x.train',
          f'--gin_file=gin/{name}',
          '--dry_run',
          *args,
      ],
      cwd=ROOT,
      capture_output=True,
      text=True,
      timeout=300,
      check=False,
  )


def parameter_table(text):
  """Trainable and frozen parameters by tower."""
  rows = re.findall(r'^(\w+) +([\d,]+) +([\d,]+) +[\d,.]+$', text, re.M)
  return {
      name: tuple(int(number.replace(',', '')) for number in numbers)
      for name, *numbers in rows
  }


def test_gin_folder_has_no_module_that_would_hide_the_gin_library():
  assert not (ROOT / 'gin/__init__.py').exists()
  assert RUNS


# tests/gin builds the others, and those of full size, in one process.
@pytest.mark.parametrize(
    'name', ['pixel_llm_tiny_trace.gin', 'pixel_llm_tiny_refseg.gin']
)
def test_a_tiny_run_builds(name):
  result = dry_run(name)
  assert result.returncode == 0, result.stderr
  table = parameter_table(result.stdout)
  assert table['sam_backbone'][0] == 0 < table['sam_backbone'][1]
  assert table['textual'][0] > 0 == table['textual'][1]


@pytest.mark.parametrize(
    'binding, message',
    [
        ("--gin.FROZEN=('sam_backbon/',)", 'sam_backbone'),
        ('--gin.BATCH_SIEZ=3', 'BATCH_SIZE'),
        ("--gin.MIXTURE_OR_TASK_NAME='refcoco_sampel_refseg'", 'sample_refseg'),
    ],
)
def test_a_misspelt_name_is_told_with_the_nearest_known(binding, message):
  result = dry_run('pixel_llm_tiny_refseg.gin', binding)
  assert result.returncode != 0
  assert message in result.stderr
  assert 'Traceback' not in result.stderr


def test_the_detector_joins_any_model():
  result = dry_run(
      'pixel_llm_tiny_refseg.gin', '--gin_file=gin/models/detector.gin'
  )
  assert result.returncode == 0, result.stderr
  table = parameter_table(result.stdout)
  # The RoI stage reads crops of 7x7 cells of 256 channels.
  assert table['box_decoder'][0] > 7 * 7 * 256 * 1024
  assert table['box_decoder'][1] == 0
