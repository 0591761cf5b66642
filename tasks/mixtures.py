"""Mixtures of tasks, by the recipe that draws from them."""

import seqio

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


def _add_refcoco_evaluation(kind: str) -> None:
  """All splits in one name; `kind` is `refexp` (boxes) or `refseg` (masks)."""
  seqio.MixtureRegistry.add(
      f'refcoco_evaluation_{kind}',
      [(f'{split}_{kind}', 1.0) for split in REFCOCO_EVALUATION],
  )


_add_refcoco_evaluation('refexp')
_add_refcoco_evaluation('refseg')
