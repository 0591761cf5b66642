import jax.numpy as jnp
import legacy_layout
import numpy as np
import orbax.checkpoint as ocp
import pytest
from run_kwargs import partitioner
from run_kwargs import run_kwargs
from test_checkpoints import make
from test_checkpoints import save
from test_checkpoints import state_at
from test_legacy_checkpoints import STATE
from test_legacy_checkpoints import assert_same
from test_run_loop import find

from t5x import checkpoint_importer
from t5x import checkpoint_utils
from t5x import checkpoints
from t5x import convert_checkpoint
from t5x import loop
from t5x import stored_state


def write_orbax(directory, use_ocdbt=True):
  handler = ocp.PyTreeCheckpointHandler(use_ocdbt=use_ocdbt)
  with ocp.Checkpointer(handler) as checkpointer:
    checkpointer.save(directory / 'state', args=ocp.args.PyTreeSave(STATE))


WRITERS = {
    'legacy': lambda directory: legacy_layout.write(directory, STATE),
    'orbax': write_orbax,
    'orbax, a directory each': lambda directory: write_orbax(directory, False),
}


@pytest.mark.parametrize('layout', WRITERS)
@pytest.mark.parametrize('lazy', [True, False])
@pytest.mark.parametrize('dtype', [None, 'bfloat16'])
def test_the_raw_loader_reads_every_layout(tmp_path, layout, lazy, dtype):
  WRITERS[layout](tmp_path / 'checkpoint_70')
  got = checkpoints.load_t5x_checkpoint(
      str(tmp_path),
      step=70,
      restore_dtype=dtype and jnp.dtype(dtype),
      lazy_parameters=lazy,
  )
  got, want = stored_state.flatten(got), stored_state.flatten(STATE)
  assert got.keys() == want.keys()
  for path, array in want.items():
    leaf = got[path]
    assert isinstance(leaf, checkpoint_importer.LazyArray) == lazy
    # Whole numbers stay so, and the optimizer's state its dtype.
    is_float = jnp.issubdtype(array.dtype, jnp.floating)
    if path[0] == 'target' and dtype and is_float:
      array = array.astype(dtype)
    assert leaf.dtype == array.dtype
    assert leaf.shape == array.shape
    np.testing.assert_array_equal(leaf.get() if lazy else leaf, array)


def test_the_raw_loader_applies_functions_before_reading(tmp_path):
  WRITERS['legacy'](tmp_path / 'checkpoint_70')

  def only_the_table(stored, target):
    assert target is None
    return {'target': {'embedding': stored['target']['table']}}

  got = checkpoints.load_t5x_checkpoint(
      str(tmp_path), state_transformation_fns=[only_the_table]
  )
  assert_same(got, {'target': {'embedding': STATE['target']['table']}})
  got = checkpoints.load_t5x_checkpoint(
      str(tmp_path), state_transformation_fns=[only_the_table], remap=False
  )
  assert_same(got, STATE)


@pytest.mark.parametrize('source', WRITERS)
@pytest.mark.parametrize('layout', ['orbax', 'legacy'])
def test_every_layout_becomes_either(tmp_path, source, layout):
  WRITERS[source](tmp_path / 'from/checkpoint_70')
  got = convert_checkpoint.convert(
      str(tmp_path / 'from'), str(tmp_path / 'to'), layout=layout
  )
  assert got == str(tmp_path / 'to/checkpoint_70')
  kind = checkpoint_utils.detect_checkpoint_type(got).name
  assert kind == {'orbax': 'ORBAX', 'legacy': 'T5X'}[layout]
  assert_same(checkpoints.load_t5x_checkpoint(got), STATE)


def test_a_converted_run_goes_on(tmp_path):
  whole, first = tmp_path / 'whole', tmp_path / 'first'
  settings = {'stats_period': 1, 'save': {'period': 2}}
  loop.train(**run_kwargs(whole, **settings))
  losses = find(whole / 'train-metrics.jsonl', 'loss')
  loop.train(**run_kwargs(first, total_steps=2, **settings))
  for layout in ('legacy', 'orbax'):
    second = tmp_path / layout
    convert_checkpoint.main(
        [
            f'--source={first}',
            f'--target={second}',
            f'--layout={layout}',
            '--step=2',
        ]
    )
    loop.train(**run_kwargs(second, **settings))
    got = find(second / 'train-metrics.jsonl', 'loss')
    assert got == {step: losses[step] for step in (3, 4)}
    first = second  # and back again


def test_casting_leaves_the_optimizer_alone(tmp_path):
  save(tmp_path, state_at(3))
  got = convert_checkpoint.convert(
      str(tmp_path), str(tmp_path / 'half'), layout='legacy', dtype='bfloat16'
  )
  shape = make().global_train_state_shape
  state = checkpoints.Checkpointer(shape, partitioner(), got).restore(path=got)
  assert state.params['head']['kernel'].dtype == jnp.bfloat16
  mu = state.state_dict()['state']['param_states']['0']['mu']
  assert mu['head']['kernel'].dtype == np.float32


def test_what_cannot_be_converted_is_told(tmp_path, capsys):
  WRITERS['legacy'](tmp_path / 'checkpoint_70')
  with pytest.raises(FileExistsError, match='checkpoint_70 exists'):
    convert_checkpoint.convert(str(tmp_path), str(tmp_path))
  with pytest.raises(ValueError, match="got 'tf'"):
    convert_checkpoint.convert(str(tmp_path), str(tmp_path), layout='tf')
  legacy_layout.write(tmp_path / 'stepless', {'target': STATE['target']})
  with pytest.raises(ValueError, match='no state/step'):
    convert_checkpoint.convert(str(tmp_path / 'stepless'), str(tmp_path))
  with pytest.raises(SystemExit) as status:
    convert_checkpoint.main(['--source=/nowhere', f'--target={tmp_path}'])
  assert status.value.code == 1
  assert 'error: No checkpoint at /nowhere' in capsys.readouterr().err
