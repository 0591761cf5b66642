"""BERT and GIT of Hugging Face `transformers`: their names and ours.

GIT's decoder is a BERT encoder over image and text with an output matrix, so
one table serves both. What BERT has and GIT's decoder has not:

    token types     a text has one type; its vector joins the position table
    pooler, `cls.`  the heads of BERT's own training are left out

RefA: huggingface/transformers `models/bert/modeling_bert.py`,
`models/git/modeling_git.py`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pixel_llm.pretrained import name_rules
from t5x import checkpoint_importer

_Rule = name_rules.Rule
_LeftOut = name_rules.LeftOut

_WORDS = 'embeddings.word_embeddings.weight'
_POSITIONS = 'embeddings.position_embeddings.weight'
_TYPES = 'embeddings.token_type_embeddings.weight'
_OUTPUT = 'output.weight'
_PREFIXES = ('bert.', 'git.')

# Dense layers of a layer and its norms; the same names on both sides.
_DENSE = (
    'attention/self/query',
    'attention/self/key',
    'attention/self/value',
    'attention/output/dense',
    'intermediate/dense',
    'output/dense',
)
_NORMS = ('attention/output/LayerNorm', 'output/LayerNorm')


def _norm(ours: str, theirs: str) -> list[name_rules.Rule]:
  return [
      _Rule(f'{ours}/scale', f'{theirs}.weight'),
      _Rule(f'{ours}/bias', f'{theirs}.bias'),
  ]


def _dense(ours: str, theirs: str) -> list[name_rules.Rule]:
  return [
      _Rule(f'{ours}/kernel', f'{theirs}.weight', name_rules.LINEAR),
      _Rule(f'{ours}/bias', f'{theirs}.bias'),
  ]


def _rules() -> list[name_rules.Rule]:
  rules = [
      _Rule('embedding/words/embedding', _WORDS),
      _Rule('embedding/positions/embedding', _POSITIONS),
      *_norm('embedding/layer_norm', 'embeddings.LayerNorm'),
      *_dense('output', 'output'),
      *_dense('visual_projection.0', 'visual_projection.visual_projection.0'),
      *_norm('visual_projection.1', 'visual_projection.visual_projection.1'),
  ]
  ours, theirs = 'transformer/encoder/layer.{i}', 'encoder.layer.{i}'
  for name in _DENSE:
    rules += _dense(f'{ours}/{name}', f'{theirs}.{name.replace("/", ".")}')
  for name in _NORMS:
    rules += _norm(f'{ours}/{name}', f'{theirs}.{name.replace("/", ".")}')
  return rules


TABLE = name_rules.Table(
    rules=_rules(),
    left_out=(
        _LeftOut(r'embeddings\.position_ids', 'counts from 0, no weight'),
        _LeftOut(
            r'embeddings\.token_type_embeddings\.weight',
            'row 0, the type of every token, is added to the positions',
        ),
        _LeftOut(r'pooler\..*', "GIT's decoder has no pooler"),
        _LeftOut(r'cls\..*', "heads of BERT's training; the output is GIT's"),
        _LeftOut(r'image_encoder\..*', 'the image tower comes from elsewhere'),
        _LeftOut(r'img_temporal_embedding\..*', 'for frames of a video'),
    ),
)


def is_bert(names: Mapping[str, Any]) -> bool:
  """Tells whether these are the names of a BERT or GIT of `transformers`."""
  return any(name.endswith(_WORDS) for name in names) and any(
      '.attention.self.query.' in name for name in names
  )


def to_ours(theirs: Mapping[str, Any]) -> name_rules.Result:
  """Gives the parameters of a BERT or GIT the names of the BERT text head.

  Args:
    theirs: arrays, lazy or not, by name.

  Returns:
    The parameters below `textual`; GIT's output matrix is the word table where
    the file holds it once.
  """
  old = {'.gamma': '.weight', '.beta': '.bias'}  # names of TensorFlow's BERT
  plain, their_names = {}, {}
  for name, array in theirs.items():
    new = name
    for prefix in _PREFIXES:
      new = new.removeprefix(prefix)
    for ending, ending_now in old.items():
      if new.endswith(f'LayerNorm{ending}'):
        new = new.removesuffix(ending) + ending_now
    plain[new], their_names[new] = array, name
  is_git = any(name.startswith('git.') for name in theirs)
  if is_git and _OUTPUT not in plain:
    plain[_OUTPUT] = plain[_WORDS]
    their_names[_OUTPUT] = their_names[_WORDS]
  if _TYPES in plain:
    plain[_POSITIONS] = _with_type(plain[_POSITIONS], plain[_TYPES])
  return TABLE.to_ours(plain).with_sources(their_names)


def to_git(ours: Mapping[str, Any]) -> name_rules.Result:
  """Gives the parameters of a BERT text head GIT's names.

  Args:
    ours: arrays, lazy or not, by name below `textual`.
  """
  result = TABLE.to_theirs(ours)
  return result.with_names(
      lambda name: name if name.startswith('output.') else f'git.{name}'
  )


def _with_type(positions: Any, types: Any) -> checkpoint_importer.LazyArray:
  return checkpoint_importer.LazyArray(
      tuple(positions.shape),
      positions.dtype,
      lambda: np.asarray(positions) + np.asarray(types)[:1],
  )
