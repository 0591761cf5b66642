"""A training run as one story, from a model and data to the last checkpoint.

Read `train` from top to bottom; its inner story, the steps, is `unit_loop`'s.
The numbers of a step are the trainer's, what is due when is `step_plan`'s, and
what is saved `orbax_manager`'s.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import gc
import os
import time
from typing import Any

from absl import logging
from etils import epath
import jax
import seqio

from t5x import batches
from t5x import checkpoint_config
from t5x import checkpoint_dirs
from t5x import checkpoint_managers
from t5x import datasets
from t5x import dry_run as dry_run_lib
from t5x import initializer as initializer_lib
from t5x import ledger as ledger_lib
from t5x import local_tier as local_tier_lib
from t5x import model_info
from t5x import multihost
from t5x import periodic_evaluation
from t5x import preemption
from t5x import progress as progress_lib
from t5x import save_failures
from t5x import start_state
from t5x import step_plan
from t5x import step_profile
from t5x import step_watch
from t5x import stopping
from t5x import throughput
from t5x import unit_loop
from t5x import wandb_run
from t5x import watchdog as watchdog_lib

SummarizeConfigFn = Callable[[str, Any, int], None]


def train(
    *,
    model: Any,
    train_dataset_cfg: datasets.DatasetConfig,
    train_eval_dataset_cfg: datasets.DatasetConfig | None,
    infer_eval_dataset_cfg: datasets.DatasetConfig | None,
    checkpoint_cfg: checkpoint_config.CheckpointConfig,
    partitioner: Any,
    trainer_cls: Callable[..., Any],
    model_dir: str,
    total_steps: int,
    eval_steps: int,
    eval_period: int,
    random_seed: int | None,
    summarize_config_fn: SummarizeConfigFn,
    relative_steps: int | None = None,
    stats_period: int | None = None,
    use_hardware_rng: bool = False,
    inference_evaluator_cls: Callable[..., Any] = seqio.Evaluator,
    get_dataset_fn: Callable[..., Any] = datasets.get_dataset,
    concurrent_metrics: bool = True,
    actions: Mapping[str, Sequence[Any]] | None = None,
    train_eval_get_dataset_fn: Callable[
        ..., Any
    ] = datasets.get_training_eval_datasets,
    run_eval_before_training: bool = False,
    train_state_initializer_cls: Callable[
        ..., Any
    ] = initializer_lib.TrainStateInitializer,
    use_orbax: bool = True,
    verify_matching_vocabs_fn: (
        Callable[..., None] | None
    ) = datasets.verify_matching_vocabs,
    gc_period: int = 0,
    dry_run: bool = False,
    start_time: float | None = None,
    profile_steps: Sequence[int] | None = None,
    wandb: wandb_run.WandbConfig | None = None,
    stuck_limits: watchdog_lib.StuckLimits | None = watchdog_lib.DEFAULT_LIMITS,
) -> tuple[int, Any]:
  """Trains a model, or goes on where a run in `model_dir` stopped.

  Args:
    model: a `models.BaseModel`.
    train_dataset_cfg: what to train on.
    train_eval_dataset_cfg: where to measure the loss, or None.
    infer_eval_dataset_cfg: where to decode and score, or None.
    checkpoint_cfg: what to save, and what to start from.
    partitioner: the mesh and its rules.
    trainer_cls: makes the trainer.
    model_dir: where everything of the run is written.
    total_steps: the step to end at.
    eval_steps: batches of an evaluation of the loss.
    eval_period: steps between evaluations.
    random_seed: of initialization and dropout; None takes the clock's.
    summarize_config_fn: `(model_dir, writer, step)` writes the configuration.
    relative_steps: if given, end this many steps after the start instead.
    stats_period: steps between points of the training curves; None takes the
      smallest of the other periods.
    use_hardware_rng: whether keys use the accelerator's fast generator.
    inference_evaluator_cls: makes the SeqIO evaluator.
    get_dataset_fn: opens the training data.
    concurrent_metrics: whether metrics are computed while training goes on.
    actions: 'TRAIN', 'TRAIN_EVAL' or 'INFER_EVAL' -> actions that may end the
      run.
    train_eval_get_dataset_fn: opens the data of the loss evaluation.
    run_eval_before_training: whether to evaluate first.
    train_state_initializer_cls: makes train states.
    use_orbax: False saves in T5X's legacy layout.
    verify_matching_vocabs_fn: `(cfg, model)`, None to skip the check.
    gc_period: steps between garbage collections, 0 for Python's own rhythm.
    dry_run: whether to describe the run instead: nothing is read, written or
      allocated.
    start_time: Unix time from which the ledger counts, None for now; the script
      gives the start of its process.
    profile_steps: (first, end) of the steps to profile, None for none.
    wandb: Weights & Biases gets the scalars as well, None for not.
    stuck_limits: how long a step, a save … may take before the process ends
      itself, None for ever.

  Returns:
    The last step and the train state (of shapes, in a dry run).

  Raises:
    ValueError: for settings that contradict each other, or a `model_dir` that
      holds another model.
    SaveError: if a checkpoint could not be written.
    PreemptionError: asked to stop by a signal or the platform; the state is
      saved.
  """
  ledger = ledger_lib.Ledger(start_time)
  # ---- Settings that can be refused at once --------------------------------
  model_dir = checkpoint_dirs.absolute(model_dir)
  stopping.check_actions(actions, concurrent_metrics)
  start_state.check_checkpoint_cfg(checkpoint_cfg)
  save_cfg = checkpoint_cfg.save
  if save_cfg is not None and not save_cfg.is_on:
    save_cfg = None
  if wandb is not None:
    wandb.check_installed()
  profiled = step_profile.check(profile_steps) if profile_steps else None

  def plan_from(first_step: int, evaluates: bool) -> step_plan.StepPlan:
    return step_plan.StepPlan.create(
        first=first_step,
        total_steps=total_steps,
        relative_steps=relative_steps,
        stats_period=stats_period,
        eval_period=eval_period if evaluates else 0,
        save_period=save_cfg.period if save_cfg else 0,
        gc_period=gc_period,
        checkpoint_steps=save_cfg.checkpoint_steps if save_cfg else None,
        local_period=save_cfg.local_period if save_cfg else None,
        stops=profiled or (),
    )

  has_eval = bool(train_eval_dataset_cfg or infer_eval_dataset_cfg)
  # A dry run looks at no other run's files.
  looked_at = (
      checkpoint_config.CheckpointConfig() if dry_run else checkpoint_cfg
  )
  plan_from(start_state.get_likely_step(looked_at, model_dir), has_eval)
  if use_hardware_rng or random_seed is None:
    multihost.set_hardware_rng_ops()
  if random_seed is None:
    random_seed = multihost.shared_time_seed()
  init_rng, trainer_rng = jax.random.split(jax.random.PRNGKey(random_seed))
  data_layout = partitioner.get_data_layout(train_dataset_cfg.batch_size)
  if dry_run:
    return dry_run_lib.describe(
        model=model,
        train_dataset_cfg=train_dataset_cfg,
        partitioner=partitioner,
        data_layout=data_layout,
        get_dataset_fn=get_dataset_fn,
        train_state_initializer_cls=train_state_initializer_cls,
        total_steps=total_steps,
    )
  start_time = time.time()
  if jax.process_index() == 0:
    epath.Path(model_dir).mkdir(parents=True, exist_ok=True)
  multihost.sync_global_devices('train:model_dir')

  # ---- Data, and the shapes that follow from them --------------------------
  ledger.enter('data')
  if verify_matching_vocabs_fn is not None:
    verify_matching_vocabs_fn(train_dataset_cfg, model)
  train_iter = batches.prepare_train_iter(
      get_dataset_fn(
          train_dataset_cfg,
          data_layout.shard_id,
          data_layout.num_shards,
          model.FEATURE_CONVERTER_CLS,
      ),
      partitioner=partitioner,
      checkpoint_cfg=checkpoint_cfg,
      data_layout=data_layout,
  )
  spec = train_iter.element_spec
  ledger.enter('init')
  initializer = train_state_initializer_cls(
      optimizer_def=model.optimizer_def,
      init_fn=model.get_initial_variables,
      input_shapes={name: feature.shape for name, feature in spec.items()},
      input_types={name: feature.dtype for name, feature in spec.items()},
      partitioner=partitioner,
  )
  train_state_shape = initializer.global_train_state_shape
  model_info.log_model_info(
      os.path.join(model_dir, 'model-info.txt'), train_state_shape, partitioner
  )
  start_state.check_same_model(train_state_shape, checkpoint_cfg, model_dir)
  ledger.enter('data')
  evaluations = periodic_evaluation.PeriodicEvaluation(
      model=model,
      partitioner=partitioner,
      model_dir=model_dir,
      train_eval_cfg=train_eval_dataset_cfg,
      infer_eval_cfg=infer_eval_dataset_cfg,
      eval_steps=eval_steps,
      train_eval_get_dataset_fn=train_eval_get_dataset_fn,
      inference_evaluator_cls=inference_evaluator_cls,
      verify_matching_vocabs_fn=verify_matching_vocabs_fn,
      actions=actions,
      concurrent_metrics=concurrent_metrics,
  )

  # ---- The train state: resumed, restored, or fresh ------------------------
  ledger.enter('init')
  local_tier = local_tier_lib.get_local_tier(
      save_cfg, train_state_shape, partitioner, train_iter, model_dir
  )
  train_state = start_state.get_start_state(
      initializer, checkpoint_cfg, model_dir, train_iter, init_rng, local_tier
  )
  first_step = int(multihost.get_local_data(train_state.step))
  init_seconds = time.time() - start_time
  plan = plan_from(first_step, evaluations.is_on)
  # A run that was killed between a save and its evaluation makes up for it.
  owes_evaluation = evaluations.is_owed(first_step)
  if plan.total == plan.first and not owes_evaluation:
    logging.info('The run is at step %d already: nothing to do.', plan.total)
    evaluations.close()
    return plan.total, train_state

  with contextlib.ExitStack() as last, contextlib.ExitStack() as closing:
    # ---- What does the work ------------------------------------------------
    closing.enter_context(preemption.heeded())
    ledger.open(model_dir, first_step)
    closing.enter_context(ledger)
    closing.callback(train_iter.close)
    trainer = trainer_cls(
        model=model,
        train_state=train_state,
        partitioner=partitioner,
        train_state_axes=initializer.train_state_axes,
        eval_names=evaluations.names,
        summary_dir=model_dir,
        rng=trainer_rng,
    )
    # The trainer owns (and donates) the state from here on.
    del train_state
    if wandb is not None and jax.process_index() == 0:
      remote = wandb_run.WandbRun(wandb, model_dir)
      closing.callback(remote.finish)
      remote.add_to('train', trainer.train_metrics_manager)
      for name, curves in trainer.eval_metrics_managers.items():
        remote.add_to(f'training_eval/{name}', curves)
      evaluations.on_inference_metrics = remote.log_inference
    closing.callback(trainer.close)
    manager = None
    if save_cfg:
      manager = save_failures.GuardedManager(
          checkpoint_managers.create_checkpoint_manager(
              use_orbax=use_orbax,
              save_cfg=save_cfg,
              train_state=train_state_shape,
              partitioner=partitioner,
              ds_iter=train_iter,
              model_dir=model_dir,
          ),
          model_dir,
          save_cfg.max_failed_saves,
      )
      closing.callback(manager.close)
    if local_tier:
      closing.callback(local_tier.close)
    watch = step_watch.StepWatch(ledger)
    closing.callback(watch.close)
    trainer.on_step = watch.step_started
    profile = step_profile.StepProfile(model_dir, profiled, ledger)
    closing.callback(profile.close)
    progress = progress_lib.Progress(
        plan.first, plan.total, data_layout.batch_size
    )
    closing.callback(progress.close)
    if stuck_limits is not None:
      watchdog = watchdog_lib.Watchdog(
          stuck_limits, ledger, watch, reads=train_iter.waits
      )
      # It watches how the others close.
      last.callback(watchdog.close)
      closing.push(watchdog.closing)
    last.push(_sync_at_the_end)
    closing.callback(ledger.enter, 'closing')
    units = unit_loop.UnitLoop(
        trainer=trainer,
        train_state_axes=initializer.train_state_axes,
        train_iter=train_iter,
        plan=plan,
        evaluations=evaluations,
        progress=progress,
        actions=actions,
        manager=manager,
        save_cfg=save_cfg,
        local_tier=local_tier,
        ledger=ledger,
        watch=watch,
        profile=profile,
    )
    curves = trainer.train_metrics_manager
    curves.write_scalar(
        'timing/init_or_restore_seconds', init_seconds, first_step
    )
    summarize_config_fn(model_dir, curves.summary_writer, first_step)

    # ---- The first batch, and compilation ahead ----------------------------
    units.save()
    if plan.total > plan.first:
      warmup_start = time.time()
      ledger.enter('input')
      with datasets.reading(train_dataset_cfg):
        first_batch = train_iter.peek()
      curves.write_scalar(
          'timing/train_iter_warmup', time.time() - warmup_start, first_step
      )
      ledger.enter('compile')
      trainer.compile_train(first_batch)
      curves.interval_scalars = throughput.of_run(
          trainer, first_batch, partitioner, data_layout.batch_size
      ).scalars
      curves.position_scalars = train_iter.scalars
      del first_batch
    ledger.enter('compile')
    evaluations.compile(trainer)

    # ---- Train -------------------------------------------------------------
    ledger.enter('other')
    if gc_period:
      gc.disable()
      closing.callback(gc.enable)
    last_step = units.run(
        evaluates_first=owes_evaluation
        or (run_eval_before_training and evaluations.is_on)
    )
    with ledger.spend('evaluation'):
      evaluations.close()
    ledger.report(last_step, curves, force=True)
    train_state = trainer.train_state
  logging.info('Finished at step %d.', last_step)
  return last_step, train_state


def _sync_at_the_end(kind: type[BaseException] | None, *_) -> None:
  """Waits, as an `__exit__`, for the other processes, but after an error."""
  if kind is None:
    multihost.sync_global_devices('train:done')
