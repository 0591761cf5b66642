import pytest

from t5x import gin_syntax


@pytest.fixture
def write(tmp_path):
  def write_files(**texts):
    for name, text in texts.items():
      (tmp_path / f'{name}.gin').write_text(text)
    return [str(tmp_path)]

  return write_files


RUN = """
from __gin__ import dynamic_registration
import __main__ as no_such_module
include 'part.gin'
A = @b/no_such_module.thing()
no_such_module.train:
  x = %A
"""


def test_nothing_that_the_files_name_is_needed(write):
  paths = write(run=RUN, part='scope/other.y = [1, %Q]\nQ = None')
  statements = gin_syntax.read(['run.gin'], ['third.z = 3', 'R = 1'], paths)
  assert gin_syntax.configured(statements) == {'train', 'other', 'third'}


def test_a_missing_include_names_the_file_and_line_that_wants_it(write):
  paths = write(run=RUN)
  with pytest.raises(FileNotFoundError) as error:
    gin_syntax.read(['run.gin'], [], paths)
  assert "'part.gin' not found" in str(error.value)
  assert 'run.gin, line 4' in str(error.value)


def test_a_file_of_an_installed_package_is_found():
  name = 't5x/configs/runs/pretrain.gin'
  assert 'train' in gin_syntax.configured(gin_syntax.read([name], [], []))


def test_includes_that_go_round_in_a_circle_are_told(write):
  paths = write(a="include 'b.gin'", b="include 'a.gin'")
  with pytest.raises(ValueError, match='a.gin -> .*b.gin -> .*a.gin'):
    gin_syntax.read(['a.gin'], [], paths)


@pytest.mark.parametrize(
    ('text', 'line'),
    [
        ('A = 1\nB = (2,\n', 'line 3'),
        ('A = 1\nB 2\n', 'line 2'),
        ("A = 1\nB = 'x\n", 'line 2'),
        ('A = 1\nb:\n  c = 2\n d = 3\n', 'line 4'),
        ('A = 1\nB = nothing\n', 'line 2'),
    ],
)
def test_what_gin_cannot_read_is_told_with_file_and_line(write, text, line):
  with pytest.raises(ValueError, match=rf'broken\.gin, {line}: '):
    gin_syntax.read(['broken.gin'], [], write(broken=text))


def test_what_gin_cannot_read_on_the_command_line_is_quoted():
  with pytest.raises(ValueError, match="binding 'MODEL_DIR = runs/x'"):
    gin_syntax.read([], ['A = 1', 'MODEL_DIR = runs/x'], [])
