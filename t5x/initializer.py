"""A sharded train state, from scratch or from checkpoints."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import os
from typing import Any

from absl import logging
import jax

from t5x import checkpoint_config
from t5x import checkpoint_managers
from t5x import restore_report
from t5x import restoring
from t5x import stored_state
from t5x import train_state as train_state_lib


class TrainStateInitializer:
  """Makes train states of one model, all with the same shapes and sharding.

  Attributes:
    global_train_state_shape: a train state of `jax.ShapeDtypeStruct`s.
    train_state_axes: a train state of partition specs (or None).
    restore_report: what the last state restored is made of, None before that.
  """

  def __init__(
      self,
      optimizer_def: Any | None,
      init_fn: Callable[..., Any],
      input_shapes: Mapping[str, Sequence[int]],
      partitioner: Any,
      input_types: Mapping[str, Any] | None = None,
  ):
    """Traces the model once, without any array.

    Args:
      optimizer_def: None makes an `InferenceState`.
      init_fn: `(rng, input_shapes, input_types) -> variables`.
      input_shapes: global shape of each feature of a batch.
      partitioner: gives mesh axes, and partitions the init function.
      input_types: dtype of each feature; absent ones are float32.
    """

    def initialize_train_state(rng: jax.Array) -> Any:
      variables = init_fn(
          rng=rng, input_shapes=input_shapes, input_types=input_types
      )
      if optimizer_def:
        return train_state_lib.FlaxOptimTrainState.create(
            optimizer_def, variables
        )
      return train_state_lib.InferenceState.create(variables)

    self.restore_report: restore_report.RestoreReport | None = None
    self._partitioner = partitioner
    self._initialize_train_state = initialize_train_state
    self.global_train_state_shape = jax.eval_shape(
        initialize_train_state, jax.random.PRNGKey(0)
    )
    self.train_state_axes = partitioner.get_mesh_axes(
        self.global_train_state_shape
    )
    # A scanned stack needs its parameters' axes at the scan itself.
    model = getattr(init_fn, '__self__', None)
    module = getattr(model, 'module', None)
    if (
        model is not None
        and module is not None
        and getattr(module, 'scan_layers', False)
        and hasattr(module, 'spmd_annotations')
    ):
      model.module = module.clone(
          parent=None, spmd_annotations=self.train_state_axes.params
      )

  def from_scratch(self, init_rng: jax.Array) -> Any:
    """Initializes everything, each device its own shards."""
    logging.info('Initializing parameters from scratch.')
    return self._partitioner.partition(
        self._initialize_train_state,
        in_axis_resources=None,
        out_axis_resources=self.train_state_axes,
    )(init_rng)

  def get_fallback(
      self,
      restore_cfg: checkpoint_config.RestoreCheckpointConfig,
      init_rng: jax.Array | None,
  ) -> Callable[[Sequence[stored_state.Path]], Any] | None:
    """Returns a function that makes some fresh leaves, None if none may be.

    Only what is asked for is computed: a large model is never held twice.

    Args:
      restore_cfg: tells what may start fresh.
      init_rng: as for `from_scratch`, which would give the same values.
    """
    if not restoring.may_start_fresh(restore_cfg, init_rng):
      return None
    axes = stored_state.flatten(self.train_state_axes.state_dict())

    def fresh(paths: Sequence[stored_state.Path]) -> dict[Any, jax.Array]:
      if not restore_cfg.fallback_to_scratch:
        paths = [path for path in paths if path[0] != 'target']

      def initialize(rng: jax.Array) -> list[jax.Array]:
        state = self._initialize_train_state(rng).state_dict()
        leaves = stored_state.flatten(state)
        return [leaves[path] for path in paths]

      values = self._partitioner.partition(
          initialize,
          in_axis_resources=None,
          out_axis_resources=[axes.get(path) for path in paths],
      )(init_rng)
      return dict(zip(paths, values))

    return fresh

  def from_checkpoints(
      self,
      restore_cfgs: Sequence[checkpoint_config.RestoreCheckpointConfig],
      ds_iter: Any = None,
      init_rng: jax.Array | None = None,
  ) -> Iterator[tuple[Any, str]]:
    """Yields the states of the first config that has checkpoints.

    Args:
      restore_cfgs: configs in order of preference.
      ds_iter: a dataset iterator, moved if a config restores it.
      init_rng: for what may start fresh.

    Yields:
      Each train state and the path it came from.
    """
    cfg, paths = restoring.get_first_valid_restore_config_and_paths(
        restore_cfgs
    )
    for path in paths:
      manager = checkpoint_managers.create_orbax_checkpoint_manager(
          restore_cfg=cfg,
          train_state=self.global_train_state_shape,
          partitioner=self._partitioner,
          ds_iter=ds_iter,
          model_dir=os.path.dirname(path.rstrip('/')),
      )
      fallback = self.get_fallback(cfg, init_rng)
      state = restoring.restore(manager, path, cfg, fallback)
      self.restore_report = getattr(manager, 'restore_report', None)
      try:
        yield state, path
      finally:
        manager.close()

  def from_checkpoint(
      self,
      restore_cfgs: Sequence[checkpoint_config.RestoreCheckpointConfig],
      *,
      ds_iter: Any = None,
      init_rng: jax.Array | None = None,
  ) -> Any | None:
    """Returns the state of the one checkpoint there is, None without any.

    Raises:
      ValueError: if there are two or more.
    """
    _, paths = restoring.get_first_valid_restore_config_and_paths(restore_cfgs)
    if len(paths) > 1:
      raise ValueError(
          f'Expected one checkpoint, found {len(paths)}: {", ".join(paths)}.'
      )
    states = self.from_checkpoints(
        restore_cfgs, ds_iter=ds_iter, init_rng=init_rng
    )
    return next((state for state, _ in states), None)

  def from_checkpoint_or_scratch(
      self,
      restore_cfgs: Sequence[checkpoint_config.RestoreCheckpointConfig],
      *,
      init_rng: jax.Array,
      ds_iter: Any = None,
  ) -> Any:
    """Returns the state of the checkpoint, or a fresh one without any."""
    state = self.from_checkpoint(
        restore_cfgs, ds_iter=ds_iter, init_rng=init_rng
    )
    return self.from_scratch(init_rng) if state is None else state


def create_checkpoint_manager_and_restore(
    train_state_initializer: TrainStateInitializer,
    partitioner: Any,
    restore_checkpoint_cfg: checkpoint_config.RestoreCheckpointConfig | None,
    restore_path: str | None,
    fallback_init_rng: jax.Array | None,
    save_checkpoint_cfg: checkpoint_config.SaveCheckpointConfig | None = None,
    model_dir: str | None = None,
    ds_iter: Any = None,
    use_orbax: bool = True,
) -> tuple[Any | None, Any]:
  """Creates the manager of a run and restores through it.

  Args:
    train_state_initializer: knows the train state's shapes.
    partitioner: gives mesh and mesh axes.
    restore_checkpoint_cfg: what to restore, or None.
    restore_path: the checkpoint to restore, or None.
    fallback_init_rng: for what may start fresh.
    save_checkpoint_cfg: how the run saves, or None.
    model_dir: the run's directory.
    ds_iter: the dataset iterator.
    use_orbax: False saves in T5X's legacy layout; either reads both.

  Returns:
    The train state (None without a path) and the manager.
  """
  manager = checkpoint_managers.create_checkpoint_manager(
      use_orbax=use_orbax,
      save_cfg=save_checkpoint_cfg,
      restore_cfg=restore_checkpoint_cfg,
      train_state=train_state_initializer.global_train_state_shape,
      partitioner=partitioner,
      ds_iter=ds_iter,
      model_dir=model_dir,
  )
  if not restore_path:
    return None, manager
  fallback = train_state_initializer.get_fallback(
      restore_checkpoint_cfg, fallback_init_rng
  )
  state = restoring.restore(
      manager, restore_path, restore_checkpoint_cfg, fallback
  )
  return state, manager
