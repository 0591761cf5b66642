"""The training script: `python -m t5x.train --gin_file=… --gin.MODEL_DIR=…`.

Reads the command line, parses gin, and calls `t5x.loop.train`, which gin files
know as `train_script.train` (after `import __main__ as train_script`). What is
slow to import is imported once the flags are right.
"""

from collections.abc import Iterator, Sequence
import contextlib
import logging as python_logging
import os
import sys
import tempfile
from typing import Any

from absl import app
from absl import flags
from absl import logging
import jax

from t5x import gin_utils

_GIN_FILE = flags.DEFINE_multi_string(
    'gin_file', None, 'A gin file; may be repeated, later ones win.'
)
_GIN_BINDINGS = flags.DEFINE_multi_string(
    'gin_bindings',
    [],
    'A gin statement, applied after the files; may be repeated. '
    '--gin.NAME=VALUE is short for it.',
)
_GIN_SEARCH_PATHS = flags.DEFINE_list(
    'gin_search_paths',
    ['.'],
    'Directories in which gin files are looked up, before the one that holds '
    't5x.',
)
_DRY_RUN = flags.DEFINE_bool(
    'dry_run',
    False,
    'Print configuration, mesh, batch and parameter counts, and end.',
)
_TFDS_DATA_DIR = flags.DEFINE_string(
    'tfds_data_dir', None, 'Where TFDS data sets lie, if not where they say.'
)
_CACHE_DIRS = flags.DEFINE_list(
    'seqio_additional_cache_dirs', [], 'More directories of cached SeqIO tasks.'
)
_MULTIPROCESS_GPU = flags.DEFINE_bool(
    'multiprocess_gpu', False, 'Join the processes of several GPU machines.'
)
_COORDINATOR_ADDRESS = flags.DEFINE_string(
    'coordinator_address', None, 'host:port of process 0 (multiprocess_gpu).'
)
_PROCESS_COUNT = flags.DEFINE_integer(
    'process_count', None, 'How many processes there are (multiprocess_gpu).'
)
_PROCESS_INDEX = flags.DEFINE_integer(
    'process_index', None, 'Which of them this is (multiprocess_gpu).'
)
_INITIALIZATION_TIMEOUT = flags.DEFINE_integer(
    'initialization_timeout', None, 'Seconds to wait for the others.'
)

# The directory that holds `t5x`, so that `t5x/configs/…` is found anywhere.
_PACKAGE_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# Libraries whose INFO lines tell a user nothing.
_CHATTY = ('/orbax/', '/jax/', '/functional_saver.py')

# Raised for what a user can mend; anything else keeps its traceback.
_USER_ERRORS = (ValueError, TypeError, OSError, ImportError, NameError)


def __getattr__(name: str) -> Any:
  """Gives `train` to gin and importers without an import at the top."""
  if name == 'train':
    from t5x import loop

    return loop.train
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def main(argv: Sequence[str]) -> None:
  """Runs the script.

  Raises:
    app.UsageError: for arguments that are no flags.
  """
  if len(argv) > 1:
    raise app.UsageError(f'Unknown arguments: {" ".join(argv[1:])}')
  _set_verbosity()
  try:
    _main()
  except _USER_ERRORS as error:
    if logging.level_debug():
      raise
    sys.stderr.write(
        f'error: {gin_utils.without_addresses(str(error))}\n'
        '(--verbosity=1 shows where this was raised.)\n'
    )
    sys.exit(1)


def _main() -> None:
  search_paths = [*_GIN_SEARCH_PATHS.value, _PACKAGE_ROOT]
  gin_utils.find_gin_files(_GIN_FILE.value or [], search_paths)
  if _MULTIPROCESS_GPU.value:
    jax.distributed.initialize(
        _COORDINATOR_ADDRESS.value,
        _PROCESS_COUNT.value,
        _PROCESS_INDEX.value,
        **(
            {'initialization_timeout': _INITIALIZATION_TIMEOUT.value}
            if _INITIALIZATION_TIMEOUT.value is not None
            else {}
        ),
    )
  _import_tensorflow()
  import seqio

  import gin

  if _TFDS_DATA_DIR.value:
    seqio.set_tfds_data_dir_override(_TFDS_DATA_DIR.value)
  seqio.add_global_cache_dirs(_CACHE_DIRS.value)
  gin_utils.parse_gin_flags(
      search_paths, _GIN_FILE.value or [], _GIN_BINDINGS.value
  )
  from t5x import loop

  try:
    train = gin.get_configurable(loop.train)
  except ValueError as error:
    raise ValueError(
        'The gin files set nothing of train_script.train. Start from '
        '--gin_file=t5x/configs/runs/pretrain.gin, or write '
        '`import __main__ as train_script`.'
    ) from error
  train(dry_run=_DRY_RUN.value)


def parse_gin(
    gin_files: Sequence[str],
    gin_bindings: Sequence[str],
    gin_search_paths: Sequence[str] = ('.',),
) -> None:
  """Parses a run's gin files for another command, which only reads them.

  They import this script as `__main__`, and so it is found while they are
  parsed. The config stays open: what only a run needs, such as its directory,
  may be missing.

  Args:
    gin_files: paths of gin files.
    gin_bindings: gin statements, applied after the files.
    gin_search_paths: directories in which files are looked up, before the one
      that holds t5x.

  Raises:
    FileNotFoundError: if a file is in none of the search paths.
    ValueError: for an unknown name.
  """
  search_paths = [*gin_search_paths, _PACKAGE_ROOT]
  gin_utils.find_gin_files(gin_files, search_paths)
  _import_tensorflow()
  # gin's own messages, whatever handlers the other command has.
  logger = python_logging.getLogger()
  main_module = sys.modules['__main__']
  sys.modules['__main__'] = sys.modules[__name__]
  logger.addFilter(_is_worth_a_line)
  try:
    gin_utils.parse_gin_flags(
        search_paths, gin_files, gin_bindings, finalize_config=False
    )
  finally:
    logger.removeFilter(_is_worth_a_line)
    sys.modules['__main__'] = main_module


def _set_verbosity() -> None:
  """Log lines where nobody watches; on a terminal the bar is enough."""
  if not flags.FLAGS['verbosity'].present:
    quiet = sys.stderr.isatty()
    logging.set_verbosity(logging.WARNING if quiet else logging.INFO)
    logging.get_absl_handler().python_handler.addFilter(_is_worth_a_line)


def _is_worth_a_line(record: Any) -> bool:
  """Hides what some libraries tell of their inner life."""
  # gin calls each search path that does not hold the file an error.
  if record.pathname.endswith('/gin/resource_reader.py'):
    return False
  # Lengths of several axes are the feature converter's to check.
  if str(record.msg).startswith('Automatic length checking'):
    return False
  return record.levelname != 'INFO' or not any(
      part in record.pathname for part in _CHATTY
  )


def _import_tensorflow() -> None:
  """Imports TensorFlow without its start-up chatter and without any GPU."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  # Its kernels announce themselves, and round otherwise than the plain ones.
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
  with _held_back_stderr():
    import seqio  # noqa: F401
    import tensorflow as tf

  tf.config.set_visible_devices([], 'GPU')


@contextlib.contextmanager
def _held_back_stderr() -> Iterator[None]:
  """Drops what native code writes to stderr, unless an error ends the block.

  TensorFlow's libraries write before any log level of theirs applies.
  """
  sys.stderr.flush()
  with tempfile.TemporaryFile() as held:
    stderr = os.dup(2)
    os.dup2(held.fileno(), 2)
    try:
      yield
    except BaseException:
      held.seek(0)
      os.write(stderr, held.read())
      raise
    finally:
      os.dup2(stderr, 2)
      os.close(stderr)


if __name__ == '__main__':
  jax.config.config_with_absl()
  gin_utils.run(main)
