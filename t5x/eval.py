"""The evaluation script: `python -m t5x.eval --gin_file=… --gin.…`.

Reads the command line, parses gin, and calls `evaluate`, which gin files know
as `eval_script.evaluate` (after `import __main__ as eval_script`).
"""

from t5x import script

__getattr__ = script.lazy_attributes(
    __name__,
    {
        'InferenceEvaluator': 't5x.evaluation',
        'evaluate': 't5x.checkpoint_evaluation',
        # A training run's gin files may be read along: they name its data.
        'train': 't5x.loop',
    },
)


def main() -> None:
  """Evaluates the checkpoints that gin names."""
  script.start('evaluate', 't5x/configs/runs/eval.gin')
  import gin
  from t5x import checkpoint_evaluation

  gin.get_configurable(checkpoint_evaluation.evaluate)()


if __name__ == '__main__':
  script.run(main)
