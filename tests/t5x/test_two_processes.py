"""Two real processes that save one sharded state together."""

import json
import pathlib

import jax
import numpy as np
import processes
import pytest
import two_processes

from t5x import checkpoints
from t5x import stored_state

SCRIPT = pathlib.Path(__file__).parent / 'two_processes.py'


def save_alone(directory):
  """Saves the same state in both layouts, in this process."""
  partitioner = two_processes.make_partitioner()
  state = two_processes.make_state(partitioner)
  manager = checkpoints.OrbaxCheckpointManagerInterface(
      str(directory / 'orbax'), state, partitioner
  )
  manager.save(state)
  manager.close()
  checkpoints.Checkpointer(state, partitioner, str(directory / 'legacy')).save(
      state
  )


@pytest.fixture(scope='module')
def both(tmp_path_factory):
  """What both processes report, and where they saved."""
  directory = tmp_path_factory.mktemp('two')
  save_alone(directory / 'one')
  command = [str(SCRIPT), '{address}', '{index}', str(directory)]
  with processes.Pod(2, command, directory / 'logs', devices=2) as pod:
    outputs = pod.check()
  reports = [json.loads(out.splitlines()[-1]) for out in outputs]
  return reports, directory


def test_what_two_processes_wrote_one_reads(both):
  reports, directory = both
  assert [r['devices'] for r in reports] == [4, 4]
  assert [r['legacy'] for r in reports] == [True, True]
  for name in ('run', 'orbax'):
    stored = checkpoints.load_t5x_checkpoint(str(directory / name), step=1)
    for path, leaf in stored_state.flatten(stored).items():
      np.testing.assert_array_equal(
          leaf.astype(float), reports[0]['whole']['/'.join(path)]
      )


def test_what_one_process_wrote_two_read(both):
  reports, _ = both
  for layout in ('orbax', 'legacy'):
    assert [r[f'one {layout}'] for r in reports] == [True, True]


def test_every_data_shard_keeps_its_own_place(both):
  reports, directory = both
  assert [r['legacy data'] for r in reports] == [10, 11]
  assert [r['local data'] for r in reports] == [20, 21]
  names = {p.name for p in (directory / 'run/checkpoint_1').glob('train_ds*')}
  assert names == {'train_ds-000-of-002', 'train_ds-001-of-002'}


def test_a_save_that_fails_on_one_fails_on_both(both):
  (zero, one), _ = both
  assert zero['error'].startswith(
      'RuntimeError: Process 1 failed in writing a checkpoint'
  )
  assert one['error'] == 'OSError: No space left on device'
  assert zero['steps'] == one['steps'] == [0, 1]


def test_local_saves_are_taken_by_both_or_by_none(both):
  reports, _ = both
  assert [r['local'] for r in reports] == [True, True]
  assert [r['lost'] for r in reports] == [True, True]
  # Nobody's data moved, and what does not count any more is gone.
  assert [r['lost data'] for r in reports] == [0, 0]
  assert [r['left'] for r in reports] == [[], []]


def test_a_batch_that_is_bad_on_one_process_is_skipped_by_both(both):
  guarded = [report['guarded'] for report in both[0]]
  assert guarded[0]['params'] == guarded[1]['params']
  assert np.all(np.isfinite(jax.tree.leaves(guarded[0]['params'])))
  assert guarded[0]['step'] == guarded[1]['step']
  for report in guarded:
    assert report['error'].startswith('BadStepError: Step 2 is skipped: loss n')
    assert '2 in a row' in report['error']
    assert report['remembered'] == dict.fromkeys(
        ('orbax', 'legacy', 'local'), True
    )
    # Each names its own rows.
    assert f"y here: {report['ids']}" in report['error']
