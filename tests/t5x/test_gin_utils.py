import pytest

import gin
from t5x import gin_utils


@pytest.fixture(autouse=True)
def clean_gin(monkeypatch):
  monkeypatch.setattr(gin.config, '_LOCATION_PREFIXES', [''])
  gin.clear_config()
  yield
  gin.clear_config()


def parse(tmp_path, text, *bindings, **kwargs):
  file = tmp_path / 'run.gin'
  file.write_text('from __gin__ import dynamic_registration\n' + text)
  gin_utils.parse_gin_flags([str(tmp_path)], ['run.gin'], bindings, **kwargs)


RATE = """
from t5x import learning_rates
WARMUP = 5
learning_rates.create_learning_rate_scheduler.warmup_steps = %WARMUP
"""


def test_rewriting_splits_at_the_first_equals_sign_and_keeps_the_value():
  args = ['prog', '--gin.a/B.c="x = y"', '--other=1', '--gin.N=3']
  assert gin_utils.rewrite_gin_args(args) == [
      'prog',
      '--gin_bindings=a/B.c = "x = y"',
      '--other=1',
      '--gin_bindings=N = 3',
  ]


def test_rewriting_needs_an_equals_sign():
  with pytest.raises(ValueError, match='--gin.NAME=VALUE.*--gin.N'):
    gin_utils.rewrite_gin_args(['prog', '--gin.N'])


def test_bindings_win_over_files(tmp_path):
  parse(tmp_path, RATE, 'WARMUP = 7')
  assert gin.query_parameter('%WARMUP') == 7


def test_the_parsed_config_is_final(tmp_path):
  parse(tmp_path, RATE)
  with pytest.raises(RuntimeError):
    gin.bind_parameter('%WARMUP', 1)


@pytest.mark.parametrize(
    ('text', 'near', 'line'),
    [
        (
            'from t5x import learning_rates\n'
            'learning_rates.create_learning_rate_schedule.warmup_steps = 1',
            'learning_rates.create_learning_rate_scheduler',
            'line 3',
        ),
        (
            'from t5x import learning_rates\n'
            'learning_rates.create_learning_rate_scheduler.warmup = 1',
            'warmup_steps',
            'line 3',
        ),
        ('learning_rates.x.y = 1', 'Add an import', 'line 2'),
    ],
)
def test_unknown_names_are_told_with_the_nearest_and_the_line(
    tmp_path, text, near, line
):
  with pytest.raises(ValueError) as error:
    parse(tmp_path, text)
  assert near in str(error.value)
  assert line in str(error.value)
  assert 'run.gin' in str(error.value)


@pytest.mark.parametrize(
    ('line', 'near'),
    [
        ('from t5x import learning_rate', 't5x.learning_rates'),
        ('import seqoi', 'seqio'),
    ],
)
def test_unknown_modules_are_told_with_the_nearest(tmp_path, line, near):
  with pytest.raises(ImportError) as error:
    parse(tmp_path, line)
  assert 'run.gin", line 2' in str(error.value)
  assert near in str(error.value).split('Nearest known names: ')[1]


def test_an_unknown_name_on_the_command_line_has_near_ones_too(tmp_path):
  with pytest.raises(ValueError, match='create_learning_rate_scheduler'):
    parse(tmp_path, RATE, 'create_learning_rate_schedulr.warmup_steps = 2')


def test_a_required_macro_says_how_to_set_it(tmp_path):
  text = RATE.replace('WARMUP = 5', 'WARMUP = %gin.REQUIRED')
  with pytest.raises(ValueError, match='WARMUP must be set.*--gin.WARMUP='):
    parse(tmp_path, text)


def test_a_missing_file_names_the_paths_tried(tmp_path):
  with pytest.raises(FileNotFoundError, match='nowhere.gin.*/x/nowhere.gin'):
    gin_utils.parse_gin_flags(['/x'], ['nowhere.gin'], [])


def test_config_gin_can_be_parsed_again(tmp_path):
  parse(tmp_path, RATE, 'WARMUP = 9')
  gin_utils.summarize_gin_config(str(tmp_path / 'out'), None, 0)
  text = (tmp_path / 'out/config.gin').read_text()
  assert '# file: run.gin' in text
  assert '# binding: WARMUP = 9' in text
  gin.clear_config()
  gin.parse_config(text)
  assert gin.query_parameter('%WARMUP') == 9


def test_small_functions_for_gin_files():
  assert gin_utils.sum_fn(2, 3) == 5
  assert gin_utils.bool_fn([]) is False
  assert gin_utils.string_split_fn('a,b,c', ',', 1) == ['a', 'b,c']
