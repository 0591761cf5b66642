"""timm's EVA02 and Meta's SAM without torchvision.

They import torchvision for convolutional networks, pictures and boxes; these
networks need none, and torchvision's wheel on the public index is the CUDA
build.
"""

from collections.abc import Iterator
import contextlib
import importlib.machinery
import sys
from unittest import mock

import torch

_MODULES = (
    'torchvision',
    'torchvision.datasets',
    'torchvision.models',
    'torchvision.models.feature_extraction',
    'torchvision.ops',
    'torchvision.ops.boxes',
    'torchvision.ops.misc',
    'torchvision.transforms',
    'torchvision.transforms.functional',
)


def import_eva():
  """Returns the module `timm.models.eva`."""
  with _stub_of_torchvision():
    from timm.models import eva
  return eva


def import_sam():
  """Returns the package `segment_anything`."""
  with _stub_of_torchvision():
    import segment_anything
  return segment_anything


@contextlib.contextmanager
def _stub_of_torchvision() -> Iterator[None]:
  """Lets torchvision be imported; it is absent afterwards."""
  stubs = {}
  for name in _MODULES:
    stub = mock.MagicMock(name=name)
    stub.__spec__ = importlib.machinery.ModuleSpec(name, None)
    stub.__path__ = []
    stubs[name] = stub
  # These are base classes and types there.
  stubs['torchvision.ops.misc'].FrozenBatchNorm2d = torch.nn.Identity
  for name in ('ToTensor', 'Normalize', 'Compose', 'RandomResizedCrop'):
    setattr(stubs['torchvision.transforms'], name, type(name, (), {}))
  # Not `mock.patch.dict`: it would forget all that timm imports.
  sys.modules.update(stubs)
  try:
    yield
  finally:
    for name in stubs:
      del sys.modules[name]
