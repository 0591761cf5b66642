"""The inner story of a run: train, save and evaluate, unit by unit."""

import dataclasses
import gc
import time
from typing import Any

from absl import logging

from t5x import checkpoint_config
from t5x import ledger as ledger_lib
from t5x import multihost
from t5x import periodic_evaluation
from t5x import preemption
from t5x import progress as progress_lib
from t5x import step_plan
from t5x import step_profile
from t5x import step_watch
from t5x import stopping


@dataclasses.dataclass
class UnitLoop:
  """Everything a run needs once it is set up.

  Attributes:
    trainer: holds the train state and runs the steps.
    train_state_axes: partition specs of the state.
    train_iter: gives batches, and knows where it stands.
    plan: when what is due.
    evaluations: what is measured on held-out data.
    progress: tells a person.
    actions: what may end the run early.
    manager: a `save_failures.GuardedManager`, or None.
    save_cfg: how, or None.
    local_tier: saves often, on the machines' own disks, or None.
    ledger: counts where the time goes.
    watch: tells it what the device does meanwhile.
    profile: traces some steps.
  """

  trainer: Any
  train_state_axes: Any
  train_iter: Any
  plan: step_plan.StepPlan
  evaluations: periodic_evaluation.PeriodicEvaluation
  progress: progress_lib.Progress
  actions: stopping.ActionMap | None
  manager: Any | None
  save_cfg: checkpoint_config.SaveCheckpointConfig | None
  ledger: ledger_lib.Ledger
  watch: step_watch.StepWatch
  profile: step_profile.StepProfile
  local_tier: Any | None = None

  def run(self, evaluates_first: bool = False) -> int:
    """Trains to the end of the plan, or until something asks to stop.

    Args:
      evaluates_first: whether to evaluate the state it starts from.

    Returns:
      The last step; the trainer holds its state, and it is saved.

    Raises:
      SaveError: if a checkpoint could not be written.
      PreemptionError: asked to stop; the state is saved.
    """
    step = self.plan.first
    try:
      if evaluates_first:
        self.evaluate(step)
      self.progress.start()
      for unit_end in self.plan.unit_ends():
        step, stop = self._train_unit(step, unit_end)
        if self.plan.is_due(self.plan.gc_period, step):
          gc.collect()
        evaluates = not stop and self.plan.is_due(self.plan.eval_period, step)
        if evaluates:
          self.evaluations.announce(step)
        if stop or self.plan.saves_at(step):
          self.save()
        elif self.plan.saves_locally_at(step):
          self.save_locally()
        if evaluates:
          stop = self.evaluate(step)
          if stop:
            self.save()
        if stop:
          logging.info('Training stops early, at step %d.', step)
          break
    except preemption.PreemptionError as notice:
      raise preemption.PreemptionError(self._stop_early()) from notice
    self._wait_for_saves()
    return step

  def _stop_early(self) -> str:
    """Saves, leaves a due evaluation to the next start, and says so."""
    step = self._finish_steps()
    if self.plan.is_due(self.plan.eval_period, step):
      self.evaluations.announce(step)
    self.save()
    self._wait_for_saves()
    # What an evaluation before this one has decoded is still to be scored.
    with self.ledger.spend('evaluation'):
      self.evaluations.close()
    if self.manager is None:
      return f'Asked to stop after step {step}; this run saves nothing.'
    return (
        f'Asked to stop after step {step}, which is saved: the same command '
        'goes on from there.'
    )

  def save(self) -> None:
    """Starts saving the trainer's state, unless its step is saved."""
    if self.manager is None or self.save_cfg is None:
      return
    step = self._finish_steps()
    curves = self.trainer.train_metrics_manager
    with self.ledger.spend('checkpoint'):
      # A killed run goes on after its last checkpoint: what came before must be
      # on disk.
      curves.flush()
      start = time.time()
      # `save` would wait as well; here it is told apart from its own work.
      with self.ledger.spend('checkpoint_wait'):
        self.manager.wait_until_finished()
      saved = self.manager.save(
          self.trainer.train_state, self.save_cfg.state_transformation_fns
      )
      seconds = time.time() - start
    if saved:
      curves.write_scalar('timing/checkpoint_seconds', seconds, step)

  def save_locally(self) -> None:
    """Starts saving the trainer's state on the machines' own disks."""
    self._finish_steps()
    with self.ledger.spend('checkpoint'):
      self.trainer.train_metrics_manager.flush()  # as for `save`
      self.local_tier.save(self.trainer.train_state)

  def evaluate(self, step: int) -> bool:
    """Evaluates, and tells whether an action asks to stop."""
    self._finish_steps()
    with self.ledger.spend('evaluation'):
      return self.evaluations.run(self.trainer, self.train_state_axes, step)

  def _train_unit(self, step: int, unit_end: int) -> tuple[int, bool]:
    """Trains stretch by stretch; returns the step and whether to stop."""
    for stretch_end in self.plan.stretches(step, unit_end):
      self.profile.start(step)
      summary = self._train_stretch(step, stretch_end - step)
      step = stretch_end
      self.profile.stop(step, summary)
      self.progress.advance(step, summary)
      self.ledger.report(step, self.trainer.train_metrics_manager)
      if self.manager is not None:
        self.manager.check()
      if self.actions and self.actions.get('TRAIN'):
        with self.ledger.spend('step'):
          values = summary.result()
        self.trainer.stop_training |= stopping.run_actions(
            'TRAIN',
            self.actions,
            self.trainer.train_state,
            {stopping.TRAIN_TASK: values},
        )
      if self.trainer.stop_training:
        return step, True
      if step < unit_end and step in self.plan.checkpoint_steps:
        self.save()
      elif step < unit_end and self.plan.saves_locally_at(step):
        self.save_locally()
    return step, False

  def _train_stretch(self, step: int, num_steps: int) -> Any:
    with self.ledger.spend('step'):
      self.watch.begin()
      return self.trainer.train(
          self.watch.batches(self.train_iter), num_steps, start_step=step
      )

  def _finish_steps(self) -> int:
    """Waits for the steps as saves and evaluations do; returns the state's."""
    with self.ledger.spend('step'):
      return int(multihost.get_local_data(self.trainer.train_state.step))

  def _wait_for_saves(self) -> None:
    if self.manager is not None:
      with self.ledger.spend('checkpoint_wait'):
        self.manager.finish()
    if self.local_tier is not None:
      with self.ledger.spend('checkpoint_wait'):
        self.local_tier.wait_until_finished()
