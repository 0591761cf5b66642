import types

import jax
import numpy as np
import pytest
import tiny_regression

from t5x import mesh_description
from t5x import model_info
from t5x import partitioning
from t5x import placement


class FourByTwo(partitioning.PjitPartitioner):
  """Names of axes and sizes are all that a description asks of a mesh."""

  mesh = jax.sharding.AbstractMesh((4, 2), ('data', 'model'))


@pytest.fixture
def rows():
  model = tiny_regression.Regression(tiny_regression.optimizer())
  shapes = jax.eval_shape(lambda: tiny_regression.state(model))
  partitioner = FourByTwo(
      num_partitions=2,
      logical_axis_rules=partitioning.standard_logical_axis_rules(
          parameter_partitioning_dims=2
      ),
  )
  return placement.placements(shapes, partitioner)


def test_every_array_has_its_axes_its_bytes_on_a_device_and_its_copies(rows):
  found = {row.name: row for row in rows}
  assert list(found)[0].startswith('target/')
  hidden = found['target/hidden/kernel']
  assert hidden.logical_axes == ('mlp', 'embed')
  assert hidden.mesh_axes == ('model', 'data')
  # 8 x 8 floats over 2 x 4 parts.
  assert (hidden.num_bytes, hidden.device_bytes, hidden.copies) == (256, 32, 1)
  head = found['target/head/kernel']
  assert (head.num_bytes, head.device_bytes, head.copies) == (32, 8, 2)
  moment = found['state/param_states/1/0/mu/hidden/kernel']
  assert (moment.device_bytes, moment.copies) == (32, 1)
  step = found['state/step']
  assert (step.device_bytes, step.copies, step.mesh_axes) == (4, 8, None)


def test_the_table_has_a_line_an_array(rows):
  title, *lines = placement.table_lines(rows)
  assert len(lines) == len(rows)
  assert title.split() == (
      'array type shape logical axes mesh axes bytes a device copies'.split()
  )
  (head,) = (line for line in lines if line.startswith('target/head/'))
  assert head.split() == (
      'target/head/kernel float32 8x1 embed, kv data, - 8 2'.split()
  )


def test_parts_sum_to_the_total_and_show_what_is_held_whole():
  def row(name, size, parts):
    return placement.Placement(
        name=name,
        shape=(size // 4,),
        dtype='float32',
        logical_axes=('embed',),
        mesh_axes=('data',),
        num_bytes=size,
        device_bytes=size // parts,
        copies=8 // parts,
    )

  mib = 2**20
  lines = placement.part_lines(
      [
          row('target/eye/kernel', 8 * mib, 8),
          row('target/eye/bias', mib, 1),
          row('target/mouth/kernel', 4 * mib, 2),
          row('state/param_states/mu', 2 * mib, 1),
      ]
  )
  cells = [line.rsplit(maxsplit=4) for line in lines[1:]]
  assert [(c[0], *map(float, c[2:])) for c in cells] == [
      ('eye', 9, 2, 1),
      ('mouth', 4, 2, 0),
      ('optimizer state', 2, 2, 2),
      ('total', 15, 6, 3),
  ]
  assert [c[1] for c in cells] == [
      '2,359,296',
      '1,048,576',
      '524,288',
      '3,932,160',
  ]


def _device(number, **places):
  return types.SimpleNamespace(
      id=number, device_kind='TPU v5 lite', platform='tpu', **places
  )


def test_a_mesh_tells_what_each_axis_crosses_and_cuts():
  # Two slices of two hosts of two chips.
  devices = np.array(
      [_device(i, process_index=i // 2, slice_index=i // 4) for i in range(8)]
  ).reshape(2, 2, 2)
  mesh = types.SimpleNamespace(
      devices=devices,
      size=8,
      shape={'replica': 2, 'data': 2, 'model': 2},
  )
  rules = (
      ('batch', ('replica', 'data')),
      ('embed', 'data'),
      ('mlp', None),
  )
  assert list(mesh_description.mesh_lines(mesh, rules)) == [
      'Mesh of 8 TPU v5 lite (tpu), 4 processes: replica 2, data 2, model 2',
      '  replica 2, between slices: cuts batch',
      '  data 2, between processes: cuts batch, embed',
      '  model 2, inside a process: no rule cuts over it',
  ]


def test_the_mesh_is_logged_when_it_is_built(caplog):
  with caplog.at_level('INFO'):
    _ = partitioning.PjitPartitioner(num_partitions=1).mesh
  assert 'Mesh of 1 cpu (cpu), 1 process: data 1, model 1' in caplog.messages
  assert '  data 1: cuts batch' in caplog.messages


def test_the_log_gets_sums_and_the_file_every_array(tmp_path, caplog):
  model = tiny_regression.Regression(tiny_regression.optimizer())
  shapes = jax.eval_shape(lambda: tiny_regression.state(model))
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  _ = partitioner.mesh
  file = tmp_path / 'run/model-info.txt'
  with caplog.at_level('INFO'):
    model_info.log_model_info(str(file), shapes, partitioner)
    text = file.read_text()
    assert text.startswith('Variable embedder/kernel size 64 shape (embed=8,')
    assert 'target/head/kernel' in text
    assert '\nMesh of 1 cpu' in text
    logged = list(caplog.messages)
    assert logged[:-1] == text.rstrip('\n').split('\n')[-len(logged) + 1 :]
    assert not any('kernel' in line for line in logged)
    # Without a file the log is where it all goes.
    caplog.clear()
    model_info.log_model_info(None, shapes, partitioner)
  assert set(text.split('\n')) - {''} - set(caplog.messages) == {
      'Mesh of 1 cpu (cpu), 1 process: data 1, model 1',
      '  data 1: cuts batch',
      '  model 1: cuts vocab, mlp, heads, joined_kv',
  }
