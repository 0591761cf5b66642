import re

import pytest

from t5x import gin_syntax
from t5x import macro_check

BASE = """
from __gin__ import dynamic_registration
BATCH_SIZE = 8
NUM_HEADS = 2
MODEL_DIR = %gin.REQUIRED
TRAIN_STEPS = %gin.REQUIRED
train.batch_size = %BATCH_SIZE
train.heads = [%NUM_HEADS, {'a': %scope/DEEP}]
train.model_dir = %MODEL_DIR
train.total_steps = %TRAIN_STEPS
scope/DEEP = 3
"""


@pytest.fixture
def read(tmp_path):
  (tmp_path / 'base.gin').write_text(BASE)

  def read_statements(text, *bindings):
    (tmp_path / 'run.gin').write_text(f"include 'base.gin'\n{text}")
    return gin_syntax.read(['run.gin'], bindings, [str(tmp_path)])

  return read_statements


def told(statements, **kwargs):
  with pytest.raises(ValueError) as error:
    macro_check.check(statements, **kwargs)
  return str(error.value)


SET = ("MODEL_DIR = '/x'", 'TRAIN_STEPS = 3')


def test_all_that_has_to_be_set_is_told_at_once(read):
  message = told(read(''))
  assert message.startswith('MODEL_DIR and TRAIN_STEPS must be set:')
  assert '--gin.MODEL_DIR=' in message


def test_what_nothing_sets_is_told_with_it(read):
  text = 'train.model = %MODEL\ntrain.kind = %Kind.BEST'
  assert told(read(text, SET[0])).startswith('MODEL and TRAIN_STEPS must be')


def test_an_overridden_reading_needs_no_value(read):
  macro_check.check(read('train.total_steps = 5', SET[0], 'TRAIN_STEPS = 1'))
  text = 'train.model = %MODEL\ntrain.model = 3'
  assert 'MODEL and' not in told(read(text, SET[0]))


def test_what_is_missing_may_be_missing_where_nothing_runs(read):
  macro_check.check(read(''), is_whole=False)


def test_a_macro_that_is_typed_has_to_be_read(read):
  message = told(read('', *SET, 'BATCH_SIEZ = 3', 'UNLIKE_ANY = 1'))
  assert re.search(
      "BATCH_SIEZ'.*\n  Nearest that are read: BATCH_SIZE", message
  )
  assert "the macro 'UNLIKE_ANY'" in message


def test_a_misspelt_macro_of_a_file_is_told_with_its_line(read):
  message = told(read('\nNUM_HEAD = 3', *SET))
  assert 'run.gin, line 3' in message
  assert 'NUM_HEADS' in message


def test_a_macro_beside_the_one_it_looks_like_is_another(read, caplog):
  statements = read('NUM_HEADS = 3\nNUM_HEADS_2 = 4\nNOTE = 1', *SET)
  macro_check.check(statements)
  macro_check.warn(statements)
  assert "run.gin, line 3: no gin file reads the macro 'NUM_HEADS_2'" in (
      caplog.text
  )
  assert "'NOTE'. It is ignored." in caplog.text


def test_long_forms_of_macros_count(read):
  text = (
      'OLD/macro.value = 1\ntrain.x = @OLD/macro()\ntrain.y = @NEW/gin.macro()'
  )
  statements = read(text, *SET, 'NEW = 2')
  macro_check.check(statements)
