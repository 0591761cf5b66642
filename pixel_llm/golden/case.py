"""One golden case: parameters, inputs and the original's figures (RefA).

A folder of golden cases holds one file a case and a `settings.json` with the
hyper-parameters of every case. In an `.npz` the array names say what they are:
`param/<path>`, `in/<name>`, `out/<name>`, `grad/<path>`. An `eval_*.json` holds
the inputs of a metric and, in the fields of `ANSWER_FIELDS`, its figures; they
become `metric/<path>`:

  {"examples": […], "expected": {"boxes_only": {"P@1": 0.5}}}
  → document['examples'], expected['metric/boxes_only/P@1'] = array(0.5)

Other `.json` files of the folder are attachments of cases, not cases.

RefA: the README of the golden folder.
"""

from collections.abc import Mapping
import dataclasses
import json
import pathlib
import re
from typing import Any

import numpy as np

# Fields of an `eval_*.json` with computed figures (RefA, "Metric files"): the
# names below `expected` stand alone, all others keep their field's name.
ANSWER_FIELDS = (
    'expected',
    'per_example',
    'first_predictions_xywh',
    'cider_per_image',
    'meteor_per_image',
    'merged_targets',
    'tokenized_predictions',
    'tokenized_references',
    'pairs',
    'meteor_pairs/scores',
    'meteor_pairs/mean',
)

# Arrays, by case, that follow from an input which the case does not store.
# Their runners take that input from the figure itself, so these arrays say that
# the code carries it through, not that it finds it.
UNSTORED_INPUTS = {
    # The two image sizes, of which one or the other is chosen.
    'utils': r'out/image_size_(plus|comma)',
    # The name of the picture.
    'io_narratives': r'out/\w+/with_id/image_id',
    'io_pipeline': r'out/\w+/label/image/id',
}


@dataclasses.dataclass(frozen=True)
class Case:
  """A case as read from disk.

  Attributes:
    name: the file's name without its ending, such as `eva02_vit`.
    params: nested parameter tree, the `param/` arrays split at each slash.
    inputs: the `in/` arrays by name, without the prefix.
    expected: all `out/`, `grad/` and `metric/` arrays by full name, prefix
      kept.
    settings: hyper-parameters of this case from `settings.json`.
    document: the parsed file of a `.json` case, else None.
    directory: the folder, for cases that come in several files.
  """

  name: str
  params: Mapping[str, Any]
  inputs: Mapping[str, np.ndarray]
  expected: Mapping[str, np.ndarray]
  settings: Mapping[str, Any]
  document: Any
  directory: pathlib.Path


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Splits keys at each slash: `{'a/b': 1}` becomes `{'a': {'b': 1}}`."""
  tree: dict[str, Any] = {}
  for path, value in flat.items():
    *parents, leaf = path.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = value
  return tree


def _flatten(prefix: str, value: Any) -> dict[str, np.ndarray]:
  """Names every array below a JSON value: a list of numbers is one array."""
  if isinstance(value, dict):
    items = value.items()
  elif isinstance(value, list) and any(
      isinstance(v, (dict, list)) for v in value
  ):
    items = enumerate(value)
  elif isinstance(value, str) or (
      isinstance(value, list) and any(isinstance(v, str) for v in value)
  ):
    return {prefix: np.asarray(value, dtype=np.str_)}
  else:
    # Counts too become floats: 3 and 3.0 are one figure in JSON.
    return {prefix: np.asarray(value, dtype=np.float64)}
  arrays = {}
  for key, child in items:
    arrays |= _flatten(f'{prefix}/{key}', child)
  return arrays


def answers(document: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Collects the figures of a metric case.

  Args:
    document: the parsed `eval_*.json`.

  Returns:
    `metric/<path>` to float64 or string array.
  """
  arrays = {}
  for field in ANSWER_FIELDS:
    value: Any = document
    for part in field.split('/'):
      value = value.get(part) if isinstance(value, dict) else None
    if value is not None:
      prefix = 'metric' if field == 'expected' else f'metric/{field}'
      arrays |= _flatten(prefix, value)
  return arrays


def has_unstored_input(case_name: str, array_name: str) -> bool:
  """Whether a case lacks the input of one of its figures."""
  pattern = UNSTORED_INPUTS.get(case_name)
  return pattern is not None and bool(re.fullmatch(pattern, array_name))


def case_names(directory: str | pathlib.Path) -> list[str]:
  """Lists the cases of a folder: every `.npz` and every `eval_*.json`."""
  directory = pathlib.Path(directory)
  paths = [*directory.glob('*.npz'), *directory.glob('eval_*.json')]
  return sorted(path.stem for path in paths)


def load_settings(directory: pathlib.Path) -> dict[str, Any]:
  """Reads `settings.json`: file name of a case to its hyper-parameters."""
  with open(directory / 'settings.json', encoding='utf-8') as f:
    return json.load(f)


def load_case(directory: str | pathlib.Path, name: str) -> Case:
  """Reads one case of a golden folder.

  Args:
    directory: the golden folder.
    name: the case's file name without its ending.

  Returns:
    The case.

  Raises:
    FileNotFoundError: if the folder has neither `name.npz` nor `name.json`.
    ValueError: if an array's name starts with an unknown prefix.
  """
  directory = pathlib.Path(directory)
  settings = load_settings(directory)
  document_path = directory / f'{name}.json'
  if document_path.exists():
    with open(document_path, encoding='utf-8') as f:
      document = json.load(f)
    return Case(
        name=name,
        params={},
        inputs={},
        expected=answers(document),
        settings=settings.get(document_path.name, {}),
        document=document,
        directory=directory,
    )
  array_path = directory / f'{name}.npz'
  groups: dict[str, dict[str, np.ndarray]] = {
      'param': {},
      'in': {},
      'out': {},
      'grad': {},
  }
  with np.load(array_path) as arrays:
    for key in arrays.files:
      prefix, _, rest = key.partition('/')
      if prefix not in groups:
        raise ValueError(
            f'{array_path}: array {key!r} starts with {prefix!r}; expected one'
            f' of {sorted(groups)}.'
        )
      groups[prefix][rest] = arrays[key]
  expected = {f'out/{k}': v for k, v in groups['out'].items()}
  expected |= {f'grad/{k}': v for k, v in groups['grad'].items()}
  return Case(
      name=name,
      params=nest(groups['param']),
      inputs=groups['in'],
      expected=expected,
      settings=settings.get(array_path.name, {}),
      document=None,
      directory=directory,
  )
