"""Compiles a run's steps for hardware that is not here, and says what they cost.

  python -m t5x.precompile --gin_file=… --topology=v5e:16x16

takes the flags and gin files of `t5x.train`. Nothing is allocated, read or
run: see docs/precompile.md.
"""

import importlib.metadata
import json
import sys

from absl import flags

from t5x import child_process
from t5x import script

__getattr__ = script.lazy_attributes(
    __name__, {'train': 't5x.loop', 'precompile': 't5x.precompiling'}
)


def main() -> None:
  """Prints a report of each step; status 1 if one does not fit."""
  from t5x import topology

  if flags.FLAGS.topology is None:
    raise ValueError(
        'Say what to compile for: --topology=v5e:16x16, --topology=v4:4x4x8,'
        ' … or, to try, --topology=cpu:8.'
    )
  # Before JAX finds its devices.
  topology.prepare(flags.FLAGS.topology)
  if topology.needs_libtpu(flags.FLAGS.topology):
    if not child_process.is_child():
      _leave_to_child()
    child_process.end_with_parent()
  # One process describes all of them, wherever it runs.
  script.start(
      'train',
      't5x/configs/runs/pretrain.gin',
      joins=False,
      unneeded=script.RUN_DIRECTORIES,
  )
  from t5x import compile_report
  from t5x import precompiling

  step = flags.FLAGS.step
  report = precompiling.precompile(
      **precompiling.configured_run(),
      model_dir=flags.FLAGS.hlo_dir,
      topology=flags.FLAGS.topology,
      num_slices=flags.FLAGS.num_slices,
      memory_limit=_memory_limit(),
      steps=('train', 'predict') if step == 'both' else (step,),
  )
  print('\n'.join(compile_report.lines(report)), flush=True)
  if flags.FLAGS.json:
    with open(flags.FLAGS.json, 'w', encoding='utf-8') as file:
      json.dump(compile_report.as_json(report), file, indent=2)
      file.write('\n')
  if not all(step.fits for step in report.steps):
    sys.exit(1)


def _leave_to_child() -> None:
  """Compiles in a child process, and ends with its status.

  Raises:
    ChildProcessError: if a signal ended the child.
  """
  status = child_process.run()
  if status >= 0:
    sys.exit(status)
  files = ', '.join(flags.FLAGS.gin_file or ())
  settings = ', '.join(flags.FLAGS.gin_bindings)
  version = importlib.metadata.version('libtpu')
  told = child_process.describe_signal(
      -status,
      f'libtpu {version}',
      'That is a fault of the compiler, which the same run, cut another way,'
      ' may not meet: set another num_partitions, parameter_partitioning_dims,'
      ' remat_policy or num_microbatches, or install another libtpu.',
  )
  raise ChildProcessError(
      f'Compiling {files} for {flags.FLAGS.topology}'
      f' ({settings or "no gin bindings"}): {told}'
  )


def _memory_limit() -> int | None:
  gib = flags.FLAGS.memory_limit_gib
  return None if gib is None else int(gib * 2**30)


if __name__ == '__main__':
  flags.DEFINE_string(
      'topology',
      None,
      'What to compile for: v5e:16x16, v4:4x4x8, v5p:4x4x8, v6e:16x16, … '
      '(chips along each dimension of a slice), or cpu:8.',
  )
  flags.DEFINE_integer(
      'num_slices', 1, 'How many such slices; needs ici and dcn mesh shapes.'
  )
  flags.DEFINE_enum(
      'step',
      'train',
      ['train', 'predict', 'both'],
      'Which step: of training, of inference evaluation, or both.',
  )
  flags.DEFINE_float(
      'memory_limit_gib',
      None,
      'Memory of a device that the steps must fit into, by default its own.',
  )
  flags.DEFINE_string('json', None, 'Write the report to this file as JSON.')
  flags.DEFINE_string(
      'hlo_dir', None, 'Write the text of the compiled programs here.'
  )
  script.run(main)
