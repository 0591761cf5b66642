"""When a run saves, evaluates and reports: all in whole steps, decided once."""

from collections.abc import Iterator, Sequence
import dataclasses


@dataclasses.dataclass(frozen=True)
class StepPlan:
  """The steps of one run.

  A run is a row of units; a unit ends where something may be due. Periods are
  counted from the first step. A unit is a row of stretches, each reported as
  one point of the training curves.

  Attributes:
    first: the step the run starts or resumes at.
    total: the step it ends at.
    unit: steps of a unit.
    stats_period: steps of a stretch, at most.
    eval_period: steps between evaluations, 0 for none.
    save_period: steps between saves, 0 for none.
    gc_period: steps between garbage collections, 0 for Python's own.
    checkpoint_steps: more steps at which to save.
    local_period: steps between saves on local disks, 0 for none.
    stops: more steps at which a stretch ends.
  """

  first: int
  total: int
  unit: int
  stats_period: int
  eval_period: int
  save_period: int
  gc_period: int
  checkpoint_steps: frozenset[int]
  local_period: int = 0
  stops: frozenset[int] = frozenset()

  @classmethod
  def create(
      cls,
      *,
      first: int,
      total_steps: int,
      relative_steps: int | None = None,
      stats_period: int | None = None,
      eval_period: int = 0,
      save_period: int | None = 0,
      gc_period: int = 0,
      checkpoint_steps: Sequence[int] | None = None,
      local_period: int | None = None,
      stops: Sequence[int] = (),
  ) -> 'StepPlan':
    """Plans a run.

    Args:
      first: the step of the train state.
      total_steps: the step to end at.
      relative_steps: if given, end this many steps after `first` instead.
      stats_period: None takes a whole unit.
      eval_period: 0 without evaluation.
      save_period: None or 0 without saving.
      gc_period: 0 leaves collection to Python.
      checkpoint_steps: more steps at which to save.
      local_period: None or 0 without saving on local disks.
      stops: more steps at which a stretch ends.

    Raises:
      ValueError: if the run would end before it starts, or if the periods are
        not multiples of the smallest.
    """
    total = total_steps if relative_steps is None else first + relative_steps
    if total < first:
      raise ValueError(
          f'The run should end at step {total} but starts at step {first}. '
          'Raise TRAIN_STEPS, set TRAIN_STEPS_RELATIVE (steps after the start) '
          'in its place, or choose another MODEL_DIR.'
      )
    periods = {
        'eval_period': eval_period,
        'checkpoint_cfg.save.period': save_period or 0,
        'gc_period': gc_period,
    }
    used = {name: period for name, period in periods.items() if period}
    unit = min(used.values(), default=max(1, total - first))
    for name, period in used.items():
      if period % unit:
        raise ValueError(
            f'{name} ({period}) must be a multiple of the smallest period '
            f'({unit}): '
            + ', '.join(f'{n} = {p}' for n, p in used.items())
            + '.'
        )
    if stats_period is not None and stats_period <= 0:
      raise ValueError(f'stats_period must be positive, got {stats_period}.')
    return cls(
        first=first,
        total=total,
        unit=unit,
        stats_period=stats_period or unit,
        eval_period=eval_period,
        save_period=save_period or 0,
        gc_period=gc_period,
        checkpoint_steps=frozenset(checkpoint_steps or ()),
        local_period=local_period or 0,
        stops=frozenset(stops),
    )

  def unit_ends(self) -> Iterator[int]:
    """Yields the step at which each unit ends; the last one is `total`."""
    yield from range(self.first + self.unit, self.total, self.unit)
    if self.total > self.first:
      yield self.total

  def stretches(self, start: int, end: int) -> Iterator[int]:
    """Yields the step at which each stretch from `start` to `end` ends."""
    step = start
    all_stops = self.checkpoint_steps | self.stops
    while step < end:
      stops = [s for s in all_stops if step < s < end]
      if self.local_period:
        stops.append(step + self.local_period - self._since_local(step))
      step = min([step + self.stats_period, end, *stops])
      yield step

  def is_due(self, period: int, step: int) -> bool:
    """Tells whether something with this period happens after `step`."""
    if not period:
      return False
    return step == self.total or (step - self.first) % period == 0

  def saves_locally_at(self, step: int) -> bool:
    """Tells whether a save on local disks, and no other, is due at `step`."""
    if not self.local_period or self.saves_at(step):
      return False
    return self._since_local(step) == 0

  def _since_local(self, step: int) -> int:
    return (step - self.first) % self.local_period

  def saves_at(self, step: int) -> bool:
    """Tells whether a checkpoint is due after `step`."""
    if self.is_due(self.save_period, step) or step in self.checkpoint_steps:
      return True
    return bool(self.checkpoint_steps) and step == self.total
