"""States restored elsewhere than they were saved, and reports of what came."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from run_kwargs import run_kwargs
from test_checkpoints import make
from test_checkpoints import restore_cfg
from test_checkpoints import save
from test_checkpoints import state_at
import tiny_task

from t5x import checkpoint_config
from t5x import checkpoint_importer
from t5x import layer_layout
from t5x import loop
from t5x import optimizers
from t5x import restore_report


@pytest.fixture(scope='module')
def other_meshes(tmp_path_factory):
  """What a process with eight virtual CPU devices reports."""
  script = pathlib.Path(__file__).parent / 'other_meshes.py'
  flags = '--xla_force_host_platform_device_count=8'
  result = subprocess.run(
      [
          sys.executable,
          '-W',
          'error',
          str(script),
          str(tmp_path_factory.mktemp('saves')),
      ],
      env={**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
      capture_output=True,
      text=True,
      check=False,
  )
  assert result.returncode == 0, result.stderr
  return json.loads(result.stdout.splitlines()[-1])


def test_every_layout_restores_onto_every_mesh(other_meshes):
  # Parameters over both axes, moments like them, counters whole.
  assert other_meshes['parts']['target/embedder/kernel'] == 8
  assert other_meshes['parts']['state/step'] == 1
  assert other_meshes['differing'] == {
      f'{layout} {mesh}': []
      for mesh in ('4x2', '2x4', '1x1')
      for layout in ('orbax', 'legacy', 'local')
  }


def test_the_next_step_has_the_same_loss_on_every_mesh(other_meshes):
  losses = other_meshes['losses']
  for name, loss in losses.items():
    np.testing.assert_allclose(loss, losses['orbax 4x2'], rtol=1e-5)
    # Of what was read from where, nothing can be seen in the numbers.
    mesh = name.split()[1]
    assert loss == losses[f'orbax {mesh}']


def test_a_dtype_for_restoring_holds_on_every_mesh(other_meshes):
  assert set(map(tuple, other_meshes['dtypes'].values())) == {('bfloat16',)}


def test_the_report_tells_what_came_from_where(tmp_path):
  save(tmp_path, state_at(5))
  cfg = restore_cfg(
      tmp_path,
      assignment_map=[
          (r'target/head/kernel', None),
          (r'state/param_states/0/nu/head/kernel', r'target/head/kernel'),
          (r'state/param_states/0/mu/.*', None),
      ],
      fallback_to_scratch=True,
  )
  initializer = make()
  initializer.from_checkpoint([cfg], init_rng=jax.random.PRNGKey(7))
  report = initializer.restore_report
  fresh = {row.name: row.shape for row in report.fresh}
  assert fresh == {
      'target/head/kernel': (8, 1),
      'state/param_states/0/mu/head/kernel': (8, 1),
      'state/param_states/0/mu/blocks.0/kernel': (7, 8),
  }
  renamed = {row.name: row.source for row in report.restored if row.source}
  assert renamed == {
      'state/param_states/0/nu/head/kernel': 'target/head/kernel'
  }
  assert {row.name for row in report.unused} == {
      'state/param_states/0/mu/head/kernel',
      'state/param_states/0/mu/blocks.0/kernel',
      'state/param_states/0/nu/head/kernel',
  }
  total = len(jax.tree.leaves(initializer.global_train_state_shape))
  assert len(report.restored) == total - 3
  assert '3 arrays (72 numbers) started fresh' in report.summary()


def test_a_run_that_starts_elsewhere_keeps_the_table(tmp_path):
  first, second = tmp_path / 'first', tmp_path / 'second'
  loop.train(**run_kwargs(first))
  assert not (first / 'restored.txt').exists()
  settings = {
      'restore': checkpoint_config.RestoreCheckpointConfig(
          str(first),
          assignment_map=[(r'target/head/kernel', None)],
          strict=False,
          fallback_to_scratch=True,
      ),
      'save': {'period': 2},
      'relative_steps': 2,
      'model': tiny_task.TinyModel(optimizers.sgd(0.01)),
  }
  loop.train(**run_kwargs(second, **settings))
  text = (second / 'restored.txt').read_text()
  lines = [line.split() for line in text.splitlines()]
  assert text.startswith(f'{first}/checkpoint_4: ')
  fresh = lines.index(['Started', 'fresh', '(1):'])
  assert lines[fresh + 1] == ['target/head/kernel', '(8,', '1)']
  unused = lines.index(['In', 'the', 'checkpoint,', 'unused', '(6):'])
  assert ['state/param_states/0/mu/head/kernel', '(8,', '1)'] in lines[unused:]
  # Going on with the run does not overwrite how it began.
  loop.train(**run_kwargs(second, **settings))
  assert (second / 'restored.txt').read_text() == text


def test_too_few_steps_are_refused_before_anything_is_read(tmp_path):
  # Names alone tell: there is nothing to read.
  (tmp_path / 'first/checkpoint_70').mkdir(parents=True)
  restore = checkpoint_config.RestoreCheckpointConfig(str(tmp_path / 'first'))
  with pytest.raises(
      ValueError,
      match='end at step 4 but starts at step 70(.|\n)*TRAIN_STEPS_RELATIVE',
  ):
    loop.train(**run_kwargs(tmp_path / 'second', restore=restore))
  assert not (tmp_path / 'second').exists()


def test_arrays_joined_from_several_name_them_all():
  layers = [
      checkpoint_importer.LazyArray(
          (2,), np.float32, lambda: np.ones(2), [f'target/layers_{i}/scale']
      )
      for i in range(3)
  ]
  stored = {
      'target': {f'layers_{i}': {'scale': x} for i, x in enumerate(layers)}
  }
  joined = {'target': {'layers': {'scale': layer_layout._stack(layers, 0)}}}
  report = restore_report.describe('here', stored, joined, joined)
  assert not report.unused
  (row,) = report.restored
  assert (row.name, row.shape) == ('target/layers/scale', (3, 2))
  assert row.source == (
      'target/layers_0/scale … target/layers_2/scale (3 arrays)'
  )
  split = layer_layout._split(joined['target']['layers']['scale'], 0)
  assert split[1].sources == joined['target']['layers']['scale'].sources
