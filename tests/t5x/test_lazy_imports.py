import subprocess
import sys

import pytest

import t5x


def _loaded(statement):
  code = f'{statement}\nimport sys\nprint(*sys.modules)'
  result = subprocess.run(
      [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  return set(result.stdout.split())


def test_core_imports_neither_tensorflow_nor_seqio():
  loaded = _loaded(
      'import t5x\nt5x.partitioning, t5x.trainer, t5x.models, t5x.train_state,'
      ' t5x.losses, t5x.state_utils'
  )
  assert 't5x.trainer' in loaded
  assert not loaded & {'tensorflow', 'seqio', 'gin'}


def test_package_itself_imports_nothing():
  assert 'jax' not in _loaded('import t5x')


def test_unknown_name_is_an_attribute_error():
  assert t5x.__version__
  assert 'partitioning' in dir(t5x)
  with pytest.raises(AttributeError, match='partitoning'):
    _ = t5x.partitoning
