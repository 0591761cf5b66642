"""Tasks and mixtures in other vocabularies than T5's.

Every task is registered with T5's pieces, and once more as `<name>_bert` with
BERT's word pieces, for the recipes with the BERT head. Gin names any other
vocabulary itself:

  from tasks import variants
  MIXTURE_OR_TASK_NAME = @train/variants.in_vocabulary()
  train/variants.in_vocabulary:
    name = 'ln_coco_trace'
    vocabulary = %VOCABULARY
    suffix = 'mine'
"""

import dataclasses

import seqio

from tasks import vocabularies

BERT = 'bert'


def in_vocabulary(name: str, vocabulary: seqio.Vocabulary, suffix: str) -> str:
  """Registers a task, or a mixture with its tasks, in another vocabulary.

  Args:
    name: of the registered task or mixture; all but its vocabulary is kept.
    vocabulary: of the text and of the context.
    suffix: what tells the new names from the old ones.

  Returns:
    `<name>_<suffix>`. Asked again, it registers nothing anew.

  Raises:
    ValueError: if that name is taken, with another vocabulary.
  """
  vocabularies.begin_end_ids(vocabulary)  # Only these two kinds are known.
  new_name = f'{name}_{suffix}'
  known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
  if new_name in known:
    features = seqio.get_mixture_or_task(new_name).output_features
    if features['text_tokens'].vocabulary != vocabulary:
      raise ValueError(
          f'{new_name!r} is registered with another vocabulary; give another'
          f' suffix than {suffix!r}.'
      )
    return new_name
  old = seqio.get_mixture_or_task(name)
  if isinstance(old, seqio.Mixture):
    rates = [
        (in_vocabulary(task.name, vocabulary, suffix), old.get_rate(task))
        for task in old.tasks
    ]
    seqio.MixtureRegistry.add(new_name, rates)
    return new_name
  features = {
      key: dataclasses.replace(feature, vocabulary=vocabulary)
      if key.endswith('_tokens')
      else feature
      for key, feature in old.output_features.items()
  }
  new = old.replace(name=new_name, output_features=features)
  seqio.TaskRegistry.add_provider(new_name, new)
  return new_name
