"""Mixtures of tasks, by the recipe that draws from them.

Each is there twice: `<name>` in T5's pieces, `<name>_bert` in BERT's.
"""

import seqio

from tasks import variants
from tasks import vocabularies

# Every published row of referring segmentation; the RefCOCO family's splits.
REFCOCO_EVALUATION = (
    'refcoco_val',
    'refcoco_testA',
    'refcoco_testB',
    'refcocoplus_val',
    'refcocoplus_testA',
    'refcocoplus_testB',
    'refcocog_val',
    'refcocog_test',
)


_EVALUATION = {
    f'refcoco_evaluation_{kind}': [
        (f'{split}_{kind}', 1.0) for split in REFCOCO_EVALUATION
    ]
    for kind in ('refexp', 'refseg')  # Boxes; boxes and masks.
}

# What the recipes train on (arXiv 2312.09237, Sec. 4.1), with their weights.
# Dense captioning trains on `vg_densecap`, segmentation on
# `refcoco_merged_refseg` alone.
_RECIPES = {
    'pixel_llm_trace': [('coco_caption', 1.0), ('ln_coco_trace', 2.0)],
    'pixel_llm_ref': [
        ('flickr30k_refexp', 1.0),
        ('mixed_coco_refexp', 5.0),
        ('mixed_vg_refexp', 1.0),
    ],
    'pixel_llm_joint': [
        ('coco_caption', 3.0),
        ('ln_coco_trace', 1.0),
        ('flickr30k_refexp', 1.0),
        ('mixed_coco_refexp', 5.0),
        ('mixed_vg_refexp', 1.0),
        ('vg_densecap', 5.0),
        ('llava_conversation', 5.0),
    ],
    'pixel_llm_sample_joint': [
        ('coco_sample_caption', 3.0),
        ('ln_sample_trace', 1.0),
        ('mixed_coco_sample_refexp', 5.0),
        ('mixed_vg_sample_refexp', 1.0),
        ('vg_sample_densecap', 5.0),
        ('llava_sample_conversation', 5.0),
    ],
}

for _name, _tasks in (_EVALUATION | _RECIPES).items():
  seqio.MixtureRegistry.add(_name, _tasks)
  variants.in_vocabulary(_name, vocabularies.bert_vocabulary(), variants.BERT)
