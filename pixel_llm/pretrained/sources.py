"""Weights in files of other projects, as names and arrays read on demand.

What a file is shows in its first bytes, whatever it is called. PyTorch's files
are read for weights only: no code of theirs ever runs.
"""

from collections.abc import Mapping
import dataclasses
import json
import os
import pickle
from typing import Any

from etils import epath
from flax import traverse_util
import numpy as np

from pixel_llm import layer_layout
from pixel_llm.pretrained import flax_file
from pixel_llm.pretrained import peft_adapters
from t5x import checkpoint_importer
from t5x import checkpoint_utils
from t5x import checkpoints

_INDEX = 'model.safetensors.index.json'
_ZIP = b'PK\x03\x04'
_PICKLE = b'\x80'
_SAFETENSORS_DTYPES = {
    'F64': 'float64',
    'F32': 'float32',
    'F16': 'float16',
    'BF16': 'bfloat16',
    'I64': 'int64',
    'I32': 'int32',
    'I16': 'int16',
    'I8': 'int8',
    'U8': 'uint8',
    'BOOL': 'bool',
}


@dataclasses.dataclass(frozen=True)
class Source:
  """The content of a file or directory.

  Attributes:
    path: where it lies.
    container: the kind of file, for the report.
    arrays: arrays, read on demand, by name.
    left_out: reason by name for what is no weight.
    config: the `adapter_config.json` of low-rank adapters, else None.
  """

  path: str
  container: str
  arrays: Mapping[str, Any]
  left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
  config: Mapping[str, Any] | None = None


def open_source(path: str) -> Source:
  """Looks into a file or directory; reads names and shapes.

  Raises:
    FileNotFoundError: if there is nothing.
    ValueError: if it has none of the known formats.
  """
  place = epath.Path(path)
  if not place.exists():
    raise FileNotFoundError(f'There is nothing at {path}.')
  if place.is_dir():
    return _open_directory(path)
  with place.open('rb') as file:
    head = file.read(16)
  if head[8:9] == b'{':  # behind the length of the header
    return Source(path, 'safetensors', _safetensors(path))
  if head.startswith((_ZIP, _PICKLE)):
    return _torch(path)
  content = flax_file.read(path)
  if 'version' in content and 'optimizer' in content:
    return _t5x(path, 'T5X msgpack')
  arrays, left_out = flax_file.split(content)
  return Source(path, 'flax msgpack', arrays, left_out)


def _open_directory(path: str) -> Source:
  """Looks into a directory of Hugging Face, peft, T5X or Orbax."""
  names = {child.name for child in epath.Path(path).iterdir()}
  if peft_adapters.CONFIG_FILE in names:
    config = json.loads(
        (epath.Path(path) / peft_adapters.CONFIG_FILE).read_text()
    )
    file = os.path.join(path, peft_adapters.TENSORS_FILE)
    return Source(path, 'peft adapter', _safetensors(file), config=config)
  if _INDEX in names:
    index = json.loads((epath.Path(path) / _INDEX).read_text())
    arrays = {}
    for shard in sorted(set(index['weight_map'].values())):
      arrays.update(_safetensors(os.path.join(path, shard)))
    missing = sorted(set(index['weight_map']) - set(arrays))
    if missing:
      raise ValueError(f'{path} lacks {missing} of its own index {_INDEX}.')
    return Source(path, 'safetensors', arrays)
  files = sorted(
      n for n in names if n.endswith(('.safetensors', '.bin', '.pth'))
  )
  files = [n for n in files if n.endswith('.safetensors')] or files
  if len(files) == 1:
    return open_source(os.path.join(path, files[0]))
  if files:
    raise ValueError(
        f'{path} holds several files of weights: name one: {files}.'
    )
  return _t5x(path, 'T5X or Orbax directory')


def _safetensors(path: str) -> dict[str, checkpoint_importer.LazyArray]:
  """Returns the arrays of a safetensors file; needs no PyTorch."""
  import safetensors

  # The file is mapped, not read: an array costs memory while it is used.
  file = safetensors.safe_open(path, framework='numpy')
  arrays = {}
  for name in file.keys():
    part = file.get_slice(name)
    kind = part.get_dtype()
    if kind not in _SAFETENSORS_DTYPES:
      raise ValueError(
          f'{name} in {path} has the type {kind}, which is not read.'
      )
    arrays[name] = checkpoint_importer.LazyArray(
        tuple(part.get_shape()),
        np.dtype(_SAFETENSORS_DTYPES[kind]),
        lambda name=name: file.get_tensor(name),
    )
  return arrays


def _torch(path: str) -> Source:
  """Returns the tensors of a PyTorch file."""
  try:
    import torch
  except ImportError as error:
    raise ValueError(
        f"{path} is a PyTorch file: pip install 'pixel-llm[convert]', or save"
        ' it as safetensors, which needs no PyTorch.'
    ) from error
  try:
    content = torch.load(path, map_location='cpu', weights_only=True)
  except pickle.UnpicklingError as error:
    raise ValueError(
        f'{path} holds more than weights, and its code is not run. Save its'
        ' state dict alone, where it can be trusted.'
    ) from error
  if not isinstance(content, Mapping):
    raise ValueError(f'{path} holds a {type(content).__name__}, not weights.')
  # Training scripts put the weights beside other things.
  for key in ('state_dict', 'model', 'module'):
    if isinstance(content.get(key), Mapping):
      content = content[key]
      break
  arrays, left_out = {}, {}
  for name, value in content.items():
    if isinstance(value, torch.Tensor):
      arrays[name] = _from_torch(value)
    else:
      left_out[name] = f'a {type(value).__name__}, no tensor'
  return Source(path, 'PyTorch', arrays, left_out)


def _from_torch(tensor: Any) -> checkpoint_importer.LazyArray:
  dtype = np.dtype(str(tensor.dtype).removeprefix('torch.'))

  def get():
    # NumPy's bfloat16 is not PyTorch's; float32 holds both.
    wide = tensor.float() if dtype.name == 'bfloat16' else tensor
    return wide.detach().numpy()

  return checkpoint_importer.LazyArray(tuple(tensor.shape), dtype, get)


def _t5x(path: str, container: str) -> Source:
  """Returns the parameters of a checkpoint of T5X, of either layout, or ours."""
  tree = checkpoints.load_t5x_checkpoint(path, lazy_parameters=True)
  kind = checkpoint_utils.detect_checkpoint_type(
      checkpoints.find_checkpoint(path)
  )
  flat = traverse_util.flatten_dict(tree, sep='/')
  left_out = {
      name: 'state of a run, no parameter'
      for name in flat
      if not name.startswith('target/')
  }
  arrays = traverse_util.flatten_dict(
      layer_layout.to_unrolled(tree['target']), sep='/'
  )
  return Source(path, f'{container} ({kind.value})', arrays, left_out)
