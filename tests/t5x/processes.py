"""A pod on one machine: real processes, CPU devices, gloo between them."""

import os
import signal
import socket
import subprocess
import sys
import time

import scripts


def free_port():
  """A port that nobody listens at, just now."""
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


class Pod:
  """Processes of one run; leaving the context kills what is left of them.

  Each runs `python *command`, in which `{address}`, `{count}` and `{index}`
  stand for what differs, and writes `out-INDEX` and `err-INDEX`.
  """

  def __init__(self, count, command, directory, *, devices=1, env=None):
    """Starts them, each with so many CPU devices."""
    self.directory = directory
    directory.mkdir(parents=True, exist_ok=True)
    told = {'address': f'127.0.0.1:{free_port()}', 'count': count}
    flags = os.environ.get('XLA_FLAGS', '')
    environment = {
        **scripts.environment(),
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': (
            f'{flags} --xla_force_host_platform_device_count={devices}'
        ),
        **(env or {}),
    }
    self.processes = []
    for index in range(count):
      with self._file('out', index, 'w') as out:
        with self._file('err', index, 'w') as err:
          self.processes.append(
              subprocess.Popen(
                  [
                      sys.executable,
                      *(part.format(**told, index=index) for part in command),
                  ],
                  cwd=scripts.HERE,
                  env=environment,
                  stdout=out,
                  stderr=err,
              )
          )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for process in self.processes:
      process.kill()
      process.wait()

  def _file(self, kind, index, mode='r'):
    return (self.directory / f'{kind}-{index}').open(mode)

  def out(self, index):
    """What a process has printed."""
    with self._file('out', index) as file:
      return file.read()

  def err(self, index):
    """What a process has logged."""
    with self._file('err', index) as file:
      return file.read()

  def kill(self, index, number=signal.SIGKILL):
    """Sends a signal, also to a process that has ended."""
    self.processes[index].send_signal(number)

  def wait(self, timeout=240):
    """Returns the exit statuses; shows the logs if that takes too long."""
    end = time.monotonic() + timeout
    try:
      return [p.wait(max(0.1, end - time.monotonic())) for p in self.processes]
    except subprocess.TimeoutExpired:
      raise AssertionError(
          f'Not done in {timeout} s.\n{self.tails()}'
      ) from None

  def check(self, timeout=240):
    """Waits, and expects that all went well; returns what they printed."""
    statuses = self.wait(timeout)
    assert not any(statuses), f'{statuses}\n{self.tails()}'
    return [self.out(index) for index in range(len(self.processes))]

  def tails(self):
    """The ends of all logs."""
    return '\n'.join(
        f'--- process {index}\n{self.err(index)[-3000:]}'
        for index in range(len(self.processes))
    )


# What a script of t5x is told of the others.
FLAGS = (
    '--coordinator_address={address}',
    '--process_count={count}',
    '--process_index={index}',
)
