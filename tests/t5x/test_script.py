"""What scripts tell before anything slow is imported."""

import pytest
import scripts

MODULES = ['t5x.train', 't5x.eval', 't5x.infer', 't5x.precompile']


def run_traced(module, *args):
  """Runs a script, which must import nothing slow; JAX if it reads gin files."""
  result = scripts.run(module, *args, options=('-X', 'importtime'))
  imported = {
      line.rsplit('|', 1)[1].strip()
      for line in result.stderr.splitlines()
      if line.startswith('import time:')
  }
  assert 't5x.script' in imported
  assert ('jax' in imported) == (args != ('--help',))
  assert not imported & {'tensorflow', 'seqio', 'orbax'}
  return result


@pytest.mark.parametrize('module', MODULES)
def test_help_shows_the_flags_without_jax(module):
  result = run_traced(module, '--help')
  for flag in (
      'gin_file',
      'gin_bindings',
      'gin_search_paths',
      'tfds_data_dir',
      'seqio_additional_cache_dirs',
      'multiprocess_gpu',
      'coordinator_address',
      'process_count',
      'process_index',
      'initialization_timeout',
  ):
    assert f'--{flag}:' in result.stdout.replace('[no]', '')


RUNS = '--gin_file=t5x/configs/runs/'


@pytest.mark.parametrize(
    ('module', 'args', 'message'),
    [
        (
            't5x.train',
            ['--gin_file=nowhere.gin'],
            "Gin file 'nowhere.gin' not found",
        ),
        ('t5x.train', [f'{RUNS}pretrain.gin'], 'TRAIN_STEPS must be set'),
        ('t5x.eval', [f'{RUNS}eval.gin', '--gin.A=(1'], "binding 'A = (1'"),
        (
            't5x.infer',
            [f'{RUNS}infer.gin', '--gin.CHECKPOIN_PATH=1'],
            'Nearest that are read: CHECKPOINT_PATH',
        ),
        (
            't5x.precompile',
            ['--topology=cpu:8'],
            'Start from --gin_file=t5x/configs/runs/',
        ),
    ],
)
def test_errors_in_gin_files_are_told_without_tensorflow(module, args, message):
  result = run_traced(module, *args)
  assert result.returncode == 1
  assert message in result.stderr
  assert 'Traceback' not in result.stderr


def test_gin_files_of_another_script_are_told_whose_they_are():
  result = run_traced('t5x.eval', '--gin_file=tiny_t5.gin')
  assert result.returncode == 1
  assert 'They are for python -m t5x.train.' in result.stderr
