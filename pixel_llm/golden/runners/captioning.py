"""Golden runners of the caption metrics.

`eval_densecap`, `eval_loca`, `eval_captions`. One METEOR program serves a case.
"""

from collections.abc import Mapping, Sequence
import itertools
from typing import Any

import numpy as np

from pixel_llm.evaluation import boxes as boxes_lib
from pixel_llm.evaluation import captions as captions_lib
from pixel_llm.evaluation import densecap
from pixel_llm.evaluation import location_captions
from pixel_llm.evaluation import meteor as meteor_lib
from pixel_llm.evaluation import ptb_tokenizer
from pixel_llm.evaluation import regions
from pixel_llm.golden.case import Case

# The figures `meteor_in_720` scale both sides of the comparison to this.
_LONG_SIDE = 720

_Arrays = dict[str, np.ndarray]


def _named(prefix: str, values: Mapping[str, Any]) -> _Arrays:
  return {f'{prefix}/{k}': np.asarray(v) for k, v in values.items()}


def _by_picture(
    document: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> dict[int, list[Mapping[str, Any]]]:
  """Groups rows by picture; a picture may have none."""
  grouped = {image['id']: [] for image in document['dataset']['images']}
  for row in rows:
    grouped[row['image_id']].append(row)
  return grouped


def _boxes(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
  """Corners of COCO boxes."""
  boxes = np.asarray([row['bbox'] for row in rows], np.float64)
  return boxes_lib.xywh_to_xyxy(boxes.reshape(-1, 4))


def _scaled(document: Mapping[str, Any], truth, detections):
  """Both sides with the long side of every picture at 720 pixels."""
  scales = {
      image['id']: _LONG_SIDE / max(image['height'], image['width'])
      for image in document['dataset']['images']
  }
  return (
      {
          name: [
              regions.Region(region.box * scales[name], region.captions)
              for region in found
          ]
          for name, found in truth.items()
      },
      {
          name: densecap.Detections(
              found.boxes * scales[name], found.scores, found.captions
          )
          for name, found in detections.items()
      },
  )


def run_densecap(case: Case) -> _Arrays:
  """Merged regions, METEOR of single pairs, and mAP in five settings."""
  document = case.document
  truth = {
      name: regions.merge_regions(_boxes(rows), [r['caption'] for r in rows])
      for name, rows in _by_picture(
          document, document['dataset']['annotations']
      ).items()
  }
  detections = {
      name: densecap.Detections(
          _boxes(rows),
          np.asarray([row['score'] for row in rows]),
          [row['caption'] for row in rows],
      )
      for name, rows in _by_picture(document, document['predictions']).items()
  }
  pairs = document['meteor_pairs']
  with meteor_lib.Meteor() as meteor:
    scored = meteor(
        [candidate for (candidate,) in pairs['candidates'].values()],
        list(pairs['references'].values()),
    )
    in_720 = _scaled(document, truth, detections)
    scores = {
        'no_meteor': densecap.densecap_scores(truth, detections, None),
        'meteor': densecap.densecap_scores(truth, detections, meteor),
        'meteor_in_720': densecap.densecap_scores(*in_720, meteor),
        # The original's name for not counting them.
        'meteor_keep_empty': densecap.densecap_scores(
            truth, detections, meteor, count_empty=False
        ),
        'no_meteor_keep_empty': densecap.densecap_scores(
            truth, detections, None, count_empty=False
        ),
    }
  num_regions = sum(len(found) for found in truth.values())
  outputs = {
      'metric/meteor_pairs/scores': scored.pairs,
      'metric/meteor_pairs/mean': np.asarray(scored.corpus),
  }
  for setting, values in scores.items():
    values = {**values, 'boxes after merging': num_regions}
    outputs |= _named(f'metric/{setting}', values)
  for name, found in truth.items():
    prefix = f'metric/merged_targets/{name}'
    if not found:
      outputs[prefix] = np.zeros(0)
    for number, region in enumerate(found):
      row = {
          'bbox': boxes_lib.xyxy_to_xywh(region.box),
          'captions': region.captions,
      }
      outputs |= _named(f'{prefix}/{number}', row)
  return outputs


def _located(
    examples: Sequence[Mapping[str, Any]], **merging: bool
) -> location_captions.LocatedCaptions:
  """Prompts numbered over all pictures, padding left out."""
  located = location_captions.LocatedCaptions()
  numbers = itertools.count()
  seen = set()
  for example in examples:
    target, prediction = example['target'], example['prediction']
    if target['image/id'] in seen:
      continue
    seen.add(target['image/id'])
    boxes = boxes_lib.boxes_image_to_orig(
        np.asarray(target['boxes'], np.float64),
        target['size'],
        target['orig_size'],
    )
    located.add_picture(
        [next(numbers) if box.any() else None for box in boxes],
        prediction['captions'],
        target['captions'],
        boxes,
        **merging,
    )
  return located


def run_loca(case: Case) -> _Arrays:
  """Scores of captions by place; merged as the original did, by mistake."""
  settings = {
      'plain': {},
      'merged': {'merge': True, 'corners_from_sizes': True},
  }
  outputs = {}
  with meteor_lib.Meteor() as meteor:
    for setting, merging in settings.items():
      located = _located(case.document['examples'], **merging)
      corpus = located.scores(meteor=meteor).corpus
      values = {
          'ROUGE_L': corpus['ROUGE_L'],
          'CIDEr': corpus['CIDEr'],
          'BLEU-4': [corpus[f'Bleu_{n}'] for n in range(1, 5)],
          'Meteor': corpus['METEOR'],
      }
      outputs |= _named(f'metric/{setting}', values)
      prefix = f'metric/pairs/{setting}_pairs'
      for number, name in enumerate(located.candidates):
        outputs |= _named(
            f'{prefix}/predictions/{number}',
            {'id': float(name), 'caption': located.candidates[name]},
        )
        outputs |= _named(
            f'{prefix}/references/{number}',
            {'id': float(name), 'captions': located.references[name]},
        )
      outputs |= _tokenized(
          f'{prefix}/tokenized_',
          {name: [text] for name, text in located.candidates.items()},
          located.references,
      )
  return outputs


def _tokenized(
    prefix: str,
    candidates: Mapping[Any, Sequence[str]],
    references: Mapping[Any, Sequence[str]],
) -> _Arrays:
  """Tokens of all texts, by the name of the prompt or picture."""
  outputs = {}
  for kind, texts in (('predictions', candidates), ('references', references)):
    tokens = iter(ptb_tokenizer.tokenize(sum(map(list, texts.values()), [])))
    for name, rows in texts.items():
      outputs[f'{prefix}{kind}/{name}'] = np.asarray(
          list(itertools.islice(tokens, len(rows)))
      )
  return outputs


def run_captions(case: Case) -> _Arrays:
  """Scores of image captions, of all and of each; empty texts are padding."""
  candidates: dict[int, list[str]] = {}
  references: dict[int, list[str]] = {}
  for example in case.document['examples']:
    candidates.setdefault(example['id'], [example['prediction']])
    texts = [text for text in example['captions'] if text]
    references.setdefault(example['id'], texts)
  scores = captions_lib.caption_scores(
      [text for (text,) in candidates.values()], list(references.values())
  )
  return {
      **_named('metric', scores.corpus),
      'metric/cider_per_image': scores.cider,
      'metric/meteor_per_image': scores.meteor,
      **_tokenized('metric/tokenized_', candidates, references),
  }


RUNNERS = {
    'eval_captions': run_captions,
    'eval_densecap': run_densecap,
    'eval_loca': run_loca,
}
