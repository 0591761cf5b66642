"""Rewrites a checkpoint in the other layout, without its model.

  python -m t5x.convert_checkpoint --source=RUN --target=DIR --layout=orbax

`RUN` is a run's directory, one of its checkpoints, or a public checkpoint's
file; the result is `DIR/checkpoint_<step>`. A run reads every layout, so this
is for programs that know only one, and for casting.
"""

import argparse
from collections.abc import Mapping, Sequence
import os
from typing import Any

from etils import epath
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from t5x import checkpoint_dirs
from t5x import checkpoint_reader
from t5x import dataset_item
from t5x import ema
from t5x import legacy_writer
from t5x import state_matching
from t5x import stored_state

LAYOUTS = ('orbax', 'legacy')
_UNFINISHED = '.tmp'


def convert(
    source: str,
    target: str,
    *,
    layout: str = 'orbax',
    step: int | None = None,
    dtype: str | None = None,
    use_ema: bool = False,
) -> str:
  """Writes a checkpoint anew; all of it passes through this host's memory.

  Args:
    source: a run's directory, a checkpoint's, or a legacy file.
    target: the directory of the new checkpoint's directory.
    layout: 'orbax' or 'legacy'.
    step: which checkpoint of a run's directory, None for the last.
    dtype: to which floating parameters are cast, None for the stored one.
    use_ema: whether the moving average becomes the parameters (`ema.use_ema`).

  Returns:
    The new checkpoint's directory.

  Raises:
    FileExistsError: if it is there already.
    FileNotFoundError: if there is nothing to convert.
    ValueError: for another layout, or a checkpoint without a step.
  """
  if layout not in LAYOUTS:
    raise ValueError(f'layout must be one of {LAYOUTS}, got {layout!r}.')
  path = checkpoint_dirs.find_checkpoint(source, step)
  stored = checkpoint_reader.read_tree(path)
  if 'step' not in stored.get('state', {}):
    raise ValueError(
        f'{path} has no state/step, so its copy would have no name.'
    )
  if use_ema:
    stored = ema.use_ema(stored, {})
  if dtype is not None:
    stored['target'] = _cast(stored['target'], jnp.dtype(dtype))
  state = stored_state.get_all(stored)
  final = checkpoint_dirs.get_checkpoint_dir(
      checkpoint_dirs.absolute(target), int(state['state']['step'])
  )
  if epath.Path(final).exists():
    raise FileExistsError(f'{final} exists already; remove it first.')
  write = _write_orbax if layout == 'orbax' else _write_legacy
  write(final, state)
  _copy_dataset(path, final, layout)
  return final


def _cast(tree: Mapping[str, Any], dtype: np.dtype) -> dict[str, Any]:
  return state_matching.nest(
      {
          path: leaf.astype(dtype)
          if jnp.issubdtype(leaf.dtype, jnp.floating)
          else leaf
          for path, leaf in stored_state.flatten(tree).items()
      }
  )


def _write_orbax(final: str, state: Mapping[str, Any]) -> None:
  handler = ocp.CompositeCheckpointHandler(
      **{checkpoint_reader.STATE_ITEM: ocp.PyTreeCheckpointHandler()}
  )
  args = ocp.args.Composite(
      **{checkpoint_reader.STATE_ITEM: ocp.args.PyTreeSave(state)}
  )
  with ocp.Checkpointer(handler) as checkpointer:
    checkpointer.save(epath.Path(final), args=args)


def _write_legacy(final: str, state: Mapping[str, Any]) -> None:
  # Where nothing can be renamed, the file that is written last is the mark.
  directory = final if '://' in final else final + _UNFINISHED
  epath.Path(directory).mkdir(parents=True)
  leaves = stored_state.flatten(state)
  # Without a model there are no axes; slots that are not used have one element.
  axes = {path: () for path, leaf in leaves.items() if leaf.size > 1}
  content = legacy_writer.write_arrays(directory, leaves, axes, 2**34)
  legacy_writer.write_file(directory, content)
  if directory != final:
    epath.Path(directory).rename(final)


def _copy_dataset(path: str, final: str, layout: str) -> None:
  """Copies where the input pipeline stood, if the checkpoint tells."""
  if not epath.Path(path).is_dir():
    path = os.path.dirname(path)
  for source in (os.path.join(path, dataset_item.ITEM), path):
    for file in epath.Path(source).glob(f'{dataset_item.PREFIX}-*'):
      directory = epath.Path(final)
      if layout == 'orbax':
        directory = directory / dataset_item.ITEM
      directory.mkdir(exist_ok=True)
      file.copy(directory / file.name)


def main(argv: Sequence[str] | None = None) -> None:
  """Converts as the command line says and prints the new directory."""
  parser = argparse.ArgumentParser(
      prog='python -m t5x.convert_checkpoint',
      description='Rewrites a checkpoint in the other layout.',
  )
  parser.add_argument(
      '--source',
      required=True,
      help="a run's directory, one of its checkpoints, or a legacy file",
  )
  parser.add_argument(
      '--target',
      required=True,
      help='the directory in which checkpoint_<step> is made',
  )
  parser.add_argument('--layout', choices=LAYOUTS, default='orbax')
  parser.add_argument(
      '--step', type=int, help="of a run's directory; the last by default"
  )
  parser.add_argument(
      '--dtype',
      choices=('float32', 'bfloat16', 'float16'),
      help='of the parameters; the stored one by default',
  )
  parser.add_argument(
      '--use_ema',
      action='store_true',
      help='write the moving average of ema.EmaOptimizer as the parameters',
  )
  args = parser.parse_args(argv)
  try:
    print(
        convert(
            args.source,
            args.target,
            layout=args.layout,
            step=args.step,
            dtype=args.dtype,
            use_ema=args.use_ema,
        )
    )
  except (OSError, ValueError) as error:
    parser.exit(1, f'error: {error}\n')


if __name__ == '__main__':
  main()
