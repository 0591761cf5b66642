"""The tasks by name, the folders they read, and what builds these folders."""

from tasks import localized_narratives
from tasks import refcoco

_REFCOCO = 'python -m tasks.build refcoco'
_LN = 'python -m tasks.build ln'
_SAMPLE = 'tasks/sample'


_SAMPLE_IMAGES = f'{_SAMPLE}/train2017 {_SAMPLE}/val2017 {_SAMPLE}/train2014'
_SAMPLE_NARRATIVES = f'{_SAMPLE}/localized_narratives/coco'


def _sample_tasks() -> None:
  """The pictures in the repository.

  `validation` shows the training pictures again: a model that has learned the
  sample by heart must score there. `real_val` and `other_val` are pictures
  that are not in `train`.
  """
  refcoco.add_refcoco_tasks(
      'refcoco_sample',
      {
          'train': 'sample/refcoco/train',
          'validation': 'sample/refcoco/train',
          'real_val': 'sample/refcoco/real_val',
      },
      f'{_REFCOCO} --images {_SAMPLE_IMAGES} --output <data>/sample/refcoco'
      f' --split train={_SAMPLE}/refcoco/merge_coco_img_safe_train.json --split'
      f' real_val={_SAMPLE}/refcoco/refcocog_umd_val.json',
  )
  shards = [
      f'{_SAMPLE_NARRATIVES}_train_localized_narratives-0000{n}-of-00004.jsonl'
      for n in range(4)
  ]
  localized_narratives.add_trace_task(
      'ln_sample',
      {
          'train': 'sample/ln/train',
          'validation': 'sample/ln/train',
          'other_val': 'sample/ln/val',
      },
      f'{_LN} --images {_SAMPLE_IMAGES} --output <data>/sample/ln'
      f' --split train={",".join(shards)}'
      f' --split val={_SAMPLE_NARRATIVES}_val_localized_narratives.jsonl',
  )


def _full_tasks() -> None:
  """The full sets, below the data directory."""
  command = f'{_REFCOCO} --images <coco>/train2014 --output <data>/refcoco'
  refcoco.add_refcoco_tasks(
      'refcoco_merged',
      {'train': 'refcoco/merge_train'},
      f'{command} --split merge_train=merge_coco_img_safe_train.json',
      scale_range=refcoco.SCALE_RANGE,
  )
  for name, folder, splits in (
      ('refcoco', 'refcoco_unc', ('val', 'testA', 'testB')),
      ('refcocoplus', 'refcocoplus_unc', ('val', 'testA', 'testB')),
      ('refcocog', 'refcocog_umd', ('val', 'test')),
  ):
    for split in splits:
      built = f'{folder}_{split}'
      refcoco.add_refcoco_tasks(
          f'{name}_{split}',
          {'validation': f'refcoco/{built}'},
          f'{command} --split {built}={built}.json',
      )
  localized_narratives.add_trace_task(
      'ln_coco',
      {'train': 'ln_coco/train', 'validation': 'ln_coco/val'},
      f'{_LN} --images <coco>/train2017 <coco>/val2017 --output <data>/ln_coco'
      ' --split train=<coco_train_localized_narratives-0000N-of-00004.jsonl,…>'
      ' --split val=coco_val_localized_narratives.jsonl',
  )


_sample_tasks()
_full_tasks()
