"""Runs of the tiny recipes that tests can wait for, and their data.

One layer of everything, and four steps: the compiler is what takes the time.
"""

from collections.abc import Iterable
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]

# Gin names and values, for every tiny recipe.
SIZES = {
    'TINY_IMAGE_SIZE': 64,
    'eva02_vit.Eva02Vit.depth': 1,
    'sam_image_encoder.SamImageEncoder.depth': 1,
    'sam_image_encoder.SamImageEncoder.global_block_indexes': (0,),
    'prompt_adapter.PromptAdapter.depth': 1,
    'prompt_adapter.PromptAdapter.num_outputs': 4,
    't5_text_head.T5TextConfig.num_encoder_layers': 1,
    't5_text_head.T5TextConfig.num_decoder_layers': 1,
    'TRAIN_STEPS': 4,
    'WARMUP_STEPS': 1,
    'SAVE_PERIOD': 2,
    'EVAL_PERIOD': 4,
    'EVAL_STEPS': 1,
    'train_script.train.stats_period': 1,
}
# For recipes with masks.
MASK_SIZES = {'mask_adapter.MaskAdapter.depth': 1}

_NARRATIVES = 'tasks/sample/localized_narratives/coco_train_localized_'
_TRAIN_FILES = {
    'refcoco': ('tasks/sample/refcoco/merge_coco_img_safe_train.json',),
    'ln': tuple(
        f'{_NARRATIVES}narratives-0000{n}-of-00004.jsonl' for n in range(4)
    ),
    'vg': ('tasks/sample/vg/train.json',),
}


def build_sample(
    data_dir: pathlib.Path, kinds: Iterable[str], folders: Iterable[str]
) -> None:
  """Converts the train split of the sample's sets, as `make data` does.

  Args:
    data_dir: the runs' PIXEL_LLM_DATA_DIR.
    kinds: of 'refcoco', 'ln' and 'vg'.
    folders: with pictures, of `tasks/sample`.

  Raises:
    subprocess.CalledProcessError: if a set cannot be built.
  """
  images = [f'tasks/sample/{folder}' for folder in folders]
  for kind in kinds:
    command = [sys.executable, '-m', 'tasks.build', kind, '--images', *images]
    command += ['--output', str(data_dir / 'sample' / kind)]
    command += ['--split', f'train={",".join(_TRAIN_FILES[kind])}']
    subprocess.run(command, cwd=ROOT, check=True)
