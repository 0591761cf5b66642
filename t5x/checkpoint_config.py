"""What a run saves and what it starts from."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

from t5x import legacy_checkpointer
from t5x import orbax_manager
from t5x import state_utils

_SAVE_DTYPES = (None, 'float32', 'bfloat16')
_RESTORE_DTYPES = (None, 'float32', 'bfloat16', 'float16')
_MODES = ('specific', 'latest', 'all')


@dataclasses.dataclass
class SaveCheckpointConfig:
  """How a run saves.

  Attributes:
    dtype: of saved parameters; None keeps theirs.
    period: steps between saves.
    checkpoint_steps: more steps at which to save.
    keep: how many checkpoints to keep, None for all.
    keep_dataset_checkpoints: how many of them keep the state of the input
      pipeline, None for all.
    save_dataset: whether the state of the input pipeline is saved, so that a
      restarted run sees exactly the batches an unbroken one would.
    checkpointer_cls: saves where `use_orbax` is False; if it keeps the best,
      the other manager takes its settings over.
    state_transformation_fns: `(state, infos) -> (state, infos)`, applied in
      order before writing.
    checkpoint_manager_cls: the manager, or a partial of it.
    local_directory: on each machine's own disk, for the saves of
      `local_period`.
    local_period: steps between saves there, None for none.
    local_keep: how many of them to keep.
    max_failed_saves: how many saves in a row may fail (disk full, no rights)
      before the run ends; the last one of a run may not.
  """

  dtype: str | None = 'float32'
  period: int | None = None
  checkpoint_steps: Sequence[int] | None = None
  keep: int | None = None
  keep_dataset_checkpoints: int | None = None
  save_dataset: bool = False
  checkpointer_cls: Any = legacy_checkpointer.Checkpointer
  state_transformation_fns: Sequence[Callable[..., Any]] = dataclasses.field(
      default_factory=list
  )
  checkpoint_manager_cls: Any = orbax_manager.OrbaxCheckpointManagerInterface
  local_directory: str | None = None
  local_period: int | None = None
  local_keep: int = 1
  max_failed_saves: int = 0

  def __post_init__(self):
    _check_choice('SaveCheckpointConfig.dtype', self.dtype, _SAVE_DTYPES)
    for name in ('period', 'keep', 'local_period', 'max_failed_saves'):
      value = getattr(self, name)
      if value is not None and value < 0:
        raise ValueError(
            f'SaveCheckpointConfig.{name} must not be negative, got {value}.'
        )

    if bool(self.local_period) != bool(self.local_directory):
      raise ValueError(
          'SaveCheckpointConfig.local_period and local_directory come together,'
          f' got {self.local_period} and {self.local_directory!r}.'
      )
    if self.local_directory and '://' in self.local_directory:
      raise ValueError(
          'SaveCheckpointConfig.local_directory must be on the machine itself, '
          f'got {self.local_directory!r}.'
      )
    if self.local_period and not self.is_on:
      raise ValueError(
          'SaveCheckpointConfig.local_period needs durable saves behind it: set '
          'period or checkpoint_steps.'
      )
    if self.local_keep < 1:
      raise ValueError(
          'SaveCheckpointConfig.local_keep must be at least 1, got '
          f'{self.local_keep}.'
      )

  @property
  def is_on(self) -> bool:
    """Whether this config ever saves."""
    return bool(self.period or self.checkpoint_steps)


@dataclasses.dataclass
class RestoreCheckpointConfig:
  """What a run starts from.

  Attributes:
    path: a checkpoint (mode specific) or directory of them, or several.
    mode: 'specific', the 'latest' in the directory, or 'all' in turn.
    assignment_map: (regex of a model's name, name in the checkpoint or None);
      it becomes the first of `state_transformation_fns`.
    strict: whether the optimizer's state must be in the checkpoint; if not,
      what is missing starts fresh.
    fallback_to_scratch: whether anything missing starts fresh; needs a
      transformation function.
    dtype: of restored parameters; None keeps the stored one.
    restore_dataset: whether the input pipeline goes on where it stood.
    checkpointer_cls: restores where `use_orbax` is False.
    state_transformation_fns: `(stored, target, *, is_resuming=False) ->
      stored`, applied in order.
    checkpoint_manager_cls: the manager, or a partial of it.
  """

  path: str | Sequence[str] | None
  mode: str = 'latest'
  assignment_map: Sequence[tuple[str, str | None]] | None = None
  strict: bool = True
  fallback_to_scratch: bool = False
  dtype: str | None = None
  restore_dataset: bool = False
  checkpointer_cls: Any = legacy_checkpointer.Checkpointer
  state_transformation_fns: Sequence[Callable[..., Any]] = ()
  checkpoint_manager_cls: Any = orbax_manager.OrbaxCheckpointManagerInterface

  def __post_init__(self):
    _check_choice('RestoreCheckpointConfig.mode', self.mode, _MODES)
    _check_choice('RestoreCheckpointConfig.dtype', self.dtype, _RESTORE_DTYPES)
    if self.assignment_map is not None:
      # The partial keeps the map's keyword, so that `is_resuming` can be added.
      first = functools.partial(
          state_utils.apply_assignment_map, assignment_map=self.assignment_map
      )
      self.state_transformation_fns = (first, *self.state_transformation_fns)

  @property
  def paths(self) -> list[str]:
    """The paths as a list; empty for None and []."""
    if not self.path:
      return []
    return [self.path] if isinstance(self.path, str) else list(self.path)


@dataclasses.dataclass
class CheckpointConfig:
  """Both sides; None turns a side off."""

  save: SaveCheckpointConfig | None = None
  restore: RestoreCheckpointConfig | None = None


def _check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
  if value not in choices:
    raise ValueError(
        f'`{name}` must be one of {", ".join(map(repr, choices))}, '
        f'got {value!r}.'
    )
