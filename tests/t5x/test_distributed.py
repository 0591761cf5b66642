"""Which processes a run finds, and what it says if they are not there."""

import types

import jax
import processes
import pytest

from t5x import distributed
from t5x import exit_status
from t5x import multihost

NO_SCHEDULER = ('SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE')
SLURM_STEP = {
    'SLURM_NTASKS': '4',
    'SLURM_JOB_ID': '7',
    'SLURM_STEP_NODELIST': 'node[001-002]',
    'SLURM_PROCID': '3',
    'SLURM_LOCALID': '1',
}


@pytest.fixture(autouse=True)
def outside_schedulers(monkeypatch):
  for name in NO_SCHEDULER:
    monkeypatch.delenv(name, raising=False)


@pytest.fixture
def calls(monkeypatch):
  """What `jax.distributed.initialize` is called with."""
  calls = []
  monkeypatch.setattr(
      jax.distributed, 'initialize', lambda **kwargs: calls.append(kwargs)
  )
  return calls


@pytest.mark.parametrize(
    'cluster', [distributed.ALONE, distributed.find(None, 1)]
)
def test_one_process_joins_nobody(cluster, calls):
  distributed.join(cluster)
  assert not calls


def test_three_flags_tell_everything(calls, monkeypatch):
  for name, value in SLURM_STEP.items():
    monkeypatch.setenv(name, value)
  cluster = distributed.find('there:1234', 8, 7)
  distributed.join(cluster, initialization_timeout=5, heartbeat_timeout=9)
  assert calls == [
      dict(
          coordinator_address='there:1234',
          num_processes=8,
          process_id=7,
          cluster_detection_method='deactivate',
          initialization_timeout=65,
          heartbeat_timeout_seconds=9,
      )
  ]


def test_a_slurm_step_of_several_tasks_is_found(monkeypatch):
  for name, value in SLURM_STEP.items():
    monkeypatch.setenv(name, value)
  assert distributed.find() == distributed.Cluster(
      'SLURM_NTASKS=4', {'cluster_detection_method': 'slurm'}
  )
  # Flags fill in what SLURM has not got right.
  told = distributed.find('there:1').arguments
  assert told == {
      'cluster_detection_method': 'slurm',
      'coordinator_address': 'there:1',
  }
  monkeypatch.setenv('SLURM_NTASKS', '1')
  assert distributed.find() is distributed.ALONE
  # A batch script itself is no step.
  monkeypatch.setenv('SLURM_NTASKS', '4')
  monkeypatch.delenv('SLURM_PROCID')
  assert distributed.find() is distributed.ALONE


def test_a_tpu_host_leaves_the_rest_to_jax(monkeypatch, tmp_path, calls):
  (tmp_path / 'accel0').touch()
  patterns = (str(tmp_path / 'accel[0-9]*'),)
  monkeypatch.setattr(distributed, '_TPU_DEVICES', patterns)
  monkeypatch.setattr(distributed.importlib.util, 'find_spec', lambda _: True)
  config = types.SimpleNamespace(jax_platforms=None)
  monkeypatch.setattr(jax, 'config', config)
  cluster = distributed.find()
  assert cluster == distributed.Cluster('Cloud TPU', {})
  distributed.join(cluster)
  assert calls == [
      dict(initialization_timeout=360, heartbeat_timeout_seconds=100)
  ]
  # Its CPU alone, for a test or a conversion.
  config.jax_platforms = 'cpu'
  assert distributed.find() is distributed.ALONE


def test_a_single_tpu_host_without_metadata_is_alone(monkeypatch):
  def initialize(**_):
    raise ValueError('coordinator_address should be defined.')

  monkeypatch.setattr(jax.distributed, 'initialize', initialize)
  distributed.join(distributed.Cluster('Cloud TPU', {}))


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (('there:1', 2, None), '--coordinator_address, --process_count .*also'),
        ((None, None, 1), 'also give --coordinator_address, --process_count'),
        (('there', 2, 0), '=there has no port'),
        (('there:1', 2, 2), '--process_index=2 is out of range.*0 to 1'),
        (('there:1', 2, -1), '--process_index=-1 is out of range'),
        (('there:1', 0, 0), '--process_count=0 is not positive'),
    ],
)
def test_flags_that_do_not_say_which_are_refused(flags, message):
  with pytest.raises(ValueError, match=message):
    distributed.find(*flags)


def test_processes_that_must_be_there_are_asked_for():
  with pytest.raises(
      ValueError, match='--multiprocess_gpu says that there are'
  ):
    distributed.find(must_find=True)


def test_what_goes_wrong_in_joining_is_raised(monkeypatch):
  def initialize(**_):
    raise RuntimeError('only once')

  monkeypatch.setattr(jax.distributed, 'initialize', initialize)
  with pytest.raises(RuntimeError, match='only once'):
    distributed.join(distributed.find('there:1', 2, 0))


def train(*flags):
  return [
      '-m',
      't5x.train',
      '--gin_file=tiny_t5.gin',
      "--gin.MODEL_DIR='unused'",
      '--initialization_timeout=2',
      *flags,
  ]


@pytest.mark.parametrize(
    ('index', 'message'),
    [
        (0, 'this is process 0 of 2). Start every one'),
        (1, 'this is process 1 of 2): nothing listens at 127.0.0.1'),
    ],
)
def test_a_missing_process_is_told_in_time(index, message, tmp_path):
  flags = (processes.FLAGS[0], '--process_count=2', f'--process_index={index}')
  with processes.Pod(1, train(*flags), tmp_path) as pod:
    assert pod.wait(60) == [exit_status.STUCK]
    assert 'error: Not all processes had joined after 2 s' in pod.err(0)
    assert message in pod.err(0)


def test_processes_that_count_differently_are_told(tmp_path):
  script = tmp_path / 'count.py'
  script.write_text("""
import sys
from t5x import distributed
from t5x import exit_status
from t5x import multihost
address, index = sys.argv[1], int(sys.argv[2])
cluster = distributed.find(address, [2, 4][index], index)
distributed.join(cluster, initialization_timeout=30)
distributed.check_and_log(cluster)
""")
  command = [str(script), '{address}', '{index}']
  with processes.Pod(2, command, tmp_path) as pod:
    pod.processes[1].wait(60)
    assert '--process_count=4 here, but process 0 runs with 2' in pod.err(1)


@pytest.mark.parametrize(
    ('error', 'expected'),
    [
        (TimeoutError('late'), True),
        (ValueError('FAILED_PRECONDITION: Gloo all-reduce failed'), True),
        (jax.errors.JaxRuntimeError('UNAVAILABLE: socket closed'), True),
        (jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of HBM'), False),
        (jax.errors.JaxRuntimeError('INVALID_ARGUMENT: a shape'), False),
        (OSError('No space left on device'), False),
    ],
)
def test_what_fails_again_is_not_taken_for_a_lost_process(
    error, expected, monkeypatch
):
  assert not multihost.is_lost_touch(error)
  monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
  assert multihost.is_lost_touch(error) is expected
