"""State dicts: flatten, merge, and rename parameters between models."""

import collections
from collections.abc import Mapping, Sequence
import difflib
import re
from typing import Any

from absl import logging
from flax import traverse_util

# What a tensorstore spec has at least; a module may own a parameter `driver`.
_SPEC_KEYS = frozenset({'driver', 'kvstore', 'metadata'})


def tensorstore_leaf(_: Any, value: Any) -> bool:
  """Tells whether a node of a state dict is a tensorstore spec, so a leaf."""
  return isinstance(value, Mapping) and _SPEC_KEYS <= set(value)


def flatten_state_dict(
    state_dict: Mapping[str, Any], keep_empty_nodes: bool = False
) -> dict[str, Any]:
  """Flattens nested dicts to one with slashes: `{'a': {'b': 1}}` → `a/b`.

  Args:
    state_dict: nested dicts; tensorstore specs count as leaves.
    keep_empty_nodes: keeps empty dicts, as `traverse_util.empty_node`.

  Returns:
    The flat dict.
  """
  return traverse_util.flatten_dict(
      state_dict,
      keep_empty_nodes=keep_empty_nodes,
      is_leaf=tensorstore_leaf,
      sep='/',
  )


def _unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  return traverse_util.unflatten_dict(flat, sep='/')


def get_name_tree(
    state_dict: Mapping[str, Any], keep_empty_nodes: bool = False
) -> dict[str, Any]:
  """Returns the tree with each leaf replaced by its name, as in `a/b/c`."""
  flat = flatten_state_dict(state_dict, keep_empty_nodes)
  return _unflatten({name: name for name in flat})


def intersect_state(
    state_dict: Mapping[str, Any], intersect_state_dict: Mapping[str, Any]
) -> dict[str, Any]:
  """Keeps the leaves of the first state that the second one has as well."""
  flat = flatten_state_dict(state_dict)
  other = flatten_state_dict(intersect_state_dict)
  for name in flat.keys() - other.keys():
    logging.warning('Dropped %s: only in the first state.', name)
  return _unflatten({k: v for k, v in flat.items() if k in other})


def merge_state(
    state_dict: Mapping[str, Any],
    merge_state_dict: Mapping[str, Any],
    overwrite: bool = False,
) -> dict[str, Any]:
  """Adds the second state's leaves to the first.

  Args:
    state_dict: the state to complete.
    merge_state_dict: the leaves to add.
    overwrite: whether the second state wins where both have a leaf.

  Returns:
    The union.
  """
  first = flatten_state_dict(state_dict)
  second = flatten_state_dict(merge_state_dict)
  merged = {**first, **second} if overwrite else {**second, **first}
  return _unflatten(merged)


def apply_assignment_map(
    ckpt_optimizer_state: Mapping[str, Any],
    optimizer_state: Mapping[str, Any],
    assignment_map: Sequence[tuple[str | re.Pattern[str], str | None]],
    require_all_rules_match: bool = True,
    *,
    is_resuming: bool = False,
) -> Mapping[str, Any]:
  r"""Renames the parameters of a checkpoint to those of a model.

  Example: the rule `(r'target/decoder/(.*)', r'target/dec/\1')` reads the
  model's decoder from the checkpoint's `dec`.

  Args:
    ckpt_optimizer_state: state dict of the checkpoint.
    optimizer_state: state dict of the model; only its names matter.
    assignment_map: pairs of a pattern that matches a model's whole name, and
      the checkpoint's name with groups filled in, or None to leave the
      parameter out. The first match wins. Several names may share a source.
    require_all_rules_match: whether a rule that matches nothing is an error.
    is_resuming: True returns the checkpoint unchanged: a run that resumes
      reads its own names.

  Returns:
    The checkpoint under the model's names. Leaves without a rule keep their
    name; those that the model does not know go once a rule has used them.

  Raises:
    ValueError: for an absent source, or an unused rule.
  """
  if is_resuming:
    return ckpt_optimizer_state
  ckpt_flat = flatten_state_dict(ckpt_optimizer_state)
  result: dict[str, Any] = {}
  mapped, used_sources = set(), set()
  uses = collections.Counter()
  model_names = flatten_state_dict(optimizer_state)
  for name in model_names:
    for number, (pattern, template) in enumerate(assignment_map):
      match = re.fullmatch(pattern, name)
      if match is None:
        continue
      uses[number] += 1
      mapped.add(name)
      if template is None:
        break
      source = match.expand(template)
      if source not in ckpt_flat:
        raise ValueError(
            f'Parameter {name!r} is mapped to {source!r} by'
            f' {_pattern_text(pattern)!r}, but the checkpoint has no such'
            f' parameter; nearest: {_nearest(source, ckpt_flat)}.'
        )
      result[name] = ckpt_flat[source]
      used_sources.add(source)
      break
  unused = []
  for number, (pattern, template) in enumerate(assignment_map):
    if not uses[number]:
      unused.append(_pattern_text(pattern))
    elif template is None:
      logging.info(
          'Assignment map: %r leaves out %d of %d arrays.',
          _pattern_text(pattern),
          uses[number],
          len(model_names),
      )
  if unused and require_all_rules_match:
    raise ValueError(
        f'Unused patterns in `assignment_map`: {unused}. No parameter of the'
        ' model has such a name; remove them or mend the pattern.'
    )
  for name, value in ckpt_flat.items():
    is_free = name in model_names or name not in used_sources
    if name not in mapped and is_free:
      result[name] = value
  return _unflatten(result)


def _pattern_text(pattern: str | re.Pattern[str]) -> str:
  return pattern if isinstance(pattern, str) else pattern.pattern


def _nearest(name: str, known: Mapping[str, Any]) -> list[str]:
  return difflib.get_close_matches(name, known, n=3) or sorted(known)[:3]
