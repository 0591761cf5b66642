"""Checks that all processes of a pod see all of its devices, before a run does.

  python -m t5x.check_devices --expected=64

on every host, with the flags of `t5x.train` that say which processes there are.
Each must reach all others: they add up their devices.
"""

from absl import flags
import jax
from jax.experimental import multihost_utils
import numpy as np

from t5x import distributed
from t5x import script


def main() -> None:
  """Joins the others, and checks what they see together.

  Raises:
    ValueError: if there are more or fewer devices than expected.
  """
  cluster = script.join_processes()
  distributed.check_and_log(cluster)
  check(flags.FLAGS.expected)
  print(
      f'{jax.device_count()} devices of {jax.devices()[0].device_kind}, seen by'
      f' process {jax.process_index()} of {jax.process_count()}.'
  )


def check(expected: int) -> None:
  """Compares the devices of all processes with how many there should be.

  Args:
    expected: devices of all processes together.

  Raises:
    ValueError: if there are more or fewer.
  """
  found = jax.device_count()
  if found != expected:
    raise ValueError(
        f'{found} devices in {jax.process_count()} processes, expected'
        f' {expected}: process {jax.process_index()} has'
        f' {jax.local_device_count()}. Look for a host that did not start, or'
        ' whose chips another process holds.'
    )
  counts = multihost_utils.process_allgather(
      np.asarray([jax.local_device_count()])
  )
  assert counts.sum() == found, (counts, found)


if __name__ == '__main__':
  flags.DEFINE_integer('expected', None, 'Devices of all hosts together.')
  flags.mark_flag_as_required('expected')
  script.run(main)
