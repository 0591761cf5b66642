"""A guard against steps that would spoil the parameters.

A batch may give a loss or gradients that are not finite, or much larger than
those of the steps before (a spike, as in PaLM, arXiv 2204.02311, Sec. 5.1). The
guard drops the update of such a step: parameters, optimizer and mutable
collections stay as they are, and the step is counted, so that schedules, data
and checkpoints go on by the same numbers. It judges inside the compiled step,
from values of the global batch: every process decides alike.

The host hears of it a few steps later (`GuardLog`) and names the batch.
"""

import collections
from collections.abc import Iterator, Mapping
import dataclasses
from typing import Any

from absl import logging
from clu import metrics as clu_metrics
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from t5x import metrics as metrics_lib
from t5x import stored_state

MetricMap = dict[str, clu_metrics.Metric]

# Where a checkpoint's state holds the memory.
STORED = 'guard_memory'
# Steps that the host may run ahead of what it has looked at. It waits for a
# device only if that is further behind.
_AHEAD = 8
_MAX_IDS = 32


class BadStepError(ValueError):
  """A step that the guard does not let pass; the state is that before it."""


@flax.struct.dataclass
class GuardMemory:
  """What the guard remembers from step to step.

  Attributes:
    history: [2, window] losses and gradient norms of steps that were taken, 0
      where there is none yet.
    num_taken: how many steps were taken.
    num_skipped: how many were not.
    in_a_row: how many of the last steps, without a gap, were not.
  """

  history: Any
  num_taken: Any
  num_skipped: Any
  in_a_row: Any

  @classmethod
  def from_stored(cls, state: Mapping[str, Any]) -> 'GuardMemory | None':
    """Returns the memory of a stored state dict, on the host, or None."""
    stored = state.get(STORED)
    return None if stored is None else cls(**stored_state.get_all(stored))


@dataclasses.dataclass(frozen=True)
class StepGuard:
  """What makes a step bad, and what follows.

  Attributes:
    max_in_a_row: bad steps in a row that are skipped; one more ends the run. 0
      ends it at the first.
    loss_factor: a loss above this multiple of the running median is bad; None
      for any finite one.
    norm_factor: likewise the global norm of the gradients, before clipping.
    window: steps that the running median is taken over.
    min_steps: steps that it needs, before which nothing is a spike.
    id_features: features of a batch that tell its examples, for the log; those
      that a batch lacks are left out.
  """

  max_in_a_row: int = 10
  loss_factor: float | None = None
  norm_factor: float | None = None
  window: int = 128
  min_steps: int = 32
  id_features: tuple[str, ...] = ('example_id', 'image_id')

  def __post_init__(self):
    if self.max_in_a_row < 0:
      raise ValueError(
          f'StepGuard.max_in_a_row must be 0 or more, got {self.max_in_a_row}.'
      )
    if not 1 <= self.min_steps <= self.window:
      raise ValueError(
          'StepGuard needs 1 <= min_steps <= window, got min_steps='
          f'{self.min_steps} and window={self.window}.'
      )
    for field in ('loss_factor', 'norm_factor'):
      factor = getattr(self, field)
      if factor is not None and factor <= 1:
        raise ValueError(
            f'StepGuard.{field} must be above 1 (half of all steps are above'
            f' their median), got {factor}.'
        )

  def memory(self) -> GuardMemory:
    """Returns the memory before the first step."""
    zero = np.zeros((), np.int32)
    empty = np.zeros((2, self.window), np.float32)
    return GuardMemory(empty, zero, zero, zero)

  def resume(self, memory: GuardMemory) -> GuardMemory:
    """Returns a memory to go on with, whatever window it was made with.

    Args:
      memory: on the host, of the run that is resumed.

    Returns:
      The same, with as much of its history as both windows hold.
    """
    old_window = memory.history.shape[1]
    if old_window == self.window:
      return memory
    num_taken = int(memory.num_taken)
    kept = min(num_taken, old_window, self.window)
    newest = np.arange(num_taken - kept, num_taken) % old_window
    history = self.memory().history
    history[:, :kept] = memory.history[:, newest]
    return memory.replace(history=history, num_taken=np.int32(kept))

  def judge(
      self, old: Any, new: Any, grads: Any, metrics: Mapping[str, Any]
  ) -> tuple[Any, MetricMap]:
    """Takes a step, or takes it back.

    Args:
      old: the train state before the step, with `guard_memory`.
      new: after it.
      grads: gradients of the global batch, None at frozen parameters.
      metrics: of the step; `loss` is judged if it is among them.

    Returns:
      (the state to go on with, the metrics with the guard's).
    """
    memory = old.guard_memory
    norm = optax.tree.norm(grads).astype(jnp.float32)
    loss = norm if 'loss' not in metrics else metrics['loss'].compute()
    values = jnp.stack([jnp.asarray(loss, jnp.float32), norm])
    limits = self._limits(memory)
    is_bad = ~jnp.all(jnp.isfinite(values) & (values <= limits))
    memory = self._remember(memory, values, is_bad)
    kept = jax.tree.map(
        # What is frozen is the same array before and after.
        lambda a, b: a if a is b else jnp.where(is_bad, a, b),
        old.replace(guard_memory=None),
        new.replace(guard_memory=None),
    ).replace_step(new.step)
    last = {
        'guard/loss': values[0],
        'guard/gradient_norm': values[1],
        'guard/loss_limit': limits[0],
        'guard/gradient_norm_limit': limits[1],
        'guard/skipped_in_a_row': memory.in_a_row,
        'guard/skipped_total': memory.num_skipped,
    }
    return kept.replace(guard_memory=memory), {
        **metrics,
        'guard/skipped': metrics_lib.Sum(is_bad.astype(jnp.float32)),
        **{
            name: clu_metrics.LastValue.from_model_output(value[None])
            for name, value in last.items()
        },
    }

  def _limits(self, memory: GuardMemory) -> jax.Array:
    """Returns the largest loss and gradient norm that pass: [2]."""
    factors = [
        np.inf if factor is None else factor
        for factor in (self.loss_factor, self.norm_factor)
    ]
    is_filled = jnp.arange(self.window) < memory.num_taken
    medians = jnp.nanmedian(
        jnp.where(is_filled, memory.history, jnp.nan), axis=1
    )
    # A loss that is negative has no multiple that is larger.
    known = (memory.num_taken >= self.min_steps) & (medians > 0)
    return jnp.where(known, medians * jnp.asarray(factors), jnp.inf)

  def _remember(
      self, memory: GuardMemory, values: jax.Array, is_bad: jax.Array
  ) -> GuardMemory:
    place = memory.num_taken % self.window
    history = jnp.asarray(memory.history).at[:, place].set(values)
    bad = is_bad.astype(jnp.int32)
    return GuardMemory(
        history=jnp.where(is_bad, memory.history, history),
        num_taken=memory.num_taken + 1 - bad,
        num_skipped=memory.num_skipped + bad,
        in_a_row=(memory.in_a_row + 1) * bad,
    )


@dataclasses.dataclass(frozen=True)
class _Step:
  """A dispatched step: its metrics on the device, and what names its batch."""

  number: int
  metrics: Mapping[str, Any]
  place: int | None
  ids: Mapping[str, jax.Array]


class GuardLog:
  """Hears what the guard did to each step, in order, and logs it.

  All processes look at the same steps at the same time, so that all of them
  end at the same one.
  """

  def __init__(self, guard: StepGuard, batch_iter: Iterator[Any]):
    """Follows the steps of one interval.

    Args:
      guard: its settings.
      batch_iter: where the batches come from; it may know their places.
    """
    self._guard, self._batch_iter = guard, batch_iter
    self._steps: collections.deque[_Step] = collections.deque()

  def add(
      self, number: int, batch: Mapping[str, Any], metrics: Mapping[str, Any]
  ) -> BadStepError | None:
    """Takes a dispatched step; looks at one that is long done.

    Args:
      number: of the step.
      batch: its batch.
      metrics: what it returns.

    Returns:
      The error that ends the run, or None.
    """
    ids = {k: batch[k] for k in self._guard.id_features if k in batch}
    place = getattr(self._batch_iter, 'last_place', None)
    self._steps.append(_Step(number, metrics, place, ids))
    return self._look() if len(self._steps) > _AHEAD else None

  def finish(self) -> BadStepError | None:
    """Waits for all steps; returns the error that ends the run, or None."""
    error = None
    while self._steps and error is None:
      error = self._look()
    return error

  def _look(self) -> BadStepError | None:
    step = self._steps.popleft()
    if not float(step.metrics['guard/skipped'].total):
      return None
    values = {
        name.removeprefix('guard/'): float(jax.device_get(metric).compute())
        for name, metric in step.metrics.items()
        if name.startswith('guard/')
    }
    text = (
        f'Step {step.number} is skipped: loss {values["loss"]:.6g}'
        f' (at most {values["loss_limit"]:.6g} passes), gradient norm'
        f' {values["gradient_norm"]:.6g} (at most'
        f' {values["gradient_norm_limit"]:.6g}). {self._batch_name(step)}'
        f' Skipped so far: {values["skipped_total"]:.0f},'
        f' {values["skipped_in_a_row"]:.0f} in a row.'
    )
    logging.warning('%s', text)
    if values['skipped_in_a_row'] <= self._guard.max_in_a_row:
      return None
    return BadStepError(
        f'{text} StepGuard.max_in_a_row={self._guard.max_in_a_row} allows no'
        ' more; the checkpoints are as they were. Look at that batch, lower the'
        ' learning rate, or let the guard skip more.'
    )

  def _batch_name(self, step: _Step) -> str:
    """Names a batch by its place in the data and its examples' ids."""
    parts = []
    if step.place is not None:
      parts.append(f'Batch: {self._batch_iter.describe(step.place)}.')
    for name, array in step.ids.items():
      ids = _local_values(array)
      more = f' and {len(ids) - _MAX_IDS} more' if len(ids) > _MAX_IDS else ''
      parts.append(f'{name} here: {ids[:_MAX_IDS].tolist()}{more}.')
    return ' '.join(parts) or 'Its batch has no place and no ids to tell.'


def _local_values(array: Any) -> np.ndarray:
  """Returns this process's part of a batch feature, without copies, flat."""
  if not isinstance(array, jax.Array):
    return np.asarray(array).reshape(-1)
  parts = {str(s.index): np.asarray(s.data) for s in array.addressable_shards}
  return np.concatenate([part.reshape(-1) for part in parts.values()])
