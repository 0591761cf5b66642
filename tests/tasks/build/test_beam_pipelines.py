"""A Beam pipeline writes the bytes that processes on one machine write."""

import importlib.util
import pathlib

import pytest

from tasks.build import __main__ as build

SAMPLE = pathlib.Path(__file__).parents[3] / 'tasks' / 'sample'
SOURCES = {
    'refcoco': 'refcoco/merge_coco_img_safe_train.json',
    'vg': 'vg/train.json',
    'llava': 'llava/llava_v1_5_mix665k.json',
    'ln': 'localized_narratives/coco_train_*.jsonl',
}
has_beam = importlib.util.find_spec('apache_beam') is not None


def _build(source, output, *arguments):
  images = [str(SAMPLE / name) for name in ('train2017', 'train2014')]
  if source == 'llava':
    images = [str(SAMPLE)]
  split = f'train={SAMPLE / SOURCES[source]}'
  return build.main(
      [source, '--images', *images, '--output', str(output), '--split', split]
      + ['--shards', '5', *arguments]
  )


def _files(output):
  return {path.name: path.read_bytes() for path in output.rglob('*.*')}


@pytest.mark.skipif(not has_beam, reason='apache-beam is not installed')
@pytest.mark.parametrize('source', sorted(SOURCES))
def test_the_direct_runner_writes_the_same_bytes(source, tmp_path):
  status = _build(source, tmp_path / 'here')
  beam = ('--runner', 'DirectRunner')
  assert _build(source, tmp_path / 'beam', *beam) == status
  assert _files(tmp_path / 'beam') == _files(tmp_path / 'here')
  # A pipeline goes on with what another way of running has left.
  for name in ('manifest.json', 'data-00003-of-00005.array_record'):
    (tmp_path / 'here' / 'train' / name).unlink()
  assert _build(source, tmp_path / 'here', *beam) == status
  assert _files(tmp_path / 'beam') == _files(tmp_path / 'here')


@pytest.mark.skipif(not has_beam, reason='apache-beam is not installed')
def test_several_processes_of_beam_write_the_same_bytes(tmp_path):
  flags = '--direct_running_mode=multi_processing --direct_num_workers=2'
  arguments = ('--runner', 'FnApiRunner', f'--beam_flags={flags}')
  status = _build('refcoco', tmp_path / 'here')
  assert _build('refcoco', tmp_path / 'beam', *arguments) == status
  assert _files(tmp_path / 'beam') == _files(tmp_path / 'here')


def test_without_beam_the_extra_is_named(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda _: None)
  assert _build('vg', tmp_path, '--runner', 'DirectRunner') == 1
  assert "Install '.[beam]'" in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (('--runner', 'DirectRunner', '--strict'), 'leave out --strict'),
        (('--runner', 'DirectRunner', '--workers', '2'), '--workers'),
        # A text that begins with a dash.
        (('--beam_flags=--region=here',), 'name a --runner'),
    ],
)
def test_arguments_that_do_not_go_together_are_named(
    wrong, message, tmp_path, capsys
):
  with pytest.raises(SystemExit) as error:
    _build('vg', tmp_path, *wrong)
  assert error.value.code == 2
  assert message in capsys.readouterr().err
