"""Scalars to Weights & Biases, as a CLU writer.

Imports CLU's writers, and with them TensorFlow: see `scalar_writer`.
"""

from collections.abc import Mapping
from typing import Any

from t5x import scalar_writer
from t5x import wandb_run


class WandbWriter(scalar_writer.ScalarWriter):
  """Sends the scalars of one kind (training, or one evaluation task)."""

  def __init__(self, run: wandb_run.WandbRun, name: str):
    """Makes a writer.

    Args:
      run: where they go.
      name: begins their names, such as `training_eval/mytask`.
    """
    self._run, self._name = run, name

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Sends scalars of one step."""
    named = {f'{self._name}/{k}': float(v) for k, v in scalars.items()}
    self._run.log(step, named)

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    """Keeps texts in the run's configuration: they do not change by step."""
    self._run.update_config(texts)
