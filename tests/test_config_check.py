"""Every gin file that is shipped passes the check of configurations."""

import contextlib
import importlib
import pathlib
import sys

import pytest

import gin
from t5x import gin_syntax
from t5x import gin_utils
from t5x import macro_check

ROOT = pathlib.Path(__file__).parents[1]
_DIRS = {
    'MODEL_DIR': "'/nowhere'",
    'EVAL_OUTPUT_DIR': "'/nowhere'",
    'INFER_OUTPUT_DIR': "'/nowhere'",
    'CHECKPOINT_PATH': "'/nowhere'",
    'INITIAL_CHECKPOINT_PATH': "'/nowhere'",
}
_RUN = {
    **_DIRS,
    'MIXTURE_OR_TASK_NAME': "'task'",
    'TASK_FEATURE_LENGTHS': "{'inputs': 8, 'targets': 8}",
    'TRAIN_STEPS': '3',
    'DROPOUT_RATE': '0.0',
    'TF_EXAMPLE_FILE_PATHS': "['a']",
    'TF_EXAMPLE_FILE_TYPE': "'tfrecord'",
    'FEATURE_LENGTHS': "{'inputs': 8, 'targets': 8}",
    'VOCABULARY_FILE': "'spiece.model'",
}
_SCRIPTS = {
    'eval.gin': 't5x.eval',
    'infer.gin': 't5x.infer',
    'infer_from_tfexample_file.gin': 't5x.infer',
}


@contextlib.contextmanager
def script(name):
  """Stands in `__main__`, as gin files import it, with a clean gin."""
  main_module = sys.modules['__main__']
  prefixes = list(gin.config._LOCATION_PREFIXES)
  sys.modules['__main__'] = importlib.import_module(name)
  gin.clear_config()
  try:
    yield
  finally:
    gin.clear_config()
    gin.config._LOCATION_PREFIXES[:] = prefixes
    sys.modules['__main__'] = main_module


def check(files, macros, caplog):
  """Parses files with values for those of the macros that they ask for."""
  statements = gin_syntax.read(files, [], [str(ROOT)])
  read = {name for s in statements for name in s.macros_read()}
  bindings = [f'{n} = {value}' for n, value in macros.items() if n in read]
  caplog.clear()
  gin_utils.parse_gin_flags([str(ROOT)], files, bindings)
  assert gin.config_is_locked()
  macro_check.warn(statements)
  assert 'no gin file reads' not in caplog.text


@pytest.mark.parametrize(
    'run', sorted(path.name for path in (ROOT / 'gin').glob('*.gin'))
)
def test_a_pixel_llm_run_passes(run, caplog):
  with script('t5x.train'):
    check([f'gin/{run}'], _DIRS, caplog)


def test_a_pixel_llm_run_passes_on_every_mesh(caplog):
  meshes = sorted((ROOT / 'gin/mesh').glob('*.gin'))
  assert meshes
  for mesh in meshes:
    with script('t5x.train'):
      check(
          ['gin/pixel_llm_t5_trace.gin', f'gin/mesh/{mesh.name}'], _DIRS, caplog
      )


def test_evaluating_a_pixel_llm_run_passes(caplog):
  with script('t5x.eval'):
    files = ['gin/pixel_llm_tiny_refseg.gin', 'gin/runs/eval.gin']
    check(files, _DIRS, caplog)


@pytest.mark.parametrize('run', ['pretrain', 'finetune'])
def test_one_macro_seeds_model_dropout_and_data(run, caplog):
  files = ['t5x/examples/t5/t5_1_1/tiny.gin', f't5x/configs/runs/{run}.gin']
  with script('t5x.train'):
    check(files, _RUN | {'RANDOM_SEED': '7'}, caplog)
    # Parameters and dropout; the evaluations keep a seed of their own.
    assert repr(gin.query_parameter('train.random_seed')) == '%RANDOM_SEED'
    for scope, seed in (('train', 7), ('train_eval', 42)):
      with gin.config_scope(scope):
        assert gin.get_bindings('DatasetConfig')['seed'] == seed


def test_every_t5_passes_with_every_run_file(caplog):
  models = sorted((ROOT / 't5x/examples/t5').glob('*/*.gin'))
  runs = sorted((ROOT / 't5x/configs/runs').glob('*.gin'))
  assert len(models) > 15 and len(runs) == 5
  # Each model once, each run file with several.
  for index, model in enumerate(models):
    run = runs[index % len(runs)]
    with script(_SCRIPTS.get(run.name, 't5x.train')):
      files = [str(path.relative_to(ROOT)) for path in (model, run)]
      check(files, _RUN, caplog)
