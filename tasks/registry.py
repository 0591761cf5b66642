"""The tasks by name, the folders they read, and what builds these folders.

Each is there twice: `<name>` in T5's pieces, `<name>_bert` in BERT's.
"""

import seqio

from tasks import coco_captions
from tasks import llava
from tasks import localized_narratives
from tasks import refcoco
from tasks import sources
from tasks import variants
from tasks import visual_genome
from tasks import vocabularies

_BUILD = 'python -m tasks.build'
_REFCOCO = f'{_BUILD} refcoco'
_LN = f'{_BUILD} ln'
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


def _more_sample_tasks() -> None:
  """The pictures in the repository, in the layouts of the other sets."""
  root = '<data>/sample'
  visual_genome.add_region_tasks(
      'vg_sample',
      {
          'train': 'sample/vg/train',
          'validation': 'sample/vg/train',
          'test': 'sample/vg/test',
      },
      f'{_BUILD} vg --images {_SAMPLE_IMAGES} --output {root}/vg'
      f' --split train={_SAMPLE}/vg/train.json'
      f' --split test={_SAMPLE}/vg/test.json',
      # Nearer to 1 than `vg`: what the tiny network sees is small already.
      scale_range=(0.75, 1.25),
  )
  coco_captions.add_caption_task(
      'coco_sample',
      {
          'train': 'sample/coco_captions/train',
          'validation': 'sample/coco_captions/train',
          'other_val': 'sample/coco_captions/val',
      },
      f'{_BUILD} coco_captions --images {_SAMPLE_IMAGES}'
      f' --output {root}/coco_captions'
      f' --split train={_SAMPLE}/coco_captions/captions_train2017.json'
      f' --split val={_SAMPLE}/coco_captions/captions_val2017.json',
  )
  llava.add_conversation_task(
      'llava_sample',
      {'train': 'sample/llava/train', 'validation': 'sample/llava/train'},
      f'{_BUILD} llava --images {_SAMPLE} --output {root}/llava'
      f' --split train={_SAMPLE}/llava/llava_v1_5_mix665k.json',
  )
  for source, images in (
      ('coco', _SAMPLE_IMAGES),
      ('vg', f'{_SAMPLE}/VG_100K'),
  ):
    refcoco.add_refexp_task(
        f'mixed_{source}_sample',
        {
            'train': f'sample/mixed_{source}/train',
            'validation': f'sample/mixed_{source}/train',
        },
        f'{_BUILD} uninext --data_source {source} --images {images}'
        f' --output {root}/mixed_{source}'
        f' --split train={_SAMPLE}/uninext/mixed_instances.json#train',
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
  _full_lists_of_uninext()
  _full_regions_and_captions()


def _full_lists_of_uninext() -> None:
  """What the referring recipes train on, for their views and the joint ones."""
  command = f'{_BUILD} uninext --output <data>/uninext'
  for name, options, part in (
      (
          'mixed_coco',
          '--data_source coco --images <coco>/train2014',
          'mixed/instances.json#train',
      ),
      (
          'mixed_vg',
          '--data_source vg --images <vg>/images',
          'mixed/instances.json#train',
      ),
      (
          'flickr30k',
          '--data_source flickr --images <flickr30k>',
          'flickr30k/instances.json#train',
      ),
  ):
    build = f'{command} {options} --split {name}={part}'
    splits = {'train': f'uninext/{name}'}
    refcoco.add_refexp_task(
        name, splits, build, scale_range=refcoco.SCALE_RANGE
    )


def _full_regions_and_captions() -> None:
  """Visual Genome, COCO captions and LLaVA."""
  build = (
      f'{_BUILD} vg --images <vg>/images --output <data>/vg'
      ' --split train=train.json --split test=test.json'
  )
  splits = {'train': 'vg/train', 'validation': 'vg/test'}
  visual_genome.add_region_tasks('vg', splits, build)
  karpathy = 'dataset_coco.json'
  build = (
      f'{_BUILD} coco_captions --images <coco>/train2014 <coco>/val2014'
      f' --output <data>/coco_captions --split train={karpathy}#train+restval'
      f' --split val={karpathy}#val --split test={karpathy}#test'
  )
  splits = {
      'train': 'coco_captions/train',
      'validation': 'coco_captions/val',
      'test': 'coco_captions/test',
  }
  coco_captions.add_caption_task(
      'coco', splits, build, scale_range=coco_captions.SCALE_RANGE
  )
  llava.add_conversation_task(
      'llava',
      {'train': 'llava/train'},
      f'{_BUILD} llava --images <image root> --output <data>/llava'
      ' --split train=llava_v1_5_mix665k.json',
  )


def _bert_tasks() -> None:
  """All of them once more, in the word pieces of the BERT head."""
  for name in list(seqio.TaskRegistry.names()):
    task = seqio.TaskRegistry.get(name)
    if isinstance(task.source, sources.ArrayRecordSource):
      variants.in_vocabulary(
          name, vocabularies.bert_vocabulary(), variants.BERT
      )


_sample_tasks()
_more_sample_tasks()
_full_tasks()
_bert_tasks()
