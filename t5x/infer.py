"""The inference script: `python -m t5x.infer --gin_file=… --gin.…`.

Reads the command line, parses gin, and calls `infer`, which gin files know as
`infer_script.infer` (after `import __main__ as infer_script`).
"""

from absl import flags

from t5x import script

__getattr__ = script.lazy_attributes(
    __name__,
    {
        'create_task_from_tfexample_file': 't5x.tfexample_task',
        'infer': 't5x.chunked_inference',
        'merge_chunks_to_file': 't5x.inference_files',
        # A training run's gin files may be read along: they name its data.
        'train': 't5x.loop',
        'write_inferences_to_file': 't5x.inference_files',
    },
)


def main() -> None:
  """Runs the model over the data that gin names."""
  script.start('infer', 't5x/configs/runs/infer.gin')
  import gin
  from t5x import chunked_inference

  infer = gin.get_configurable(chunked_inference.infer)
  shard_id = flags.FLAGS.shard_id
  infer(**({} if shard_id is None else {'shard_id': shard_id}))


if __name__ == '__main__':
  flags.DEFINE_integer(
      'shard_id',
      None,
      'Which part of the data this job takes; wins over infer.shard_id.',
  )
  script.run(main)
