from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any, Literal

import pytest

import gin
from t5x import gin_utils
from t5x import run_sizes
from t5x import value_types


@pytest.fixture(autouse=True)
def clean_gin(monkeypatch):
  monkeypatch.setattr(gin.config, '_LOCATION_PREFIXES', [''])
  gin.clear_config()
  yield
  gin.clear_config()


RUN = """
from __gin__ import dynamic_registration
from t5x import learning_rates
from t5x import partitioning
from t5x import trainer

WARMUP = 5
RATE = %WARMUP
learning_rates.create_learning_rate_scheduler:
  warmup_steps = %WARMUP
  step_offset = 0
"""
SCHEDULER = 'learning_rates.create_learning_rate_scheduler'


def parse(tmp_path, text, *bindings, run=RUN):
  (tmp_path / 'run.gin').write_text(run + text)
  gin_utils.parse_gin_flags([str(tmp_path)], ['run.gin'], bindings)


def told(tmp_path, text, *bindings):
  with pytest.raises(ValueError) as error:
    parse(tmp_path, text, *bindings)
  return str(error.value)


def test_values_of_the_wrong_type_are_told_at_once_with_their_places(tmp_path):
  message = told(
      tmp_path,
      f"{SCHEDULER}.base_learning_rate = '0.1'",
      'WARMUP = 1e4',
      'create_learning_rate_scheduler.factors = 3',
  )
  assert 'run.gin, line 12: ' in message
  assert "base_learning_rate takes float, not '0.1'. Write 0.1." in message
  assert "binding 'WARMUP = 1e4'" in message
  assert (
      'warmup_steps = %WARMUP takes int, not 10000.0. Write 10000.' in message
  )
  assert "takes str, not 3. Write '3'." in message


def test_all_unset_parameters_and_macros_are_told_at_once(tmp_path):
  message = told(
      tmp_path,
      f'{SCHEDULER}.factors = %gin.REQUIRED\n'
      f'{SCHEDULER}.decay_factor = %NOWHERE\n',
  )
  assert 'NOWHERE and ' in message
  assert 'create_learning_rate_scheduler.factors must be set' in message


def test_a_constant_of_a_module_is_no_unset_macro(tmp_path):
  gin.constant('test_config_check.DECAY', 0.25)
  parse(tmp_path, f'{SCHEDULER}.decay_factor = %DECAY')


@pytest.mark.parametrize(
    ('value', 'hint'),
    [
        (1, float),
        (1, bool),
        ([1, 2], tuple[int, ...]),
        ((1, 2), tuple[int, int]),
        ((), Sequence[str]),
        (('a', ('b', 2)), Sequence[Any]),
        ({'inputs': 3}, Mapping[str, int]),
        (None, int | None),
        (3, int | str),
        ('max', Literal['max', 'min']),
        ('float32', type('Dtype', (), {})),
        ('later', 'AForwardReference'),
        (value_types.Unknown(is_callable=False), int),
        (value_types.Unknown(is_callable=True), Callable[..., int]),
        (value_types.Unknown(is_callable=True), type[int]),
        ([value_types.Unknown(is_callable=False)], Sequence[int]),
    ],
)
def test_values_that_fit(value, hint):
  assert value_types.fits(value, hint)


@pytest.mark.parametrize(
    ('value', 'hint'),
    [
        (1.0, int),
        (True, int),
        (True, float),
        ('1', float),
        (2, bool),
        (None, int),
        ('abc', Sequence[str]),
        ((1, 'b'), Sequence[int]),
        ((1, 2, 3), tuple[int, int]),
        ({'inputs': '3'}, Mapping[str, int]),
        ([], dict),
        (1.5, int | str),
        ('mean', Literal['max', 'min']),
        ('adam', Callable[..., Any]),
        ('adam', type | None),
        (value_types.Unknown(is_callable=True), str),
    ],
)
def test_values_that_do_not_fit(value, hint):
  assert not value_types.fits(value, hint)


def test_an_annotation_that_its_own_default_breaks_is_not_believed():
  def written_in_a_hurry(
      a: int = 0.5, b: int = None, c=3, *, d: str, **rest: int
  ):
    del a, b, c, d, rest

  hints = value_types.get_hints(written_in_a_hurry)
  assert hints == {'b': int | None, 'd': str}
  partial = functools.partial(written_in_a_hurry, d='')
  assert value_types.get_hints(partial)['b'] == int | None


SIZES = """
import __main__ as run_script
run_script.sized_run:
  partitioner = @partitioning.PjitPartitioner()
  train_dataset_cfg = @train/run_script.sized_data()
  trainer_cls = @trainer.Trainer
partitioning.PjitPartitioner.num_partitions = 1
run_script.sized_data.batch_size = 24
trainer.Trainer.num_microbatches = None
"""


def sized_run(partitioner, train_dataset_cfg, trainer_cls):
  del partitioner, train_dataset_cfg, trainer_cls


def sized_data(batch_size):
  del batch_size


@pytest.fixture
def script(monkeypatch):
  monkeypatch.setattr('__main__.sized_data', sized_data, raising=False)
  monkeypatch.setattr('__main__.sized_run', sized_run, raising=False)


@pytest.mark.usefixtures('script')
def test_a_batch_that_the_mesh_cannot_cut_is_told_before_devices(tmp_path):
  parse(tmp_path, SIZES)
  gin.clear_config()
  message = told(
      tmp_path,
      SIZES,
      'partitioning.PjitPartitioner.ici_mesh_shape = (1, 8, 2)',
      'partitioning.PjitPartitioner.dcn_mesh_shape = (2, 1, 1)',
      'train/run_script.sized_data.batch_size = 41',
      'trainer.Trainer.num_microbatches = 2',
  )
  assert 'batch_size = 41 does not divide into 16 parts' in message
  assert 'nor into 2 microbatches; nearest: 32 or 64.' in message


EIGHT_PARTS = {'ici_mesh_shape': (1, 4, 2), 'dcn_mesh_shape': [2, 1, 1]}


@pytest.mark.parametrize(
    ('partitioner', 'batch_size', 'microbatches', 'message'),
    [
        ({'ici_mesh_shape': (2, 2)}, 8, None, 'three positive sizes'),
        ({'ici_mesh_shape': (1, 2, 0)}, 8, None, 'three positive sizes'),
        ({'ici_mesh_shape': (1, 2, 2)}, 8, None, 'Set both or none'),
        ({'model_parallel_submesh': (1, -1, 1, 1)}, 8, None, 'positive sizes'),
        ({'num_partitions': -2}, 8, None, 'must be positive'),
        ({}, 0, None, 'must be positive'),
        ({}, 9, 2, 'into 2 microbatches; nearest: 8 or 10'),
        ({}, 2, 4, 'nearest: 4.'),
        (
            EIGHT_PARTS,
            48,
            4,
            'batch_size = 48 in num_microbatches = 4 is 12 examples at a time,'
            ' which do not divide into 8 parts of ici and dcn mesh shape. Set'
            ' num_microbatches to 3 or 6, or batch_size to 32 or 64.',
        ),
        (EIGHT_PARTS, 8, 2, 'num_microbatches to 1, or batch_size to 16.'),
    ],
)
def test_sizes_that_cannot_be(partitioner, batch_size, microbatches, message):
  sizes = {'train_dataset_cfg': batch_size}
  found = list(run_sizes.faults(partitioner, sizes, microbatches))
  assert any(message in fault for fault in found), found


def test_sizes_that_can_be():
  sizes = {'train_dataset_cfg': 16, 'infer_eval_dataset_cfg': 8}
  assert not list(run_sizes.faults(EIGHT_PARTS, sizes, 2))
  assert not list(run_sizes.faults({'num_partitions': 4}, {'a': 3}, None))
