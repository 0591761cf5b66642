"""Looks for the best way to cut a run over a pod, by compiling candidates.

Each way to cut the model is first tried with the least that is computed again;
what does not fit is tried with more, and then with the batch in parts, until it
fits: both only cost time. Of what fits, the lowest roofline is the best.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
from typing import Any

from pixel_llm.mesh_choice import CompileError
from pixel_llm.mesh_choice import MeshChoice

PARTITIONS = (1, 2, 4)
PARAMETER_DIMS = (1, 2)
# Remedies for a step that does not fit, in the order in which they cost.
_REMEDIES = (
    ('minimal', None),
    ('full', None),
    ('full', 2),
    ('full', 4),
    ('full', 8),
)


@dataclasses.dataclass(frozen=True)
class Trial:
  """A choice and what the compiler made of it.

  Attributes:
    choice: the candidate.
    report: of `t5x.precompile`; None if it could not be compiled.
    error: why not.
  """

  choice: MeshChoice
  report: Mapping[str, Any] | None
  error: str = ''

  @property
  def fits(self) -> bool:
    """Whether it is compiled, and fits the memory of a device."""
    return self.report is not None and self.report['steps'][0]['fits']

  @property
  def seconds(self) -> float:
    """The least time of a step; 0 for hardware without figures."""
    roofline = self.report['steps'][0]['roofline'] if self.report else None
    return 0.0 if roofline is None else roofline['least']

  @property
  def memory(self) -> int:
    """Bytes of a device."""
    return self.report['steps'][0]['memory']['total'] if self.report else 0


def sweep(
    compile_choice: Callable[[MeshChoice], Mapping[str, Any]],
    batch_size: int,
    num_devices: int,
    partitions: Sequence[int] = PARTITIONS,
) -> Iterator[Trial]:
  """Yields trials as they are done.

  Args:
    compile_choice: gives the report of a candidate, or raises `CompileError`.
    batch_size: examples of a step.
    num_devices: of the pod.
    partitions: numbers of devices that may share a copy of the model.
  """
  for num_partitions in partitions:
    if num_devices % num_partitions:
      continue
    for parameter_dims in PARAMETER_DIMS:
      for remat_policy, num_microbatches in _REMEDIES:
        part = batch_size // (num_microbatches or 1)
        if part % (num_devices // num_partitions):
          # No device may be without an example.
          continue
        choice = MeshChoice(
            num_partitions=num_partitions,
            parameter_dims=parameter_dims,
            remat_policy=remat_policy,
            num_microbatches=num_microbatches,
        )
        try:
          trial = Trial(choice, compile_choice(choice))
        except CompileError as error:
          # Neither remedy mends what does not divide.
          yield Trial(choice, None, str(error))
          break
        yield trial
        if trial.fits:
          break


def best(trials: Sequence[Trial]) -> Trial | None:
  """Returns the fastest of those that fit, of equal ones the smallest."""
  fitting = [trial for trial in trials if trial.fits]
  return min(fitting, key=lambda t: (t.seconds, t.memory), default=None)
