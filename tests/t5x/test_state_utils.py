import re

from flax import traverse_util
import numpy as np
import pytest

from t5x import state_utils

SPEC = {'driver': 'zarr', 'kvstore': {'path': 'a'}, 'metadata': {'shape': [4]}}


def test_specs_are_leaves_and_parameters_named_driver_are_not():
  assert state_utils.tensorstore_leaf(None, {**SPEC, 'dtype': 'float32'})
  assert not state_utils.tensorstore_leaf(None, {'driver': np.ones(3)})
  flat = state_utils.flatten_state_dict({'a': {'b': 3, 'e': {}}, 'c': SPEC})
  assert flat == {'a/b': 3, 'c': SPEC}
  kept = state_utils.flatten_state_dict({'a': {}}, keep_empty_nodes=True)
  assert kept == {'a': traverse_util.empty_node}


def test_name_tree():
  state = {'a': {'b': {'c': 0}}, 'f': {}}
  assert state_utils.get_name_tree(state) == {'a': {'b': {'c': 'a/b/c'}}}
  assert state_utils.get_name_tree(state, keep_empty_nodes=True)['f'] == 'f'


def test_intersect_and_merge():
  first, second = {'a': {'b': 2, 'c': 3}}, {'a': {'b': 4}, 'd': 5}
  assert state_utils.intersect_state(first, second) == {'a': {'b': 2}}
  merged = state_utils.merge_state(first, second)
  assert merged == {'a': {'b': 2, 'c': 3}, 'd': 5}
  merged = state_utils.merge_state(first, second, overwrite=True)
  assert merged == {'a': {'b': 4, 'c': 3}, 'd': 5}


def test_assignment_maps_with_groups_share_sources_and_keep_the_rest():
  result = state_utils.apply_assignment_map(
      {'old': 1, 'kept': 2, 'x_old': 3},
      {'x_new': {'a': None}, 'new': {'a': {'b': None}, 'c': None}},
      [(re.compile('(.*)new/a.*'), r'\1old'), ('new/c', 'old')],
  )
  assert result == {
      'kept': 2,
      'x_new': {'a': 3},
      'new': {'a': {'b': 1}, 'c': 1},
  }


def test_assignment_to_none_drops_and_first_rule_wins():
  result = state_utils.apply_assignment_map(
      {'target': {'a': 1, 'c': 2}},
      {'target': {'a': 3, 'c': 4}},
      [('target/c', None), ('target/(.*)', r'target/\1')],
  )
  assert result == {'target': {'a': 1}}


def test_assignment_errors_name_rule_and_source():
  with pytest.raises(ValueError, match=r"\['nothing/\.\*'\]"):
    state_utils.apply_assignment_map({'a': 1}, {'a': 0}, [('nothing/.*', 'a')])
  with pytest.raises(ValueError, match=r"nearest: \['encoder'\]"):
    state_utils.apply_assignment_map(
        {'encoder': 1}, {'a': 0}, [('a', 'encodr')]
    )
  unused = state_utils.apply_assignment_map(
      {'a': 1}, {'a': 0}, [('b', 'a')], require_all_rules_match=False
  )
  assert unused == {'a': 1}


def test_resuming_reads_the_checkpoint_as_it_is():
  checkpoint = {'a': 1}
  result = state_utils.apply_assignment_map(
      checkpoint, {'b': 0}, [('b', 'missing')], is_resuming=True
  )
  assert result is checkpoint


def test_a_source_that_the_model_has_too_is_copied_by_name_as_well():
  ckpt = {'target': {'a': 1, 'b': 2, 'old': 3}}
  model = {'target': {'a': 0, 'b': 0, 'twin': 0, 'new': 0}}
  found = state_utils.apply_assignment_map(
      ckpt,
      model,
      [(r'target/twin', r'target/a'), (r'target/new', r'target/old')],
  )
  assert found == {'target': {'a': 1, 'b': 2, 'twin': 1, 'new': 3}}
