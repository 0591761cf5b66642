"""How fast a run trains: examples, model FLOPs, and their share of the peak.

Model FLOPs are counted from the traced step (`matmul_flops`): every tower,
frozen or not, LoRA, forward and backward as differentiated, all microbatches.
What rematerialisation computes again is left out. The share of the device's
published peak is the model FLOPs utilisation (MFU).
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from absl import logging
import jax

from t5x import chips
from t5x import matmul_flops


@dataclasses.dataclass(frozen=True)
class Throughput:
  """Turns the seconds of an interval into rates.

  Attributes:
    batch_size: examples of a step, all devices together.
    num_devices: devices of the mesh.
    model_flops: FLOPs of a step on all devices; None if they are not known.
    peak_flops: FLOP/s of one device; None if its peak is not published.
  """

  batch_size: int
  num_devices: int
  model_flops: float | None
  peak_flops: float | None

  def scalars(self, seconds: float, num_steps: int) -> dict[str, float]:
    """Returns scalars by name, see `ledger.SCALARS`.

    Args:
      seconds: how long the interval took.
      num_steps: its steps.
    """
    step_seconds = max(seconds, 1e-9) / num_steps
    values = {
        'timing/step_seconds': step_seconds,
        'timing/examples_per_second': self.batch_size / step_seconds,
    }
    if self.model_flops is not None:
      rate = self.model_flops / step_seconds / self.num_devices
      values['timing/model_flops_per_step'] = self.model_flops
      values['timing/tflops_per_second_per_device'] = rate / 1e12
      if self.peak_flops is not None:
        values['timing/mfu'] = rate / self.peak_flops
    return values


def of_run(
    trainer: Any,
    batch: Mapping[str, Any],
    partitioner: Any,
    batch_size: int,
) -> Throughput:
  """Returns the throughput of a trainer's steps.

  The step was just compiled for the same arguments, so its trace is at hand
  and nothing is traced again.

  Args:
    trainer: has the state, and the step if it is a jitted one.
    batch: a batch of training, or its shapes.
    partitioner: gives the mesh.
    batch_size: examples of a step, all devices together.
  """
  devices = partitioner.mesh.devices.flat
  return Throughput(
      batch_size=batch_size,
      num_devices=len(devices),
      model_flops=_model_flops(trainer, batch),
      peak_flops=chips.peak_flops(devices[0]),
  )


def _model_flops(trainer: Any, batch: Mapping[str, Any]) -> float | None:
  step = getattr(trainer, '_partitioned_train_step', None)
  trace: Callable[..., jax.stages.Traced] | None = getattr(step, 'trace', None)
  if trace is None:
    logging.info(
        'No model FLOPs: the step of %s is no jitted function.',
        type(trainer).__name__,
    )
    return None
  flops = matmul_flops.count_jaxpr(trace(trainer.train_state, batch).jaxpr)
  for line in flops.unknown:
    logging.warning('Model FLOPs are a lower bound: %s.', line)
  return flops.model
