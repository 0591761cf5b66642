"""What a run costs on a pod: hours, input, checkpoints. Arithmetic only.

A step is priced by the roofline of its compiled program (`t5x.precompile`): it
cannot be faster than `at_least`, and takes `at_most` if nothing overlaps. What
is neither counted nor bounded is said by `ASSUMPTIONS`.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax
import numpy as np

from pixel_llm.pretrained import target_model

# What gin files of a run call the things that its cost depends on.
_GIN_FACTS = """
from __gin__ import dynamic_registration
from pixel_llm import run_costs

run_costs.run_facts:
  model = %MODEL
  task_feature_lengths = %TASK_FEATURE_LENGTHS
  batch_size = %BATCH_SIZE
  train_steps = %TRAIN_STEPS
  save_period = %SAVE_PERIOD
"""

ASSUMPTIONS = (
    'Steps run one after the other at the roofline of the compiled step; elementwise'
    ' work, latency, starts and restarts come on top.',
    'Evaluation is left out: its time goes with its tasks, not with the steps.',
    'Saves are written while training goes on; what they keep it waiting is left'
    ' out.',
    'All chips are charged for as long as the steps take.',
)


@dataclasses.dataclass(frozen=True)
class RunFacts:
  """What a run's gin files say of its cost.

  Attributes:
    train_steps: from its first to its last.
    batch_size: examples of a step.
    save_period: steps between checkpoints.
    example_bytes: of the features of an example, as the devices get them.
    checkpoint_bytes: of a whole train state.
  """

  train_steps: int
  batch_size: int
  save_period: int
  example_bytes: int
  checkpoint_bytes: int


@dataclasses.dataclass(frozen=True)
class Rates:
  """What a pod is assumed to be fed and emptied with.

  Attributes:
    image_bytes: of a picture as it is stored: a JPEG of COCO.
    storage_bytes_per_second: of a host, to where checkpoints lie.
  """

  image_bytes: float = 165e3
  storage_bytes_per_second: float = 0.5e9


@dataclasses.dataclass(frozen=True)
class RunCosts:
  """What a run costs; times in seconds, from the roofline to no overlap.

  Attributes:
    step_seconds: of a step, least and most.
    hours: of all steps, least and most.
    chip_hours: the same, of all chips.
    images_per_second: that a host has to read and decode, at the roofline.
    read_bytes_per_second: of stored pictures, by a host.
    feed_bytes_per_second: that a host hands to its chips.
    host_checkpoint_bytes: a host's part of a checkpoint.
    save_seconds: that writing it takes.
    save_period_seconds: between two saves, at the roofline.
  """

  step_seconds: tuple[float, float]
  hours: tuple[float, float]
  chip_hours: tuple[float, float]
  images_per_second: float
  read_bytes_per_second: float
  feed_bytes_per_second: float
  host_checkpoint_bytes: float
  save_seconds: float
  save_period_seconds: float


def run_facts(
    model: Any,
    task_feature_lengths: Mapping[str, Any],
    batch_size: int,
    train_steps: int,
    save_period: int,
) -> RunFacts:
  """Measures a run, abstractly: no array is made.

  Args:
    model: a `t5x.models.BaseModel`.
    task_feature_lengths: length or shape of each task feature.
    batch_size: examples of a batch.
    train_steps: from the first to the last.
    save_period: steps between checkpoints.

  Raises:
    ValueError: if the lengths do not tell the shape of every feature.
  """
  spec = target_model.batch_spec(model, task_feature_lengths, batch_size)
  state = target_model.state_shapes(model, spec)
  return RunFacts(
      train_steps=train_steps,
      batch_size=batch_size,
      save_period=save_period,
      example_bytes=_num_bytes(spec) // batch_size,
      checkpoint_bytes=_num_bytes(state.state_dict()),
  )


def _num_bytes(tree: Any) -> int:
  return sum(
      int(np.prod(x.shape, dtype=np.int64)) * np.dtype(x.dtype).itemsize
      for x in jax.tree.leaves(tree)
  )


def facts_of_gin(
    gin_files: Sequence[str], gin_bindings: Sequence[str] = ()
) -> RunFacts:
  """Reads a run's gin files, and measures it; the gin config is empty then.

  Args:
    gin_files: paths of gin files.
    gin_bindings: gin statements, applied after the files.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if gin cannot read the files, or they build no model.
  """
  return target_model.call_with_gin(
      run_facts, _GIN_FACTS, gin_files, gin_bindings
  )


def price(
    facts: RunFacts, report: Mapping[str, Any], rates: Rates = Rates()
) -> RunCosts:
  """Prices a run by the report of its train step.

  Args:
    facts: of the run.
    report: of `t5x.precompile`, as JSON; its first step is the train step.
    rates: what is assumed of storage.

  Raises:
    ValueError: if the report is of another batch, or of hardware without
      figures.
  """
  step = report['steps'][0]
  if step['batch_size'] != facts.batch_size:
    raise ValueError(
        f'The report is of {step["batch_size"]} examples a step, the run has'
        f' {facts.batch_size}. Compile it again.'
    )
  roofline = step['roofline']
  if roofline is None:
    raise ValueError(
        f'{report["topology"]} has no published figures, so that its steps have'
        ' no price. Take a TPU topology, such as v5e:8x8.'
    )
  step_seconds = roofline['least'], roofline['without_overlap']
  hours = tuple(facts.train_steps * s / 3600 for s in step_seconds)
  images = facts.batch_size / report['num_hosts'] / step_seconds[0]
  written = facts.checkpoint_bytes / report['num_hosts']
  return RunCosts(
      step_seconds=step_seconds,
      hours=hours,
      chip_hours=tuple(h * report['num_devices'] for h in hours),
      images_per_second=images,
      read_bytes_per_second=images * rates.image_bytes,
      feed_bytes_per_second=images * facts.example_bytes,
      host_checkpoint_bytes=written,
      save_seconds=written / rates.storage_bytes_per_second,
      save_period_seconds=facts.save_period * step_seconds[0],
  )
