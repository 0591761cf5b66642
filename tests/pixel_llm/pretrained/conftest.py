"""What all tests of weights share: PyTorch's tiny models, and our command."""

import os
import pathlib
import sys

# Set before the first import: transformers would load TensorFlow as well.
os.environ['USE_TF'] = '0'
# The tests share the models that stand beside them.
sys.path.insert(0, str(pathlib.Path(__file__).parent))

from flax import traverse_util
import pytest
import torch

from pixel_llm.pretrained import export_weights
from pixel_llm.pretrained import import_weights
from t5x import checkpoints


@pytest.fixture
def import_params(tmp_path, capsys):
  """Runs the command on sources; returns parameters by name, and the report."""

  def run(*args, output='imported'):
    output = tmp_path / output
    sources = [
        x for path in args if path[:2] != '--' for x in ('--source', path)
    ]
    flags = [x for x in args if x[:2] == '--']
    status = import_weights.main([*sources, *flags, '--output', str(output)])
    report = capsys.readouterr()
    assert status == 0, report
    tree = checkpoints.load_t5x_checkpoint(str(output))
    return tree['target'], report.out

  return run


@pytest.fixture
def export(tmp_path):
  """Saves nested parameters and exports them; returns the directory."""

  def run(kind, params, *flags):
    path = tmp_path / f'export_{kind}'
    flat = traverse_util.flatten_dict(params, sep='/')
    checkpoint = path / 'run'
    import_weights.save(str(checkpoint / 'checkpoint_0'), flat)
    status = export_weights.main(
        [
            f'--checkpoint={checkpoint}',
            f'--format={kind}',
            f'--output={path}',
            *flags,
        ]
    )
    assert status == 0
    return path

  return run


@pytest.fixture(autouse=True)
def seeded():
  torch.manual_seed(0)


@pytest.fixture
def enlarged():
  """Gives a PyTorch model weights that no layer hides."""

  def run(model):
    with torch.no_grad():
      for parameter in model.parameters():
        if parameter.ndim == 1:
          parameter.add_(torch.randn_like(parameter) * 0.3)
        else:
          parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model.eval()

  return run
