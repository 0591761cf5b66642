"""Results of inference as files: JSON lines, chunk by chunk, then in one.

A chunk counts once its mark lies beside it (`….COMPLETED`), and a mark is made
after the file is whole; so does the merged file. Whatever was cut off in between
is written anew.

RefA: google-research/t5x `infer.py` (names and fields that readers rely on).
"""

from collections.abc import Callable, Mapping, Sequence
import json
import os
import shutil
from typing import Any

from etils import epath
import jax
import numpy as np
import seqio
import tensorflow as tf

# Outputs by example, and a tree of auxiliary values with a sequence over the
# examples at each leaf.
Inferences = tuple[Sequence[Any], Mapping[str, Any]]
WriteFn = Callable[..., None]
MergeFn = Callable[[str, str, str, int | None], None]

_SUFFIX = '_pretokenized'
_COMPLETED = '.COMPLETED'


def is_complete(path: str) -> bool:
  """Tells whether a file has its mark."""
  return epath.Path(path + _COMPLETED).exists()


def mark_complete(path: str) -> None:
  """Makes the mark of a file that is whole."""
  epath.Path(path + _COMPLETED).write_text('')


def chunk_path(tmp_dir: str, output_fname: str, chunk: int) -> str:
  """Returns where the results of a chunk are written."""
  return os.path.join(tmp_dir, f'{output_fname}-chunk{chunk:05d}')


def write_inferences_to_file(
    path: str,
    inferences: Inferences,
    task_ds: tf.data.Dataset,
    mode: str,
    vocabulary: seqio.Vocabulary | None = None,
    json_encoder_cls: type[json.JSONEncoder] = seqio.TensorAndNumpyEncoder,
    include_all_inputs: bool = False,
    input_fields_to_include: Sequence[str] | None = None,
    output_ids: bool = False,
) -> None:
  """Writes a line of JSON for each example: its inputs and what came out.

  Args:
    path: the file.
    inferences: ids of tokens (or scores in mode 'score') by example, and
      auxiliary values.
    task_ds: the examples, in the same order.
    mode: 'predict', 'score' or 'predict_with_aux'.
    vocabulary: turns ids into text; not needed for scores.
    json_encoder_cls: writes what JSON has no form for.
    include_all_inputs: whether all features are written, and not only the
      texts before they were tokenized (`…_pretokenized`).
    input_fields_to_include: features to write instead, each with its text.
    output_ids: whether ids are written beside the text, up to the padding.

  Raises:
    ValueError: for an unknown mode, a missing vocabulary, or both ways to
      choose the inputs at once.
  """
  if mode not in ('predict', 'score', 'predict_with_aux'):
    raise ValueError(
        f"`mode` must be 'predict', 'score' or 'predict_with_aux', got {mode!r}."
    )
  if mode != 'score' and vocabulary is None:
    raise ValueError(f'Mode {mode!r} needs a `vocabulary`.')
  if include_all_inputs and input_fields_to_include is not None:
    raise ValueError(
        'include_all_inputs and input_fields_to_include exclude each other.'
    )

  def is_written(name: str) -> bool:
    if input_fields_to_include is None:
      return include_all_inputs or name.endswith(_SUFFIX)
    return name.removesuffix(_SUFFIX) in input_fields_to_include or (
        name in input_fields_to_include
    )

  outputs, aux_values = inferences
  with epath.Path(path).open('w') as file:
    for index, example in enumerate(task_ds.as_numpy_iterator()):
      output = outputs[index]
      row: dict[str, Any] = {
          'inputs': {
              name: _plain(value)
              for name, value in example.items()
              if is_written(name)
          }
      }
      if mode == 'score':
        row['score'] = _plain(output)
      else:
        text = vocabulary.decode_tf(tf.constant(output)).numpy()
        row['prediction'] = _plain(text)
        if output_ids:
          row['prediction_tokens'] = _without_padding(_plain(output))
      if mode == 'predict_with_aux' or aux_values:
        row['aux'] = _row(aux_values, index)
      file.write(json.dumps(row, cls=json_encoder_cls) + '\n')


def _row(aux_values: Any, index: int) -> Any:
  """Returns an example's part of the auxiliary values."""
  return jax.tree.map(
      lambda values: _plain(values[index]),
      aux_values,
      is_leaf=lambda node: isinstance(node, (list, np.ndarray)),
  )


def _plain(value: Any) -> Any:
  """Returns a value as JSON knows it: text, numbers, lists."""
  if isinstance(value, (np.ndarray, np.generic, jax.Array)):
    value = np.asarray(value)
    # JSON knows no half precision.
    if value.dtype.kind == 'V':
      value = value.astype(np.float32)
    value = value.tolist()
  if isinstance(value, bytes):
    return value.decode('utf-8')
  if isinstance(value, (list, tuple)):
    return [_plain(item) for item in value]
  return value


def _without_padding(ids: list[Any]) -> list[Any]:
  """Returns ids up to the first 0, for each decode if there are several."""
  if ids and isinstance(ids[0], list):
    return [_without_padding(one) for one in ids]
  return ids[: ids.index(0)] if 0 in ids else ids


def merge_chunks_to_file(
    output_dir: str, output_fname: str, tmp_dir: str, step: int | None
) -> None:
  """Puts the results of all chunks into one file, in order.

  Args:
    output_dir: where it is written.
    output_fname: its name, with which the names of the chunks start.
    tmp_dir: where the chunks lie.
    step: the checkpoint's step; for other functions of this kind.

  Raises:
    FileNotFoundError: if there are no chunks, or one is missing.
  """
  del step
  chunks = sorted(
      os.fspath(path)
      for path in epath.Path(tmp_dir).glob(f'{output_fname}-chunk*')
      if not path.name.endswith(_COMPLETED)
  )
  if not chunks:
    raise FileNotFoundError(
        f'No chunk results found in {tmp_dir}. Did the input hold any example?'
    )
  wanted = [
      chunk_path(tmp_dir, output_fname, chunk) for chunk in range(len(chunks))
  ]
  if chunks != wanted:
    missing = sorted(set(wanted) - set(chunks))
    raise FileNotFoundError(f'Results are missing: {", ".join(missing)}.')
  output = epath.Path(output_dir) / output_fname
  # Under another name until it is whole.
  merged = epath.Path(output_dir) / f'{output_fname}.new'
  with merged.open('wb') as file:
    for chunk in chunks:
      with epath.Path(chunk).open('rb') as part:
        shutil.copyfileobj(part, file)
  merged.replace(output)
