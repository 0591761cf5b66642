"""A train state in one flax msgpack file, such as Scenic's released PixelLLM.

The parameters lie at `params`, or at `optimizer/target` in older files, with
the names of our network, which are the original's. Arrays of over 1 GB are cut
in chunks there; flax joins them.

RefA: google-research/scenic `train_lib/train_utils.py` (`TrainState`), and
`flax.training.checkpoints`.
"""

from collections.abc import Mapping
from typing import Any

from etils import epath
from flax import serialization
from flax import traverse_util

# Where parameters lie, the first that is there counts.
_PLACES = (('params',), ('optimizer', 'target'), ('target',))


def read(path: str) -> Mapping[str, Any]:
  """Returns the content of a msgpack file.

  Raises:
    ValueError: if it is none.
  """
  try:
    content = serialization.msgpack_restore(epath.Path(path).read_bytes())
  except Exception as error:
    raise ValueError(
        f'{path} is neither safetensors, nor a PyTorch file, nor flax msgpack:'
        f' {error}'
    ) from error
  if not isinstance(content, Mapping):
    raise ValueError(
        f'{path} holds a {type(content).__name__}, not a train state.'
    )
  return content


def split(
    content: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, str]]:
  """Parts a train state into parameters and the rest.

  Args:
    content: the nested state.

  Returns:
    The parameters by name, and the reason by name for what is left out.

  Raises:
    ValueError: if there are no parameters.
  """
  flat = traverse_util.flatten_dict(content, sep='/')
  for place in _PLACES:
    prefix = '/'.join(place) + '/'
    params = {
        # `model.init` gives a collection of that name once more.
        name.removeprefix(prefix).removeprefix('params/'): array
        for name, array in flat.items()
        if name.startswith(prefix)
    }
    if params:
      rest = [name for name in flat if not name.startswith(prefix)]
      return params, {name: 'no parameter of the network' for name in rest}
  raise ValueError(
      f'The train state has no parameters at {["/".join(p) for p in _PLACES]};'
      f' it holds {sorted(content)}.'
  )
