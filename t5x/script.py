"""What the scripts of t5x share: flags, start-up, and errors that help.

A script defines what is its own under `if __name__ == '__main__'`, and calls
`run(main)`; its `main` calls `start`, and then what gin configures. Flags are
defined by `run` alone, so that scripts may import each other. What is slow to
import comes after all that can be told without it: `--help` imports no JAX.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import importlib
import logging as python_logging
import os
import sys
import tempfile
from typing import Any

from absl import app
from absl import flags
from absl import logging

from t5x import distributed
from t5x import gin_syntax
from t5x import gin_utils
from t5x import macro_check

# The flags are those of the script that runs: `--help` shows them.
flags.disclaim_key_flags()

FLAGS = flags.FLAGS

# The directory that holds `t5x`, so that `t5x/configs/…` is found anywhere.
_PACKAGE_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# Libraries whose INFO lines tell a user nothing.
_CHATTY = ('/orbax/', '/jax/', '/functional_saver.py')

# Macros of directories, and their value where a run is only described.
RUN_DIRECTORIES = ('MODEL_DIR', 'INITIAL_CHECKPOINT_PATH')
_NOT_GIVEN = 'not_given'

# Script by the function that it runs.
_SCRIPTS = {'train': 't5x.train', 'evaluate': 't5x.eval', 'infer': 't5x.infer'}


def run(main: Callable[[], None]) -> None:
  """Runs a script as an absl app: reads its flags, then calls `main`.

  `script_errors` tells how it ends.
  """
  _define_flags()
  if sys.argv[1:] != ['--help']:
    # It defines flags of its own, which --help does not show.
    import jax

    jax.config.config_with_absl()

  def guarded(argv: Sequence[str]) -> None:
    if len(argv) > 1:
      raise app.UsageError(f'Unknown arguments: {" ".join(argv[1:])}')
    _set_verbosity()
    from t5x import script_errors

    with script_errors.told():
      main()

  gin_utils.run(guarded)


def _define_flags() -> None:
  flags.DEFINE_multi_string(
      'gin_file', None, 'A gin file; may be repeated, later ones win.'
  )
  flags.DEFINE_multi_string(
      'gin_bindings',
      [],
      'A gin statement, applied after the files; may be repeated. '
      '--gin.NAME=VALUE is short for it.',
  )
  flags.DEFINE_list(
      'gin_search_paths',
      ['.'],
      'Directories in which gin files are looked up, before the one that holds '
      't5x.',
  )
  flags.DEFINE_string(
      'tfds_data_dir', None, 'Where TFDS data sets lie, if not where they say.'
  )
  flags.DEFINE_list(
      'seqio_additional_cache_dirs',
      [],
      'More directories of cached SeqIO tasks.',
  )
  flags.DEFINE_bool(
      'multiprocess_gpu',
      False,
      'Require that there are other processes; the next three flags say which, '
      'or a scheduler does. Cloud TPU hosts need no flag.',
  )
  flags.DEFINE_string('coordinator_address', None, 'host:port of process 0.')
  flags.DEFINE_integer(
      'process_count',
      None,
      'How many processes there are; 1 alone keeps this one to itself.',
  )
  flags.DEFINE_integer('process_index', None, 'Which of them this is.')
  flags.DEFINE_integer(
      'initialization_timeout',
      None,
      f'Seconds to wait for the others ({distributed.INITIALIZATION_TIMEOUT}).',
  )
  flags.DEFINE_integer(
      'heartbeat_timeout',
      None,
      'Seconds without a sign of life after which a process counts as dead '
      f'({distributed.HEARTBEAT_TIMEOUT}).',
  )


def start(
    function: str,
    example: str,
    *,
    joins: bool = True,
    unneeded: Sequence[str] = (),
) -> None:
  """Makes a script ready: gin checked and parsed, processes joined.

  Args:
    function: the name of what gin configures, such as 'train'.
    example: the gin file that a user may start from.
    joins: whether it is one process of those of the run.
    unneeded: macros of directories that it looks into none of: they may be
      required by a file and not set.

  Raises:
    FileNotFoundError: for a gin file that does not exist.
    ValueError: if gin cannot read the files, or they set nothing of `function`.
  """
  search_paths = [*FLAGS.gin_search_paths, _PACKAGE_ROOT]
  files, bindings = FLAGS.gin_file or [], list(FLAGS.gin_bindings)
  statements = gin_syntax.read(files, bindings, search_paths)
  absent = macro_check.still_required(statements).intersection(unneeded)
  if absent:
    bindings += [f'{name} = {_NOT_GIVEN!r}' for name in sorted(absent)]
    statements = gin_syntax.read(files, bindings, search_paths)
  _check_function(function, gin_syntax.configured(statements), example)
  macro_check.check(statements)
  cluster = join_processes() if joins else None
  import_tensorflow()
  import seqio

  if FLAGS.tfds_data_dir:
    seqio.set_tfds_data_dir_override(FLAGS.tfds_data_dir)
  seqio.add_global_cache_dirs(FLAGS.seqio_additional_cache_dirs)
  gin_utils.parse_gin_flags(search_paths, files, bindings)
  if cluster is not None:
    distributed.check_and_log(cluster)


def _check_function(function: str, configured: set[str], example: str) -> None:
  """Refuses gin files of another script, and none at all."""
  if function in configured:
    return
  others = [
      f'They are for python -m {script}.'
      for name, script in _SCRIPTS.items()
      if name in configured
  ]
  raise ValueError(
      f'The gin files set nothing of `{function}`. '
      + ' '.join(others or [f'Start from --gin_file={example}.'])
  )


def join_processes() -> distributed.Cluster:
  """Joins the other processes of the run, if flags or the machine tell of any.

  Raises:
    ValueError: for flags that do not say which.
    TimeoutError: if others are missing.
  """
  cluster = distributed.find(
      FLAGS.coordinator_address,
      FLAGS.process_count,
      FLAGS.process_index,
      must_find=FLAGS.multiprocess_gpu,
  )
  distributed.join(
      cluster,
      initialization_timeout=FLAGS.initialization_timeout,
      heartbeat_timeout=FLAGS.heartbeat_timeout,
  )
  return cluster


def parse_gin(
    gin_files: Sequence[str],
    gin_bindings: Sequence[str],
    gin_search_paths: Sequence[str] = ('.',),
    script: str = 't5x.train',
) -> None:
  """Parses a run's gin files for another command, which only reads them.

  They import their script as `__main__`, and so it is found while they are
  parsed. The config stays open: what only a run needs, such as its directory,
  may be missing.

  Args:
    gin_files: paths of gin files.
    gin_bindings: gin statements, applied after the files.
    gin_search_paths: directories in which files are looked up, before the one
      that holds t5x.
    script: the module that the files are for.

  Raises:
    FileNotFoundError: if a file is in none of the search paths.
    ValueError: for an unknown name, or what gin cannot read.
  """
  search_paths = [*gin_search_paths, _PACKAGE_ROOT]
  statements = gin_syntax.read(gin_files, gin_bindings, search_paths)
  macro_check.check(statements, is_whole=False)
  import_tensorflow()
  # gin's own messages, whatever handlers the other command has.
  logger = python_logging.getLogger()
  main_module = sys.modules['__main__']
  sys.modules['__main__'] = importlib.import_module(script)
  logger.addFilter(_is_worth_a_line)
  try:
    gin_utils.parse_gin_flags(
        search_paths, gin_files, gin_bindings, finalize_config=False
    )
  finally:
    logger.removeFilter(_is_worth_a_line)
    sys.modules['__main__'] = main_module


def lazy_attributes(
    module: str, homes: Mapping[str, str]
) -> Callable[[str], Any]:
  """Returns a module's `__getattr__` (PEP 562) that imports at first use.

  Gin files and importers find in a script what it runs, and `--help` does not
  wait for it.

  Args:
    module: the name of the script's module.
    homes: attribute -> the module where it is defined.
  """

  def __getattr__(name: str) -> Any:
    if name in homes:
      return getattr(importlib.import_module(homes[name]), name)
    raise AttributeError(f'module {module!r} has no attribute {name!r}')

  return __getattr__


def _set_verbosity() -> None:
  """Log lines where nobody watches; on a terminal the bar is enough."""
  if not FLAGS['verbosity'].present:
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


def import_tensorflow() -> None:
  """Imports TensorFlow without its start-up chatter and without any GPU."""
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  # Its kernels announce themselves, and round otherwise than the plain ones.
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
  with held_back_stderr():
    import seqio  # noqa: F401
    import tensorflow as tf

  tf.config.set_visible_devices([], 'GPU')


@contextlib.contextmanager
def held_back_stderr() -> Iterator[None]:
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
