"""timm's EVA02 without torchvision.

timm imports torchvision for convolutional networks and pictures; a transformer
needs neither, and torchvision's wheel on the public index is the CUDA build.
"""

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
    'torchvision.ops.misc',
    'torchvision.transforms',
    'torchvision.transforms.functional',
)


def import_eva():
  """Returns the module `timm.models.eva`; torchvision is absent afterwards."""
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
    from timm.models import eva
  finally:
    for name in stubs:
      del sys.modules[name]
  return eva
