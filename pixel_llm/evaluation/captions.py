"""Caption scores: BLEU, ROUGE-L, CIDEr, METEOR (RefA).

Candidate and references are tokenized the Penn Treebank way first. CIDEr weighs
words by their frequency in the references of the run, so a number belongs to
its data set; of a single picture it is 0.

RefA: pycocoevalcap 1.2, the scorers of the COCO caption challenge.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
import dataclasses
import itertools
from typing import Any

from jaxtyping import Float
import numpy as np

from pixel_llm.evaluation import java
from pixel_llm.evaluation import meteor as meteor_lib
from pixel_llm.evaluation import ptb_tokenizer

_NUM_BLEU = 4


@dataclasses.dataclass(frozen=True)
class CaptionScores:
  """Scores of captions.

  Attributes:
    corpus: of all captions: `CIDEr`, `Bleu_1` to `Bleu_4`, `ROUGE_L`, `METEOR`.
    cider: of each caption.
    meteor: of each caption.
  """

  corpus: Mapping[str, float]
  cider: Float[np.ndarray, 'n']
  meteor: Float[np.ndarray, 'n']


def caption_scores(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    tokenize: Callable[[Sequence[str]], list[str]] = ptb_tokenizer.tokenize,
    meteor: meteor_lib.Scorer = meteor_lib.meteor_scores,
) -> CaptionScores:
  """Scores captions.

  Args:
    candidates: one a picture or region.
    references: for each candidate, one or more.
    tokenize: makes tokens of texts.
    meteor: scores texts.

  Returns:
    The scores.

  Raises:
    ValueError: if there is nothing to score, or a candidate has no reference.
    RuntimeError: if Java or pycocoevalcap is missing, or a program fails.
  """
  if not candidates:
    raise ValueError(
        'No caption was evaluated; is the evaluation split empty, or'
        ' `num_examples` 0?'
    )
  for number, texts in enumerate(references):
    if not texts:
      raise ValueError(
          f'Caption {number} ({candidates[number]!r}) has no reference.'
      )
  tokens = iter(tokenize([*candidates, *itertools.chain(*references)]))
  candidates = list(itertools.islice(tokens, len(candidates)))
  references = [list(itertools.islice(tokens, len(r))) for r in references]
  # The scorers index captions by name, and take one candidate as a list.
  truth = dict(enumerate(references))
  texts = {number: [text] for number, text in enumerate(candidates)}
  bleu, cider, rouge = _scorers()
  bleus, _ = bleu.compute_score(truth, texts, verbose=0)
  cider_score, ciders = cider.compute_score(truth, texts)
  rouge_score, _ = rouge.compute_score(truth, texts)
  by_meteor = meteor(candidates, references)
  corpus = {
      'CIDEr': float(cider_score),
      # One name each: the original put a list of four under one.
      **{f'Bleu_{n}': float(score) for n, score in enumerate(bleus, 1)},
      'ROUGE_L': float(rouge_score),
      'METEOR': by_meteor.corpus,
  }
  return CaptionScores(corpus, np.asarray(ciders), by_meteor.pairs)


def _scorers() -> tuple[Any, Any, Any]:
  """The scorers that need no Java: BLEU, CIDEr, ROUGE-L."""
  # Tells what to install where the package is missing.
  java.find_package()
  from pycocoevalcap.bleu import bleu
  from pycocoevalcap.cider import cider
  from pycocoevalcap.rouge import rouge

  return bleu.Bleu(_NUM_BLEU), cider.Cider(), rouge.Rouge()


def caption_metrics(
    targets: Sequence[Mapping[str, Any]], predictions: Sequence[Sequence[str]]
) -> dict[str, float]:
  """Scores a whole data set of image captions; a SeqIO metric function.

  The texts of a picture are its references; an empty one is padding. A picture
  with more texts than an example holds comes as several examples: their texts
  are joined, and what the model wrote first counts. The original left out a
  picture without any reference, and so does this.

  Args:
    targets: a dict an example with `image_id`, `prompt_ids` and `texts`.
    predictions: for each example the captions of its prompts; the first one
      is taken.

  Returns:
    As `CaptionScores.corpus`.
  """
  references: dict[Hashable, dict[Hashable, str]] = {}
  candidates: dict[Hashable, str] = {}
  for target, captions in zip(targets, predictions):
    name = target['image_id']
    rows = references.setdefault(name, {})
    for prompt, text in zip(target['prompt_ids'], target['texts']):
      if text:
        rows.setdefault(prompt, text)
    candidates.setdefault(name, captions[0])
  names = [name for name, rows in references.items() if rows]
  return dict(
      caption_scores(
          [candidates[name] for name in names],
          [list(references[name].values()) for name in names],
      ).corpus
  )
