"""Joins the processes of a run, before any of them touches a device.

The processes of a run find each other through `jax.distributed`
(https://docs.jax.dev/en/latest/multi_process.html). Which ones there are is
told by flags, or found: on a Cloud TPU host, in a SLURM step, under Open MPI.
Everything else is one process. JAX is imported where it is used: `--help` names
the limits below, and does without.
"""

from collections.abc import Callable, Mapping
import dataclasses
import glob
import importlib.util
import os
import socket
import threading
from typing import Any

from absl import logging

# What JAX waits as well, unless told otherwise.
INITIALIZATION_TIMEOUT = 300
HEARTBEAT_TIMEOUT = 100

# Where Linux shows a TPU host's chips, by generation.
_TPU_DEVICES = ('/dev/accel[0-9]*', '/dev/vfio/[0-9]*')

# What a scheduler sets in every process that it starts, the count first.
_SCHEDULERS = {
    'slurm': (
        'SLURM_NTASKS',
        'SLURM_JOB_ID',
        'SLURM_STEP_NODELIST',
        'SLURM_PROCID',
        'SLURM_LOCALID',
    ),
    'ompi': ('OMPI_COMM_WORLD_SIZE', 'OMPI_MCA_orte_hnp_uri'),
}

# What JAX says where it knows of no cluster.
_NO_CLUSTER = 'coordinator_address should be defined'


@dataclasses.dataclass(frozen=True)
class Cluster:
  """The processes of a run, as flags or the machine tell of them.

  Attributes:
    rule: how they were found, for the log.
    arguments: of `jax.distributed.initialize`; None if there is one process.
  """

  rule: str
  arguments: Mapping[str, Any] | None


ALONE = Cluster('nothing tells of others', None)

_METHOD = 'cluster_detection_method'


def find(
    coordinator_address: str | None = None,
    process_count: int | None = None,
    process_index: int | None = None,
    *,
    must_find: bool = False,
) -> Cluster:
  """Tells which processes there are, without waiting for any.

  Args:
    coordinator_address: `host:port` of process 0.
    process_count: how many there are. 1 alone keeps this one to itself.
    process_index: which of them this is.
    must_find: whether a run of one process is an error.

  Returns:
    The cluster, `ALONE` if there is none.

  Raises:
    ValueError: if some flags are missing or impossible.
  """
  flags = {
      'coordinator_address': coordinator_address,
      'process_count': process_count,
      'process_index': process_index,
  }
  given = {name: value for name, value in flags.items() if value is not None}
  if given == {'process_count': 1}:
    return Cluster('--process_count=1', None)
  _check_flags(given)
  found = ALONE if len(given) == len(flags) else _find_around()
  missing = [f'--{name}' for name in flags if name not in given]
  if missing and found is ALONE and (given or must_find):
    what = ', '.join(f'--{name}' for name in given) or '--multiprocess_gpu'
    raise ValueError(
        f'{what} says that there are other processes, but not which: also give'
        f' {", ".join(missing)}, or start under srun or mpirun.'
    )
  names = {
      'coordinator_address': 'coordinator_address',
      'process_count': 'num_processes',
      'process_index': 'process_id',
  }
  told = {names[name]: value for name, value in given.items()}
  if not missing:
    return Cluster('flags', {**told, _METHOD: 'deactivate'})
  if found.arguments is None:
    return found
  return dataclasses.replace(found, arguments={**found.arguments, **told})


def _check_flags(given: Mapping[str, Any]) -> None:
  """Refuses addresses without a port, and an index out of range."""
  address = given.get('coordinator_address')
  if address is not None and not address.rpartition(':')[2].isdigit():
    raise ValueError(
        f'--coordinator_address={address} has no port. Give host:port, the same'
        ' on every process, with a port that is free on the host of process 0.'
    )
  count, index = given.get('process_count'), given.get('process_index')
  if count is not None and count < 1:
    raise ValueError(f'--process_count={count} is not positive.')
  if index is not None and (index < 0 or count is not None and index >= count):
    last = '' if count is None else f' to {count - 1}'
    raise ValueError(
        f'--process_index={index} is out of range: processes count from 0{last}.'
    )


def _find_around() -> Cluster:
  """Finds what scheduler, or which accelerator's host, this process is on."""
  for method, (count, *others) in _SCHEDULERS.items():
    is_complete = all(name in os.environ for name in (count, *others))
    if is_complete and int(os.environ[count]) > 1:
      return Cluster(f'{count}={os.environ[count]}', {_METHOD: method})
  if _is_tpu_host():
    return Cluster('Cloud TPU', {})
  return ALONE


def _is_tpu_host() -> bool:
  """Tells whether JAX will run on this machine's own TPU chips."""
  import jax

  platforms = jax.config.jax_platforms
  return (
      (not platforms or 'tpu' in platforms.split(','))
      and importlib.util.find_spec('libtpu') is not None
      and any(glob.glob(pattern) for pattern in _TPU_DEVICES)
  )


def join(
    cluster: Cluster,
    *,
    initialization_timeout: int | None = None,
    heartbeat_timeout: int | None = None,
) -> None:
  """Waits until all processes of a cluster have joined.

  Args:
    cluster: from `find`.
    initialization_timeout: seconds to wait, None for `INITIALIZATION_TIMEOUT`.
    heartbeat_timeout: seconds without a sign of life after which a process
      counts as dead, None for `HEARTBEAT_TIMEOUT`.

  Raises:
    TimeoutError: if they did not.
  """
  import jax

  arguments = cluster.arguments
  if arguments is None:
    return
  seconds = initialization_timeout or INITIALIZATION_TIMEOUT
  logging.info(
      'Joining the other processes (%s), for at most %d s: %s',
      cluster.rule,
      seconds,
      {k: v for k, v in arguments.items() if k != _METHOD},
  )

  def initialize() -> None:
    try:
      jax.distributed.initialize(
          **arguments,
          # JAX's own limit ends the process without a word to the user.
          initialization_timeout=seconds + 60,
          heartbeat_timeout_seconds=heartbeat_timeout or HEARTBEAT_TIMEOUT,
      )
    except ValueError as error:
      if _NO_CLUSTER not in str(error):
        raise
      logging.info('A TPU host without others: one process.')

  if not _within(seconds, initialize):
    raise TimeoutError(_why_late(seconds, arguments))


def _within(seconds: float, call: Callable[[], None]) -> bool:
  """Tells whether a call, in a thread of its own, is done in time."""
  errors: list[BaseException] = []

  def run() -> None:
    try:
      call()
    except BaseException as error:  # raised again, by the caller
      errors.append(error)

  thread = threading.Thread(target=run, name='join', daemon=True)
  thread.start()
  thread.join(seconds)
  if errors:
    raise errors[0]
  return not thread.is_alive()


def _why_late(seconds: float, arguments: Mapping[str, Any]) -> str:
  """Says what a process waited for in vain."""
  address = arguments.get('coordinator_address')
  index, count = arguments.get('process_id'), arguments.get('num_processes')
  text = f'Not all processes had joined after {seconds} s'
  if count is not None:
    text += f' (this is process {index} of {count})'
  if index != 0 and address is not None and not _answers(address):
    return (
        f'{text}: nothing listens at {address}. Start process 0 there, open its'
        ' port to this host, or mend --coordinator_address.'
    )
  return (
      f'{text}. Start every one with the same coordinator and count, each with'
      ' its own index; --initialization_timeout waits longer.'
  )


def _answers(address: str) -> bool:
  host, _, port = address.rpartition(':')
  try:
    with socket.create_connection((host, int(port)), timeout=5):
      return True
  except OSError:
    return False


def check_and_log(cluster: Cluster) -> None:
  """Checks that all joined the same run, and logs what it runs on.

  Raises:
    ValueError: if this process was told another count than process 0.
  """
  import jax

  told = (cluster.arguments or {}).get('num_processes')
  count = jax.process_count()
  if told is not None and told != count:
    raise ValueError(
        f'--process_count={told} here, but process 0 runs with {count}. Give'
        ' every process the same count.'
    )
  logging.info(
      'Process %d of %d (%s): %d of %d devices, %s.',
      jax.process_index(),
      count,
      cluster.rule,
      jax.local_device_count(),
      jax.device_count(),
      jax.devices()[0].device_kind,
  )
