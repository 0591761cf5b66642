"""Weights & Biases, when it is installed and a run asks for it.

    train_script.train.wandb = @wandb_run.WandbConfig()
    wandb_run.WandbConfig.project = 'captions'

or `--wandb_project=captions`. Host 0 sends the scalars of training and both
evaluations, named as in TensorBoard (`train/loss`), and the configuration. The
run's id stays in `<model_dir>/wandb_run_id`, so that a run that goes on is one
run there as well. Without a network it is kept on disk (`wandb sync` sends it).

`wandb` is imported when a run starts, and never otherwise.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import importlib.util
import secrets
import sys
from typing import Any

from absl import logging
from etils import epath

RUN_ID_FILE = 'wandb_run_id'


@dataclasses.dataclass(frozen=True)
class WandbConfig:
  """Where a run goes.

  Attributes:
    project: the project's name.
    entity: user or team, None for the user's default.
    name: the run's name, None for one that Weights & Biases makes up.
    tags: words to find it by.
    mode: 'online', 'offline' or 'disabled'; None leaves it to the environment
      (`WANDB_MODE`).
  """

  project: str
  entity: str | None = None
  name: str | None = None
  tags: Sequence[str] = ()
  mode: str | None = None

  def check_installed(self) -> None:
    """Refuses a run that asks for what is not installed.

    Raises:
      ImportError: if there is no `wandb`.
    """
    # A module that is imported already need not be found again.
    if 'wandb' not in sys.modules and not importlib.util.find_spec('wandb'):
      raise ImportError(
          f'This run asks for Weights & Biases (project {self.project!r}), '
          'which is not installed: pip install wandb, or leave train.wandb and '
          '--wandb_project unset.'
      )


class WandbRun:
  """One run there."""

  def __init__(self, cfg: WandbConfig, model_dir: str):
    """Starts it, or goes on with the one of `model_dir`.

    Args:
      cfg: where it goes.
      model_dir: the run's directory; keeps the id.

    Raises:
      ImportError: if there is no `wandb`.
    """
    cfg.check_installed()
    import wandb  # pyright: ignore[reportMissingImports]

    settings: dict[str, Any] = {
        'project': cfg.project,
        'entity': cfg.entity,
        'name': cfg.name,
        'tags': list(cfg.tags),
        'id': _run_id(model_dir),
        'resume': 'allow',
        'dir': None if '://' in model_dir else model_dir,
    }
    try:
      self._run = wandb.init(**settings, mode=cfg.mode)
    except wandb.errors.CommError as error:
      logging.warning(
          'Weights & Biases does not answer (%s): the run is kept on disk.',
          error,
      )
      self._run = wandb.init(**settings, mode='offline')
    # Evaluations report steps that training has passed already, and so does a
    # run that goes on after a kill: the axis is ours, not the order of arrival.
    self._run.define_metric('step')
    self._run.define_metric('*', step_metric='step')

  def log(self, step: int, scalars: Mapping[str, float]) -> None:
    """Sends scalars by name."""
    self._run.log({'step': int(step), **scalars})

  def log_inference(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Sends the metrics of an inference evaluation, by task and name."""
    scalars = {}
    for task, values in metrics.items():
      for name, value in values.items():
        # SeqIO wraps numbers; what else it has (texts, images) stays local.
        value = getattr(value, 'value', value)
        try:
          scalars[f'inference_eval/{task}/{name}'] = float(value)
        except (TypeError, ValueError):
          continue
    self.log(step, scalars)

  def update_config(self, texts: Mapping[str, str]) -> None:
    """Keeps texts, such as the gin configuration, beside the run."""
    self._run.config.update(dict(texts), allow_val_change=True)

  def add_to(self, name: str, manager: Any) -> None:
    """Makes a metrics manager write here as well.

    Args:
      name: begins the names of its scalars.
      manager: of training or of an evaluation task.
    """
    from t5x import wandb_writer

    manager.add_writer(wandb_writer.WandbWriter(self, name))

  def finish(self) -> None:
    """Waits until everything is sent or on disk."""
    self._run.finish()


def _run_id(model_dir: str) -> str:
  """Returns the id that the directory keeps; makes one the first time."""
  path = epath.Path(model_dir) / RUN_ID_FILE
  if not path.exists():
    path.write_text(secrets.token_hex(4))
  return path.read_text().strip()
