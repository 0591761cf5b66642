"""`launch/tpu_pod.sh` against a stand-in of gcloud that fails as it is told."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
LAUNCH = HERE.parents[1] / 'launch'
SECRET = 'wxyz-0123-the-secret'

JOB = """
name = run
gin_file = gin/a.gin
model_dir = gs://bucket/run
flag = --gin.NOTE="two words, 'quoted'"
env = DATA=gs://bucket/data
secret = SECRET_KEY
max_restarts = 3
topology = v5e:4x4
project = project
zone = zone
"""

INSTALL = ['tpu-vm scp all', 'tpu-vm ssh all install', 'tpu-vm ssh all check']
START = ['tpu-vm ssh all start']
END = ['storage ls', 'tpu-vm describe', 'tpu-vm delete']


class World:
  """A repository, a job and a cloud, all in one directory."""

  def __init__(self, directory):
    self.directory = directory
    self.repo = directory / 'repo'
    self.cloud = directory / 'cloud'
    self.cloud.mkdir()
    binaries = directory / 'bin'
    binaries.mkdir()
    shutil.copytree(LAUNCH, self.repo / 'launch')
    self.git('init', '-q')
    self.git('add', '-A')
    self.git('commit', '-qm', 'all')
    (binaries / 'gcloud').write_text(
        f'#!/bin/sh\nexec {sys.executable} -S {HERE / "fake_gcloud.py"} "$@"\n'
    )
    (binaries / 'gcloud').chmod(0o755)
    shutil.copy(HERE / 'fake_python.sh', binaries / 'python3.11')
    self.job = directory / 'a.job'
    self.environment = {
        **os.environ,
        'PATH': f'{binaries}:{os.environ["PATH"]}',
        'CLOUD': str(self.cloud),
        'POLL': '0.1',
        'LINGER': '0.2',
        'HALF_LOOKS': '4',
        'SSH_TRIES': '3',
        'CREATE_TRIES': '3',
        'WAIT_LOOKS': '9',
        'GRACE': '2',
        'SECRET_KEY': SECRET,
    }
    self.set()

  def git(self, *args):
    subprocess.run(
        ['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *args],
        cwd=self.repo,
        check=True,
    )

  def set(self, *, job='', plan='', **state):
    self.job.write_text(JOB + job)
    (self.cloud / 'plan').write_text(plan)
    (self.cloud / 'cloud.json').write_text(json.dumps({'node': None} | state))

  def run(self, *args):
    return subprocess.run(
        [str(self.repo / 'launch/tpu_pod.sh'), *args, str(self.job)],
        cwd=self.directory,
        env=self.environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

  def calls(self, without=('describe', 'status', 'follow')):
    """What was called, those looks left out that recur."""
    lines = (self.cloud / 'calls').read_text().splitlines()
    return [line for line in lines if not line.endswith(tuple(without))]

  def state(self):
    return json.loads((self.cloud / 'cloud.json').read_text())


@pytest.fixture
def world(tmp_path):
  return World(tmp_path)


def quiet(*calls):
  return [
      call
      for call in calls
      if not call.endswith(('describe', 'status', 'follow'))
  ]


def test_a_run_that_is_done_leaves_nothing_behind(world):
  profile = world.cloud / 'buckets/bucket/run/profile'
  profile.mkdir(parents=True)
  (profile / 'trace').write_text('steps')
  result = world.run('up')
  assert result.returncode == 0, result.stderr
  assert world.calls() == quiet(
      *['tpu-vm create', *INSTALL, *START],
      *['storage ls', 'storage cp', 'tpu-vm delete'],
  )
  assert world.state()['node'] is None
  assert 'step of worker-0' in result.stdout
  assert (world.directory / 'profiles/run/profile/trace').exists()
  creation = next(
      json.loads(line)
      for line in (world.cloud / 'full_calls').read_text().splitlines()
      if '"create"' in line
  )
  assert '--accelerator-type=v5litepod-16' in creation
  assert '--spot' not in creation


def test_no_secret_is_on_a_command_line_or_in_a_log(world):
  result = world.run('--keep', 'up')
  assert result.returncode == 0, result.stderr
  assert SECRET not in result.stdout + result.stderr
  assert SECRET not in (world.cloud / 'full_calls').read_text()
  home = world.cloud / 'worker-3'
  starts = world.cloud / 'starts-worker-3'
  told = home / 'pixel_llm/runs/run/run.sh'
  assert SECRET in told.read_text()
  assert told.stat().st_mode & 0o77 == 0
  assert f'secret has {len(SECRET)} letters' in result.stdout
  # Quotes and blanks of a flag arrive as they were given.
  assert '--gin.NOTE="two words, \'quoted\'"' in starts.read_text()
  assert not list(home.glob('*.tar.gz'))


def test_a_preempted_pod_is_made_anew_and_the_run_goes_on(world):
  world.set(
      job='provisioning = spot\n',
      plan='0@60 0@60 0@60 0@60\n',
      node_states=['READY', 'READY', 'READY', 'PREEMPTED'],
  )
  result = world.run('up')
  assert result.returncode == 0, result.stderr
  one_pod = ['tpu-vm create', *INSTALL, 'tpu-vm ssh all start']
  assert world.calls() == [
      *one_pod,
      'tpu-vm delete',
      *one_pod,
      *quiet(*END),
  ]
  assert 'run is PREEMPTED' in result.stderr
  assert 'restart 1 of 3' in result.stderr


@pytest.mark.slow
def test_a_queued_pod_is_waited_for_and_made_anew_when_suspended(world):
  world.set(
      job='provisioning = queued-spot\n',
      request_states=[
          'WAITING_FOR_RESOURCES',
          'PROVISIONING',
          'SUSPENDING',
          'PROVISIONING',
      ],
      node_states=['CREATING', 'READY', 'READY', 'PREEMPTED'],
      plan='0@60 0@60 0@60 0@60\n',
  )
  result = world.run('up')
  assert result.returncode == 0, result.stderr
  one_pod = ['queued-resources create', *INSTALL, 'tpu-vm ssh all start']
  end = ['storage ls', 'queued-resources delete']
  assert world.calls() == [
      *one_pod,
      'queued-resources delete',
      *one_pod,
      *end,
  ]
  assert 'the request run is PROVISIONING' in result.stderr
  assert world.state()['node'] is None


@pytest.mark.parametrize(
    'status', [74, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 130))]
)
def test_a_status_that_comes_again_ends_the_run(world, status):
  world.set(plan=f'134 134 {status}@0.3 76\n')
  result = world.run('up')
  assert result.returncode == status, result.stderr
  assert world.calls().count('tpu-vm ssh all start') == 1
  # The logs are saved, and nothing costs money any more.
  logs = world.directory / 'logs/run'
  assert 'step of worker-2' in (logs / 'worker-2.log').read_text()
  assert world.state()['node'] is None


@pytest.mark.slow
def test_a_run_that_asks_for_it_is_started_again_on_the_same_pod(world):
  world.set(plan='75 75 75 75\n134 76 137 76@0.3\n')
  result = world.run('up')
  assert result.returncode == 0, result.stderr
  starts = ['tpu-vm ssh all start'] * 3
  assert world.calls() == ['tpu-vm create', *INSTALL, *starts, *quiet(*END)]


@pytest.mark.slow
def test_restarts_have_a_bound(world):
  world.set(plan='75 75 75 75\n' * 9)
  result = world.run('up')
  assert result.returncode == 75
  assert world.calls().count('tpu-vm ssh all start') == 4
  assert '4 restarts are one too many' in result.stderr
  assert world.state()['node'] is None


@pytest.mark.slow
def test_workers_that_stand_still_after_others_ended_are_stopped(world):
  world.set(plan='76 0@60 76 76\n')
  result = world.run('up')
  assert result.returncode == 0, result.stderr
  assert '3 of 4 workers have ended' in result.stderr
  assert world.calls() == [
      *['tpu-vm create', *INSTALL, 'tpu-vm ssh all start'],
      *['tpu-vm ssh all stop', 'tpu-vm ssh all start', *quiet(*END)],
  ]


def test_no_quota_is_said_at_once(world):
  world.set(create_errors=["Quota limit 'TPUV5sPodPerProject' exceeded"])
  result = world.run('up')
  assert result.returncode == 1
  assert 'exceeded' in result.stderr
  assert 'Ask for more quota' in result.stderr
  assert world.calls() == ['tpu-vm create']


@pytest.mark.slow
def test_no_capacity_is_tried_again(world):
  error = 'There is no more capacity in the zone'
  world.set(create_errors=[error, error])
  result = world.run('create')
  assert result.returncode == 0, result.stderr
  assert world.calls() == ['tpu-vm create'] * 3
  world.set(create_errors=[error] * 9)
  result = world.run('create')
  assert result.returncode == 1
  assert 'provisioning = queued-spot' in result.stderr


@pytest.mark.slow
def test_a_worker_that_answers_late_is_waited_for(world):
  world.set(unreachable={'2': 2})
  result = world.run('up')
  assert result.returncode == 0, result.stderr
  assert world.calls() == [
      *['tpu-vm create', 'tpu-vm scp all', 'tpu-vm scp all', *INSTALL],
      *['tpu-vm ssh all start', *quiet(*END)],
  ]


@pytest.mark.slow
def test_a_pod_with_a_dead_worker_is_replaced(world):
  world.set(unreachable={'2': 4})
  result = world.run('up')
  assert result.returncode == 0, result.stderr
  assert 'of 4 workers these do not answer: 2.' in result.stderr
  calls = world.calls()
  assert calls.count('tpu-vm create') == 2
  assert calls.count('tpu-vm delete') == 2
  assert world.state()['node'] is None


@pytest.mark.slow
def test_a_pod_that_was_there_is_not_replaced_unseen(world):
  for command in ('create', 'install'):
    assert world.run(command).returncode == 0
  state = world.state()
  world.set(**state, unreachable={'1': 9})
  result = world.run('up')
  assert result.returncode == 1
  assert 'of 4 workers these do not answer: 1.' in result.stderr
  assert 'not every worker answers' in result.stderr
  assert world.state()['node'] == state['node']


@pytest.mark.slow
def test_too_few_chips_keep_a_run_from_starting(world):
  (world.cloud / 'too_few_chips').touch()
  assert world.run('create').returncode == 0
  assert world.run('install').returncode == 0
  result = world.run('check')
  assert result.returncode == 1
  assert 'all 4 workers answer, but not as they should' in result.stderr


@pytest.mark.slow
def test_every_command_finds_what_is_there(world):
  world.set(plan='0@60 0@60 0@60 0@60\n')
  for command in ('create', 'create', 'install', 'install', 'check'):
    result = world.run(command)
    assert result.returncode == 0, result.stderr
  assert world.calls().count('tpu-vm create') == 1
  # pip ran once on each worker.
  assert len((world.cloud / 'pip').read_text().splitlines()) == 4


@pytest.mark.slow
def test_a_run_that_lives_is_joined_and_not_deleted(world):
  world.set(plan='0@6 0@6 0@6 0@6\n')
  for command in ('create', 'install'):
    assert world.run(command).returncode == 0
  first = subprocess.Popen(
      [str(world.repo / 'launch/tpu_pod.sh'), 'run', str(world.job)],
      cwd=world.directory,
      env=world.environment,
      stderr=subprocess.PIPE,
      text=True,
  )
  pids = [world.cloud / f'worker-{i}/pixel_llm/runs/run/pid' for i in range(4)]
  while not all(pid.exists() for pid in pids):
    assert first.poll() is None
  refused = world.run('delete')
  assert refused.returncode == 1
  assert 'the run is alive' in refused.stderr
  world.git('commit', '-q', '--allow-empty', '-m', 'another')
  other = world.run('run')
  assert other.returncode == 1
  assert 'a run of another commit lives' in other.stderr
  world.git('reset', '-q', '--hard', 'HEAD~1')
  # Its chips are not checked, and it is not installed again.
  second = world.run('--keep', 'up')
  assert second.returncode == 0, second.stderr
  assert world.calls().count('tpu-vm ssh all check') == 0
  first.communicate(timeout=60)
  assert first.returncode == 0
  assert len((world.cloud / 'starts-worker-0').read_text().splitlines()) == 1
  assert world.run('delete').returncode == 0
  assert world.state()['node'] is None


@pytest.mark.parametrize(
    'node, message',
    [
        ({'state': 'STOPPED'}, 'is STOPPED, which is for a person to mend'),
        ({'state': 'REPAIRING'}, 'is REPAIRING'),
        ({'label': 'other'}, 'not a v5litepod-16 that this job made'),
        ({'type': 'v5litepod-64'}, 'not a v5litepod-16 that this job made'),
    ],
)
def test_a_node_that_is_not_as_it_should_be_is_left_alone(world, node, message):
  whole = {'type': 'v5litepod-16', 'label': 'run', 'state': 'READY'} | node
  world.set(node=whole)
  result = world.run('up')
  assert result.returncode == 1
  assert message in result.stderr
  assert world.calls() == []
  assert world.state()['node'] == whole


@pytest.mark.slow
def test_a_run_on_half_of_the_workers_is_refused(world):
  for command in ('create', 'install'):
    assert world.run(command).returncode == 0
  home = world.cloud / 'worker-1'
  script = next(home.glob('pixel_llm/*/launch/worker.sh'))
  (world.cloud / 'plan').write_text('0 0@60 0 0\n')
  environment = {**world.environment, 'HOME': str(home)}
  subprocess.run([script, 'start', 'run'], env=environment, check=True)
  result = world.run('run')
  assert result.returncode == 1
  assert 'the run lives on 1 of 4 workers' in result.stderr
  assert world.run('stop').returncode == 0
  statuses = world.run('status').stdout.split()
  assert sorted(statuses) == ['75', 'none', 'none', 'none']


def test_a_changed_tree_is_refused(world):
  (world.repo / 'launch/worker.sh').write_text('changed')
  result = world.run('up')
  assert result.returncode == 1
  assert 'differs from' in result.stderr
  assert not (world.cloud / 'calls').exists()


def test_a_dry_run_prints_every_call_and_makes_none(world):
  result = world.run('--dry-run', 'up')
  assert result.returncode == 0, result.stderr
  assert not (world.cloud / 'calls').exists()
  printed = re.findall(r'^\+ gcloud (.*)$', result.stderr, re.MULTILINE)
  verbs = [re.sub(r'^compute tpus ', '', line).split()[:2] for line in printed]
  assert [' '.join(verb) for verb in verbs if verb[1] != 'describe'] == [
      *['tpu-vm create', 'tpu-vm scp', 'tpu-vm ssh', 'tpu-vm ssh'],
      *['tpu-vm ssh'] * 3,
      *['storage cp', 'tpu-vm delete'],
  ]
  assert SECRET not in result.stderr
  assert {p.name for p in world.directory.iterdir()} == {
      *('repo', 'cloud', 'bin', 'a.job')
  }


@pytest.mark.parametrize(
    'line, message',
    [
        ('topologie = v5e:4x4', "no key 'topologie'"),
        ('zone = other', 'zone is given twice'),
        ('secret = KEY=value', 'takes the name of a variable'),
        ('provisioning = cheap', 'provisioning = cheap'),
        ('no equals sign', "is not 'key = value'"),
    ],
)
def test_a_job_that_makes_no_sense_is_refused(world, line, message):
  world.set(job=line + '\n')
  result = world.run('up')
  assert result.returncode == 1
  assert message in result.stderr
