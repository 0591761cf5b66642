"""From an interactive model to a gin file for the scripts."""

import enum
from typing import Any


class T5XScriptType(enum.Enum):
  """Which script a gin file is for."""

  FINETUNING = 1
  INFERENCE = 2
  EVALUATION = 3
  PRETRAINING = 4


_RUN_FILES = {
    T5XScriptType.FINETUNING: 'finetune',
    T5XScriptType.INFERENCE: 'infer',
    T5XScriptType.EVALUATION: 'eval',
    T5XScriptType.PRETRAINING: 'pretrain',
}
_TRAINING = (T5XScriptType.FINETUNING, T5XScriptType.PRETRAINING)


def get_gin_config_from_interactive_model(
    interactive_model: Any,
    script_type: T5XScriptType,
    task_name: str,
    partitioner_config_str: str,
    model_config_str: str,
    train_steps: int = 1,
    imports_str: str = '',
) -> str:
  """Returns a gin file that goes on where an interactive model stands.

  Training writes to the model's directory, and so resumes there; evaluation and
  inference read its latest checkpoint, unless it was made with another, and
  write to its directory.

  Args:
    interactive_model: an `InteractiveModel`.
    script_type: the script that the file is for.
    task_name: a registered task, such as `get_seqio_task_from_examples` makes.
    partitioner_config_str: gin statements that configure the partitioner.
    model_config_str: gin statements that define MODEL.
    train_steps: steps to train, of the two kinds of training.
    imports_str: import statements for these.
  """
  run = interactive_model
  restore, save = run.restore_checkpoint_cfg, run.save_checkpoint_cfg
  source = restore.path if restore else run.output_dir
  macros = {
      'MIXTURE_OR_TASK_NAME': task_name,
      'TASK_FEATURE_LENGTHS': dict(run.task_feature_lengths),
  }
  data = {'use_cached': False, 'batch_size': run.batch_size}
  blocks = []
  if script_type in _TRAINING:
    macros |= {
        'MODEL_DIR': run.output_dir,
        'TRAIN_STEPS': run.step + train_steps,
        'BATCH_SIZE': run.batch_size,
    }
    # Data sets of training are configured in scopes, which win.
    for scope in ('train', 'train_eval'):
      blocks.append(
          _block(f'{scope}/utils.DatasetConfig', data | {'pack': False})
      )
    saving = ('period', 'dtype', 'keep', 'save_dataset')
    blocks.append(
        _block(
            'utils.SaveCheckpointConfig',
            {name: getattr(save, name) for name in saving},
        )
    )
  else:
    is_eval = script_type is T5XScriptType.EVALUATION
    macros['CHECKPOINT_PATH'] = source
    macros['EVAL_OUTPUT_DIR' if is_eval else 'INFER_OUTPUT_DIR'] = (
        run.output_dir
    )
    # A task of examples has them in each of its splits.
    macros['MIXTURE_OR_TASK_SPLIT'] = 'validation'
    blocks.append(_block('utils.DatasetConfig', data))
  if script_type is T5XScriptType.FINETUNING:
    macros['INITIAL_CHECKPOINT_PATH'] = source
    blocks.append(_block('infer_eval/utils.DatasetConfig', data))
  if script_type is not T5XScriptType.PRETRAINING:
    restoring = {
        'mode': restore.mode if restore else 'latest',
        'dtype': restore.dtype if restore else save.dtype,
    }
    blocks.append(_block('utils.RestoreCheckpointConfig', restoring))
  texts = [
      'from __gin__ import dynamic_registration',
      f'{imports_str}\nfrom t5x import utils'.strip(),
      f"include 't5x/configs/runs/{_RUN_FILES[script_type]}.gin'",
      '\n'.join(f'{name} = {value!r}' for name, value in macros.items()),
      model_config_str.strip(),
      partitioner_config_str.strip(),
      *blocks,
  ]
  return '\n\n'.join(text for text in texts if text) + '\n'


def _block(name: str, values: dict[str, Any]) -> str:
  lines = [f'  {argument} = {value!r}' for argument, value in values.items()]
  return '\n'.join([f'{name}:', *lines])
