"""A SeqIO task for files of examples, made on the spot."""

from collections.abc import Mapping, Sequence
import functools
import hashlib

import seqio
import tensorflow as tf

_READERS = {'tfrecord': tf.data.TFRecordDataset}


def create_task_from_tfexample_file(
    paths: str | Sequence[str],
    file_type: str,
    inputs_key: str,
    targets_key: str | None,
    features: Mapping[str, seqio.Feature],
    task_id: str | None = None,
) -> str:
  """Registers a task for files of `tf.train.Example`s with texts.

  Args:
    paths: the files; patterns may be among them.
    file_type: 'tfrecord'.
    inputs_key: the feature of an example that holds the input text (UTF-8).
    targets_key: that of the target text, None if there is none.
    features: 'inputs' and 'targets', with their vocabularies.
    task_id: the end of the task's name; None makes one from paths and keys, the
      same every time.

  Returns:
    The name of the task, `infer_<id>`. Its only split is `infer`.

  Raises:
    ValueError: if no file is there, or for an unknown type.
  """
  paths = [paths] if isinstance(paths, str) else list(paths)
  if file_type not in _READERS:
    raise ValueError(
        f'`file_type` must be one of {sorted(_READERS)}, got {file_type!r}.'
    )
  if not tf.io.gfile.glob(paths):
    raise ValueError(f'No file matches {", ".join(paths) or "an empty list"}.')
  if task_id is None:
    key = ':'.join([*paths, inputs_key, targets_key or ''])
    digest = hashlib.md5(key.encode(), usedforsecurity=False)
    task_id = digest.hexdigest()[:10]
  name = f'infer_{task_id}'
  if name in seqio.TaskRegistry.names():
    # Made before, maybe with other vocabularies.
    seqio.TaskRegistry.remove(name)
  keys = {'inputs': inputs_key}
  if 'targets' in features:
    # Without a key the targets are empty texts.
    keys['targets'] = targets_key
  seqio.TaskRegistry.add(
      name,
      source=seqio.TFExampleDataSource(
          {'infer': paths},
          feature_description={
              key: tf.io.FixedLenFeature([], tf.string)
              for key in keys.values()
              if key
          },
          reader_cls=_READERS[file_type],
      ),
      preprocessors=[
          functools.partial(seqio.preprocessors.rekey, key_map=keys),
          seqio.preprocessors.tokenize_and_append_eos,
      ],
      output_features=features,
  )
  return name
