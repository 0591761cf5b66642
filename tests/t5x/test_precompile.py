"""Steps compiled for hardware that is not here, by the script."""

import importlib.util
import json

import pytest
import scripts

from t5x import buffer_assignment
from t5x import compiled_step
from t5x import precompile as script
from t5x import precompiling


def precompile(*args, timeout=300, first=()):
  return scripts.run(
      't5x.precompile',
      '--verbosity=-1',
      *args,
      timeout=timeout,
      first=first,
  )


# The task's own evaluation, at the lengths of training.
PREDICT = (
    '--gin.train_script.train.infer_eval_dataset_cfg='
    '@infer_eval/utils.DatasetConfig()',
    '--gin.infer_eval/utils.DatasetConfig.mixture_or_task_name='
    '%MIXTURE_OR_TASK_NAME',
    '--gin.infer_eval/utils.DatasetConfig.task_feature_lengths='
    '%TASK_FEATURE_LENGTHS',
    "--gin.infer_eval/utils.DatasetConfig.split='validation'",
    '--gin.infer_eval/utils.DatasetConfig.batch_size=8',
    '--gin.infer_eval/utils.DatasetConfig.shuffle=False',
    '--gin.infer_eval/utils.DatasetConfig.seed=0',
    '--gin.infer_eval/utils.DatasetConfig.module=%MIXTURE_OR_TASK_MODULE',
)
EIGHT_PARTS = (
    '--topology=cpu:8',
    '--gin.BATCH_SIZE=8',
    '--gin.partitioning.PjitPartitioner.model_parallel_submesh=(1, 1, 1, 1)',
    '--gin.partitioning.PjitPartitioner.num_partitions=None',
)


@pytest.fixture(scope='module')
def both_steps(tmp_path_factory):
  """A tiny T5's steps on eight devices, in a millionth of a GiB."""
  directory = tmp_path_factory.mktemp('precompile')
  result = precompile(
      '--gin_file=tiny_t5.gin',
      *EIGHT_PARTS,
      *PREDICT,
      '--step=both',
      '--memory_limit_gib=1e-6',
      f'--json={directory}/report.json',
      f'--hlo_dir={directory}/hlo',
  )
  assert result.stdout, result.stderr
  return result, directory


def test_both_steps_are_compiled_without_weights_or_data(both_steps):
  result, directory = both_steps
  report = json.loads((directory / 'report.json').read_text())
  assert report['topology'] == 'cpu:8'
  assert report['mesh'] == {'data': 8, 'model': 1}
  train, predict = report['steps']
  assert (train['name'], predict['name']) == ('train', 'predict')
  assert 'train step: 8 examples' in result.stdout
  assert 'predict step: 8 examples' in result.stdout
  for name in 'train', 'predict':
    assert list((directory / 'hlo' / name).glob('*after_optimizations.txt'))


def test_the_compiled_step_does_the_work_of_the_traced_one(both_steps):
  _, directory = both_steps
  train, _ = json.loads((directory / 'report.json').read_text())['steps']
  assert train['flops']['recomputed'] == 0
  # Relative positions have no batch to cut: every device works them out.
  share = train['flops']['model'] / 8
  assert share <= train['costs']['flops'] <= 1.25 * share
  kinds = {row['kind'] for row in train['costs']['collectives']}
  assert 'all-reduce' in kinds
  assert all(row['axes'] == ['data'] for row in train['costs']['collectives'])


def test_a_step_that_does_not_fit_ends_with_1_and_three_names(both_steps):
  result, directory = both_steps
  assert result.returncode == 1
  report = json.loads((directory / 'report.json').read_text())
  for step in report['steps']:
    memory = step['memory']
    assert memory['limit'] == 1073
    assert memory['total'] > memory['limit'] and not step['fits']
    assert len(step['largest']) == 3
    for array in step['largest']:
      assert array['name'] in result.stdout
  assert result.stdout.count('DOES NOT FIT') == 2


def test_a_run_without_inference_has_no_predict_step():
  result = precompile('--gin_file=tiny_t5.gin', *EIGHT_PARTS, '--step=predict')
  assert result.returncode == 1
  assert 'infer_eval_dataset_cfg is None' in result.stderr


def test_the_topology_is_checked_before_anything_is_read():
  result = precompile('--gin_file=nothing.gin', '--topology=gpu:8')
  assert result.returncode == 1
  assert 'only where there is one' in result.stderr


def compiled(memory, refusal=''):
  return compiled_step.CompiledStep(
      'train', 8, 8, 1.0, refusal, memory, (), None, None, None
  )


def test_a_step_fits_if_all_its_memory_does():
  memory = dict(arguments=60, temporaries=50, outputs=40, aliased=40, code=5)
  assert compiled(compiled_step.Memory(**memory, limit=115)).fits
  assert not compiled(compiled_step.Memory(**memory, limit=114)).fits
  assert compiled(compiled_step.Memory(**memory, limit=None)).fits
  within = compiled_step.Memory(**memory, limit=1000)
  assert not compiled(within, 'Ran out of memory').fits


# What JAX asks of libtpu: once when it is imported, then to describe a slice.
_STAND_IN = """
import os
asked = 0
def get_library_path():
  global asked
  asked += 1
  if asked > 1:
    {then}
  return '/nowhere/libtpu.so'
"""


@pytest.fixture
def stand_in(tmp_path):
  """Makes a libtpu that does something when it is asked for a slice."""

  def make(then):
    package = tmp_path / 'libtpu'
    package.mkdir()
    (package / '__init__.py').write_text(_STAND_IN.format(then=then))
    about = tmp_path / 'libtpu-9.9.dist-info'
    about.mkdir()
    (about / 'METADATA').write_text('Name: libtpu\nVersion: 9.9\n')
    return tmp_path

  return make


@pytest.mark.slow
def test_a_compiler_that_crashes_is_told_with_what_it_compiled(stand_in):
  result = precompile(
      '--gin_file=tiny_t5.gin',
      '--gin.BATCH_SIZE=8',
      '--topology=v5e:2x2',
      first=[stand_in('os.kill(os.getpid(), 11)')],
  )
  assert result.returncode == 1
  (told,) = [
      line for line in result.stderr.splitlines() if line.startswith('error: ')
  ]
  assert 'Compiling tiny_t5.gin for v5e:2x2 (BATCH_SIZE = 8)' in told
  assert 'libtpu 9.9 crashed: signal 11 (Segmentation fault)' in told
  assert 'set another num_partitions' in told


@pytest.mark.slow
def test_a_compiler_that_does_not_load_is_told_with_the_mend(stand_in):
  result = precompile(
      '--gin_file=tiny_t5.gin',
      '--topology=v5e:2x2',
      first=[stand_in('pass')],
  )
  assert result.returncode == 1
  assert 'error: libtpu cannot describe' in result.stderr
  assert 'Failed to open /nowhere/libtpu.so' in result.stderr
  assert 'Install it anew: pip install' in result.stderr
  assert 'Traceback' not in result.stderr


# ---- The real compiler ------------------------------------------------------

T5_XL = (
    '--gin_file=t5x/examples/t5/t5_1_1/xl.gin',
    '--gin_file=t5x/configs/runs/pretrain.gin',
    "--gin.MIXTURE_OR_TASK_NAME='tiny_text'",
    "--gin.MIXTURE_OR_TASK_MODULE='tiny_text_task'",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 512, 'targets': 114}",
    '--gin.TRAIN_STEPS=1',
    '--gin.DROPOUT_RATE=0.0',
    '--gin.network.T5Config.scan_layers=True',
)
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None,
    reason="needs libtpu: pip install -c constraints.txt 'jax[tpu]'",
)


@pytest.mark.slow
@needs_libtpu
def test_t5_xl_on_one_copy_a_chip_is_refused_with_its_plan(tmp_path):
  result = precompile(
      *T5_XL, '--topology=v5e:8x8', f'--json={tmp_path}/report.json'
  )
  assert result.returncode == 1
  (step,) = json.loads((tmp_path / 'report.json').read_text())['steps']
  assert 'Ran out of memory' in step['refusal']
  # Ten GiB of float32 parameters and as good as no optimizer state.
  assert 10 < step['memory']['arguments'] / 2**30 < 11
  assert 'decoder/mlp/wi_0/kernel' in step['largest'][0]['name']


@pytest.mark.slow
@needs_libtpu
def test_t5_xl_cut_over_both_axes_fits_a_v5e_pod(tmp_path):
  result = precompile(
      *T5_XL,
      '--topology=v5e:8x8',
      '--gin.partitioning.PjitPartitioner.num_partitions=8',
      '--gin.partitioning.standard_logical_axis_rules.'
      'parameter_partitioning_dims=2',
      "--gin.network.T5Config.remat_policy='full'",
      f'--json={tmp_path}/report.json',
      timeout=1200,
  )
  assert result.returncode == 0, result.stderr
  report = json.loads((tmp_path / 'report.json').read_text())
  (step,) = report['steps']
  assert report['num_hosts'] == 16
  assert step['fits']
  # The real compiler does what was traced, recomputation included.
  assert step['costs']['flops'] == pytest.approx(
      step['flops']['total'] / 64, rel=0.02
  )
  assert step['costs']['unknown_loops'] == []
  assert step['roofline']['bound'] in ('matmul', 'hbm', 'network')


def test_the_plan_of_a_cpu_program_is_read(both_steps):
  _, directory = both_steps
  train, _ = json.loads((directory / 'report.json').read_text())['steps']
  (path,) = (directory / 'hlo' / 'train').glob(
      '*after_optimizations-buffer-assignment.txt'
  )
  totals = buffer_assignment.totals(buffer_assignment.parse(path.read_text()))
  assert totals.arguments == train['memory']['arguments']
  assert totals.temporaries == train['memory']['temporaries']


def test_without_a_topology_some_are_named():
  result = precompile('--gin_file=tiny_t5.gin')
  assert result.returncode == 1
  assert '--topology=v5e:16x16' in result.stderr


def test_the_function_is_where_t5x_has_it():
  assert script.precompile is precompiling.precompile
