"""The training script: `python -m t5x.train --gin_file=… --gin.MODEL_DIR=…`.

Reads the command line, parses gin, and calls `t5x.loop.train`, which gin files
know as `train_script.train` (after `import __main__ as train_script`).
"""

from absl import flags

from t5x import script

__getattr__ = script.lazy_attributes(__name__, {'train': 't5x.loop'})


def main() -> None:
  """Trains, or describes the run (`--dry_run`)."""
  script.start('train', 't5x/configs/runs/pretrain.gin')
  import gin
  from t5x import loop

  gin.get_configurable(loop.train)(dry_run=flags.FLAGS.dry_run)


if __name__ == '__main__':
  flags.DEFINE_bool(
      'dry_run',
      False,
      'Print configuration, mesh, batch and parameter counts, and end.',
  )
  script.run(main)
