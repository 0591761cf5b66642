"""The run files and T5's model files hold the macros and values of T5X."""

import pathlib

import pytest

from t5x import gin_syntax

ROOT = pathlib.Path(__file__).parents[2]
REQUIRED = gin_syntax.Macro('gin.REQUIRED')
PRETRAIN = {
    'MIXTURE_OR_TASK_NAME': REQUIRED,
    'TASK_FEATURE_LENGTHS': REQUIRED,
    'TRAIN_STEPS': REQUIRED,
    'MODEL_DIR': REQUIRED,
    'BATCH_SIZE': 128,
    'USE_CACHED_TASKS': True,
    'SHUFFLE_TRAIN_EXAMPLES': True,
    'USE_HARDWARE_RNG': False,
    'MIXTURE_OR_TASK_MODULE': None,
    'RANDOM_SEED': None,
    'TRAIN_STEPS_RELATIVE': None,
}
FINETUNE = PRETRAIN | {
    'INITIAL_CHECKPOINT_PATH': REQUIRED,
    'DROPOUT_RATE': 0.1,
    'EVAL_STEPS': 20,
    'EVAL_PERIOD': 1000,
    'EVALUATOR_USE_MEMORY_CACHE': True,
    'EVALUATOR_NUM_EXAMPLES': None,
    'JSON_WRITE_N_RESULTS': None,
}
del FINETUNE['SHUFFLE_TRAIN_EXAMPLES']
EVAL = {
    'MIXTURE_OR_TASK_NAME': REQUIRED,
    'CHECKPOINT_PATH': REQUIRED,
    'EVAL_OUTPUT_DIR': REQUIRED,
    'TASK_FEATURE_LENGTHS': None,
    'MIXTURE_OR_TASK_SPLIT': 'test',
}
INFER = {
    'MIXTURE_OR_TASK_NAME': REQUIRED,
    'TASK_FEATURE_LENGTHS': REQUIRED,
    'CHECKPOINT_PATH': REQUIRED,
    'INFER_OUTPUT_DIR': REQUIRED,
    'MIXTURE_OR_TASK_SPLIT': 'test',
}
INFER_FROM_FILE = {
    'TF_EXAMPLE_FILE_PATHS': REQUIRED,
    'TF_EXAMPLE_FILE_TYPE': REQUIRED,
    'FEATURE_LENGTHS': REQUIRED,
    'CHECKPOINT_PATH': REQUIRED,
    'INFER_OUTPUT_DIR': REQUIRED,
    'MIXTURE_OR_TASK_SPLIT': 'infer',
}
EVERY_RUN = {
    'PjitPartitioner.num_partitions': 1,
    'PjitPartitioner.model_parallel_submesh': None,
    'PjitPartitioner.logical_axis_rules': gin_syntax.Reference(
        'partitioning.standard_logical_axis_rules', True
    ),
}
LOGGERS = [
    gin_syntax.Reference(f'seqio.{name}Logger', False)
    for name in ('PyLogging', 'TensorBoard', 'JSON')
]
TRAINING = {
    'train/DatasetConfig.split': 'train',
    'train/DatasetConfig.pack': True,
    'train_eval/DatasetConfig.split': 'validation',
    'train_eval/DatasetConfig.seed': 42,
    'train_eval/DatasetConfig.pack': True,
    'SaveCheckpointConfig.dtype': 'float32',
}
BINDINGS = {
    'pretrain': TRAINING
    | {
        'train.eval_steps': 20,
        'train.eval_period': 1000,
        'RestoreCheckpointConfig.path': [],
        'SaveCheckpointConfig.period': 1000,
        'create_learning_rate_scheduler.factors': 'constant * rsqrt_decay',
        'create_learning_rate_scheduler.base_learning_rate': 1.0,
        'create_learning_rate_scheduler.warmup_steps': 10000,
    },
    'finetune': TRAINING
    | {
        'infer_eval/DatasetConfig.split': 'validation',
        'infer_eval/DatasetConfig.task_feature_lengths': None,
        'infer_eval/DatasetConfig.pack': False,
        'Evaluator.logger_cls': LOGGERS,
        'RestoreCheckpointConfig.mode': 'specific',
        'RestoreCheckpointConfig.dtype': 'float32',
        'SaveCheckpointConfig.period': 5000,
        'create_learning_rate_scheduler.factors': 'constant',
        'create_learning_rate_scheduler.base_learning_rate': 0.001,
        'create_learning_rate_scheduler.warmup_steps': 1000,
    },
    'eval': {
        'DatasetConfig.batch_size': 32,
        'DatasetConfig.seed': 42,
        'Evaluator.logger_cls': LOGGERS,
    },
    'infer': {
        'infer.mode': 'predict',
        'infer.checkpoint_period': 100,
        'DatasetConfig.batch_size': 32,
        'DatasetConfig.seed': 0,
        'RestoreCheckpointConfig.dtype': 'bfloat16',
    },
    'infer_from_tfexample_file': {
        'infer.checkpoint_period': 100,
        'DatasetConfig.split': gin_syntax.Macro('MIXTURE_OR_TASK_SPLIT'),
    },
}
MACROS = {
    'pretrain': PRETRAIN,
    'finetune': FINETUNE,
    'eval': EVAL,
    'infer': INFER,
    'infer_from_tfexample_file': INFER_FROM_FILE,
}


def read(path):
  """Returns macro -> value, and 'scope/function.argument' -> value."""
  macros, bindings = {}, {}
  for statement in gin_syntax.read([path], [], [str(ROOT)]):
    if statement.macro is not None:
      macros[statement.macro] = statement.parsed.value
    elif hasattr(statement.parsed, 'value'):
      scope = f'{statement.parsed.scope}/' if statement.parsed.scope else ''
      name = f'{scope}{statement.configurable}.{statement.parsed.arg_name}'
      bindings[name] = statement.parsed.value
  return macros, bindings


def differing(wanted, found):
  """What is not as wanted: name -> the value found, or 'not set'."""
  return {
      name: found.get(name, 'not set')
      for name, value in wanted.items()
      if found.get(name, 'not set') != value
  }


@pytest.mark.parametrize('run', sorted(MACROS))
def test_a_run_file_is_that_of_t5x(run):
  macros, bindings = read(f't5x/configs/runs/{run}.gin')
  assert differing(MACROS[run], macros) == {}
  assert differing(BINDINGS[run] | EVERY_RUN, bindings) == {}
  assert gin_syntax.Macro('MODEL') in bindings.values()
  # A user's own file sets what is required, and nothing else.
  required = {name for name, value in macros.items() if value == REQUIRED}
  assert required == {n for n, v in MACROS[run].items() if v == REQUIRED}


def test_model_files_leave_dropout_to_the_run_and_nothing_else():
  models = sorted((ROOT / 't5x/examples/t5').glob('*/*.gin'))
  assert len(models) > 15
  for path in models:
    macros, bindings = read(str(path))
    required = {name for name, value in macros.items() if value == REQUIRED}
    assert required <= {'DROPOUT_RATE', 'VOCABULARY_FILE'}, path
    wanted = {
        'DROPOUT_RATE': REQUIRED,
        'Z_LOSS': 1e-4,
        'LABEL_SMOOTHING': 0.0,
        'LOSS_NORMALIZING_FACTOR': None,
    }
    assert differing(wanted, macros) == {}, path
    assert {'MODEL', 'OPTIMIZER', 'VOCABULARY'} <= set(macros), path
    assert bindings['Adafactor.decay_rate'] == 0.8, path
