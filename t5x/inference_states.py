"""Train states without an optimizer, restored one by one, for eval and infer."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
from typing import Any

import jax

from t5x import checkpoint_config
from t5x import initializer as initializer_lib
from t5x import model_info
from t5x import restoring


class InferenceStates:
  """What is needed to restore the checkpoints of one model.

  Attributes:
    axes: partition specs of the states.
    paths: the checkpoints that the config means, in order.
  """

  def __init__(
      self,
      *,
      model: Any,
      input_shapes: Mapping[str, Sequence[int]],
      input_types: Mapping[str, Any] | None,
      partitioner: Any,
      restore_cfg: checkpoint_config.RestoreCheckpointConfig,
      model_info_path: str | None,
      train_state_initializer_cls: Callable[..., Any],
      fallback_init_rng: int | None,
      use_orbax: bool,
  ):
    """Traces the model and finds the checkpoints; reads nothing yet.

    Args:
      model: a `models.BaseModel`.
      input_shapes: global shape of each feature of a batch.
      input_types: dtype of each feature, None for float32.
      partitioner: the mesh and its rules.
      restore_cfg: which checkpoints, and how to read them.
      model_info_path: the file that lists the parameters, or None.
      train_state_initializer_cls: makes train states.
      fallback_init_rng: a seed for parameters that the checkpoints lack, None
        if none may be missing.
      use_orbax: which manager reads; either reads both layouts.

    Raises:
      ValueError: if there is no checkpoint.
    """
    self._initializer = train_state_initializer_cls(
        # No optimizer: its state is neither made nor read.
        optimizer_def=None,
        init_fn=model.get_initial_variables,
        input_shapes=input_shapes,
        input_types=input_types,
        partitioner=partitioner,
    )
    if model_info_path is not None:
      model_info.log_model_info(
          model_info_path,
          self._initializer.global_train_state_shape,
          partitioner,
      )
    self.axes = self._initializer.train_state_axes
    self._partitioner = partitioner
    self._use_orbax = use_orbax
    self._init_rng = (
        None
        if fallback_init_rng is None
        else jax.random.PRNGKey(fallback_init_rng)
    )
    # Strictness is about the optimizer's state, data about the training run.
    restore_cfg = dataclasses.replace(
        restore_cfg,
        strict=True,
        restore_dataset=False,
        # It is the first of the transformation functions already.
        assignment_map=None,
    )
    found, paths = restoring.get_first_valid_restore_config_and_paths(
        [restore_cfg]
    )
    if found is None:
      raise ValueError(
          f'RestoreCheckpointConfig.path {restore_cfg.path!r} (mode '
          f'{restore_cfg.mode!r}) names no checkpoint.'
      )
    self._restore_cfg = restore_cfg
    self.paths = list(paths)

  def restore(self, path: str) -> Any:
    """Returns the state of one of `paths`."""
    state, manager = initializer_lib.create_checkpoint_manager_and_restore(
        self._initializer,
        self._partitioner,
        self._restore_cfg,
        path,
        self._init_rng,
        model_dir=os.path.dirname(os.path.normpath(path)),
        use_orbax=self._use_orbax,
    )
    manager.close()
    return state
