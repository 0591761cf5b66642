"""A stand-in for gcloud: records calls, plays a cloud, and fails as it is told.

The directory CLOUD holds `cloud.json`, the state; `calls`, a line a call; and
`worker-I`, the home directory of each worker. Commands for workers are run here
with that home, so `launch/worker.sh` really installs and runs, with the stand-in
of Python beside this file.

Keys of `cloud.json`, all optional lists from which each call takes the first:
`node_states` and `request_states` (what comes of a creation, look by look),
`create_errors`; and `unreachable`, worker -> how many connections to it fail.
"""

import fcntl
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

CLOUD = pathlib.Path(os.environ['CLOUD'])
STATE = CLOUD / 'cloud.json'
NUM_WORKERS = 4


def fail(message):
  sys.exit(f'ERROR: (gcloud) {message}')


class Cloud:
  """What stands in the cloud, read from and written to `cloud.json`."""

  def __init__(self):
    self.state = json.loads(STATE.read_text())

  def save(self):
    STATE.write_text(json.dumps(self.state))

  def take(self, key, default=None):
    """Takes the first of a list; the default once it is empty."""
    values = self.state.get(key, [])
    return values.pop(0) if values else default

  def home(self, worker):
    return CLOUD / f'worker-{worker}'

  def make_node(self, flags):
    self.state['node'] = {
        'type': flags['accelerator-type'],
        'label': flags['labels'].partition('=')[2],
        'state': 'CREATING',
    }
    for worker in range(NUM_WORKERS):
      self.home(worker).mkdir()

  def remove_node(self):
    for worker in range(NUM_WORKERS):
      kill_run(self.home(worker))
      shutil.rmtree(self.home(worker), ignore_errors=True)
    self.state['node'] = None


def kill_run(home):
  """Kills what runs on a worker, as a machine that goes away does."""
  for pid in home.glob('pixel_llm/runs/*/pid'):
    try:
      os.killpg(int(pid.read_text()), signal.SIGKILL)
    except ProcessLookupError:
      pass


def parse(words):
  """Splits words into positional ones and flags."""
  flags, positional = {}, []
  for word in words:
    if word.startswith('--'):
      name, _, value = word[2:].partition('=')
      flags[name] = value
    else:
      positional.append(word)
  return positional, flags


def describe(cloud, kind, flags):
  if kind == 'queued-resources':
    request = cloud.state.get('request')
    if request is None:
      fail('NOT_FOUND: no such queued resource')
    request['state'] = cloud.take('request_states', request['state'])
    if request['state'] in ('PROVISIONING', 'ACTIVE') and not cloud.state.get(
        'node'
    ):
      cloud.make_node(request['flags'])
    if request['state'] in ('SUSPENDED', 'FAILED'):
      cloud.remove_node()
    print(request['state'])
    return
  node = cloud.state.get('node')
  if node is None:
    fail('NOT_FOUND: no such node')
  if 'acceleratorType' in flags['format']:
    print(f'{node["type"]}\t{node["label"]}')
    return
  # A node is made while somebody looks, and may be lost so.
  done = 'READY' if node['state'] == 'CREATING' else node['state']
  node['state'] = cloud.take('node_states', done)
  if node['state'] == 'PREEMPTED':
    for worker in range(NUM_WORKERS):
      kill_run(cloud.home(worker))
  print(node['state'])


def create(cloud, kind, flags):
  error = cloud.take('create_errors')
  if error is not None:
    cloud.save()
    fail(error)
  if kind == 'queued-resources':
    cloud.state['request'] = {'state': 'WAITING_FOR_RESOURCES', 'flags': flags}
  else:
    cloud.make_node(flags)


def delete(cloud, kind):
  if kind == 'queued-resources':
    if cloud.state.pop('request', None) is None:
      fail('NOT_FOUND: no such queued resource')
  elif not cloud.state.get('node'):
    fail('NOT_FOUND: no such node')
  cloud.remove_node()


def reached(cloud, flags):
  """Returns the workers that a call reaches, and those that it does not."""
  if cloud.state['node']['state'] != 'READY':
    fail('the node is not READY')
  worker = flags.get('worker', '0')
  wanted = range(NUM_WORKERS) if worker == 'all' else [int(worker)]
  unreachable = cloud.state.get('unreachable', {})
  lost = [w for w in wanted if unreachable.get(str(w), 0) > 0]
  for worker in lost:
    unreachable[str(worker)] -= 1
  cloud.save()
  return [w for w in wanted if w not in lost], lost


def ssh(cloud, workers, flags):
  processes = [
      subprocess.Popen(
          ['bash', '-c', flags['command']],
          cwd=cloud.home(worker),
          env={**os.environ, 'HOME': str(cloud.home(worker))},
      )
      for worker in workers
  ]
  return max([process.wait() for process in processes], default=255)


def scp(cloud, workers, words):
  *sources, target = words
  for worker in workers:
    home = cloud.home(worker)
    if ':' in target:
      for source in sources:
        shutil.copy(source, home / target.partition(':')[2])
    else:
      shutil.copy(home / sources[0].partition(':')[2], target)


def storage(words, flags):
  """Buckets are directories below CLOUD/buckets."""
  source = CLOUD / 'buckets' / words[1].removeprefix('gs://')
  if not source.exists():
    fail('One or more URLs matched no objects.')
  if words[0] == 'cp':
    shutil.copytree(source, pathlib.Path(words[2]) / source.name)
  return 0


def record(words):
  """Adds a line to `calls`: what the call does, in short."""
  positional, flags = parse(words)
  short = [word for word in positional if word in KNOWN]
  if 'worker' in flags:
    short.append(flags['worker'])
  script = flags.get('command', '').partition('worker.sh ')[2].split()
  if flags.get('command', '').startswith('cat '):
    script = ['status']
  with (CLOUD / 'calls').open('a') as file:
    file.write(' '.join([*short, *script[:1]]) + '\n')
  with (CLOUD / 'full_calls').open('a') as file:
    file.write(json.dumps(words) + '\n')


KNOWN = (
    *('tpu-vm', 'queued-resources', 'storage'),
    *('describe', 'create', 'delete', 'ssh', 'scp', 'ls', 'cp'),
)


def main(words):
  record(words)
  # Two launchers may look at once. What takes long lets go of it.
  lock = (CLOUD / 'lock').open('w')
  fcntl.flock(lock, fcntl.LOCK_EX)
  positional, flags = parse(words)
  if positional[0] == 'storage':
    return storage(positional[1:], flags)
  _, _, kind, verb, *rest = positional
  cloud = Cloud()
  status = 0
  if verb in ('ssh', 'scp'):
    workers, lost = reached(cloud, flags)
    fcntl.flock(lock, fcntl.LOCK_UN)
    done = ssh(cloud, workers, flags) if verb == 'ssh' else 0
    if verb == 'scp':
      scp(cloud, workers, rest)
    if lost:
      fail(f'ssh: connect to worker {lost[0]}: Connection timed out')
    return done
  if verb == 'describe':
    describe(cloud, kind, flags)
  elif verb == 'create':
    create(cloud, kind, flags)
  elif verb == 'delete':
    delete(cloud, kind)
  else:
    fail(f'the stand-in knows no {verb}')
  cloud.save()
  return status


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
