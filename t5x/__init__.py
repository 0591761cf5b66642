"""T5X's trainer API on current JAX.

The names below are loaded when first used (PEP 562), so that importing the
reference network or the partitioner does not pull in TensorFlow and SeqIO.
"""

import importlib
from typing import Any

__version__ = '0.1.0'

_SUBMODULES = frozenset(
    {
        'adafactor',
        'checkpoints',
        'decoding',
        'gin_utils',
        'infer',
        'losses',
        'models',
        'partitioning',
        'state_utils',
        'train_state',
        'trainer',
        'utils',
    }
)


def __getattr__(name: str) -> Any:
  """Imports one of the public sub-modules on first use."""
  if name in _SUBMODULES:
    return importlib.import_module(f'{__name__}.{name}')
  raise AttributeError(
      f"module 't5x' has no attribute {name!r}; it exposes"
      f' {sorted(_SUBMODULES)}'
  )


def __dir__() -> list[str]:
  """Lists the public sub-modules, loaded or not."""
  return sorted({*globals(), *_SUBMODULES})
