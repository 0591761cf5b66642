"""The training script: `python -m t5x.train --gin_file=… --gin.MODEL_DIR=…`.

Reads the command line, parses gin, and calls `t5x.loop.train`, which gin files
know as `train_script.train` (after `import __main__ as train_script`).
"""

from typing import Any

from absl import flags

from t5x import script

__getattr__ = script.lazy_attributes(__name__, {'train': 't5x.loop'})


def main() -> None:
  """Trains, or describes the run (`--dry_run`)."""
  script.start(
      'train',
      't5x/configs/runs/pretrain.gin',
      unneeded=script.RUN_DIRECTORIES if flags.FLAGS.dry_run else (),
  )
  import gin
  from t5x import ledger
  from t5x import loop
  from t5x import step_profile
  from t5x import wandb_run

  given: dict[str, Any] = {}
  if flags.FLAGS.profile_steps:
    given['profile_steps'] = step_profile.parse(flags.FLAGS.profile_steps)
  if flags.FLAGS.wandb_project:
    given['wandb'] = wandb_run.WandbConfig(flags.FLAGS.wandb_project)
  gin.get_configurable(loop.train)(
      dry_run=flags.FLAGS.dry_run,
      start_time=ledger.process_start(),
      **given,
  )


if __name__ == '__main__':
  flags.DEFINE_bool(
      'dry_run',
      False,
      'Print configuration, mesh, batch and parameter counts, and end.',
  )
  flags.DEFINE_string(
      'profile_steps',
      None,
      'FIRST:END, such as 10:13: profile these steps into MODEL_DIR/profile.',
  )
  flags.DEFINE_string(
      'wandb_project',
      None,
      'A project of Weights & Biases that gets the scalars as well.',
  )
  script.run(main)
