"""A command that runs once more as a child: its end, and that of its parent."""

import signal
import subprocess
import sys
import time

import pytest
import scripts

from t5x import child_process

# Does as its first argument says where it is the child.
_COMMAND = """
import os, sys, time
from t5x import child_process
if not child_process.is_child():
  print(child_process.run())
  sys.exit()
child_process.end_with_parent()
print('started', flush=True)
exec(sys.argv[1])
"""


def start(then):
  return subprocess.Popen(
      [sys.executable, '-c', _COMMAND, then],
      env=scripts.environment(),
      stdout=subprocess.PIPE,
      text=True,
  )


@pytest.mark.parametrize(
    'then, status',
    [
        ('pass', 0),
        ('sys.exit(7)', 7),
        ('os.kill(os.getpid(), 11)', -signal.SIGSEGV),
    ],
)
def test_the_parent_hears_how_the_child_ended(then, status):
  with start(then) as process:
    stdout, _ = process.communicate(timeout=30)
  _, told = stdout.splitlines()
  assert int(told) == status


def test_the_child_ends_with_its_parent():
  with start('time.sleep(60)') as process:
    assert process.stdout.readline()
    process.kill()
    killed = time.monotonic()
    # Open until both are gone.
    assert process.stdout.read() == ''
  assert time.monotonic() - killed < 30


def test_only_a_crash_is_the_fault_of_native_code():
  def told(number):
    return child_process.describe_signal(number, 'libtpu', 'Take another.')

  assert told(signal.SIGABRT) == (
      'libtpu crashed: signal 6 (Aborted). Take another.'
  )
  assert 'too little memory' in told(signal.SIGKILL)
  assert told(signal.SIGTERM) == 'stopped: signal 15 (Terminated).'
