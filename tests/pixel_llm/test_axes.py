from pixel_llm import axes

# The words that T5X's standard rules know.
T5X_AXES = {
    'batch',
    'length',
    'embed',
    'joined_kv',
    'heads',
    'kv',
    'mlp',
    'vocab',
    'layers',
    'relpos_buckets',
    'abspos_buckets',
    'stack',
}


def test_every_name_has_exactly_one_rule():
  names = [v for k, v in vars(axes).items() if k.isupper()]
  names = [n for n in names if isinstance(n, str)]
  ours = [name for name, _ in axes.additional_rules()]
  assert len(set(names)) == len(names)
  assert sorted(ours) == sorted(set(names) - T5X_AXES)
