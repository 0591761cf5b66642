"""The sample of the repository, converted once a test session."""

import pathlib

import pytest

from tasks.build import __main__ as build

REPOSITORY = pathlib.Path(__file__).parents[2]
SAMPLE = REPOSITORY / 'tasks' / 'sample'
SAMPLE_IMAGES = [
    str(SAMPLE / name) for name in ('train2017', 'val2017', 'train2014')
]


# pycocotools 2.0.11 still has the __array__ of NumPy 1.
_PYCOCOTOOLS = 'ignore:__array__ implementation:DeprecationWarning'


def pytest_collection_modifyitems(items):
  here = pathlib.Path(__file__).parent
  for item in items:
    if here in item.path.parents:
      item.add_marker(pytest.mark.filterwarnings(_PYCOCOTOOLS))


def _build_refcoco(output, *arguments):
  return build.main(
      [
          'refcoco',
          '--images',
          *SAMPLE_IMAGES,
          '--output',
          str(output),
          '--split',
          f'train={SAMPLE}/refcoco/merge_coco_img_safe_train.json',
          '--split',
          f'real_val={SAMPLE}/refcoco/refcocog_umd_val.json',
          *arguments,
      ]
  )


def _build_narratives(output, *arguments):
  files = sorted((SAMPLE / 'localized_narratives').glob('coco_train*'))
  val = SAMPLE / 'localized_narratives/coco_val_localized_narratives.jsonl'
  return build.main(
      [
          'ln',
          '--images',
          *SAMPLE_IMAGES,
          '--output',
          str(output),
          '--split',
          f'train={",".join(map(str, files))}',
          '--split',
          f'val={val}',
          *arguments,
      ]
  )


@pytest.fixture(scope='session')
def repository():
  return REPOSITORY


@pytest.fixture(scope='session')
def build_refcoco():
  return _build_refcoco


@pytest.fixture(scope='session')
def built_sample(tmp_path_factory):
  root = tmp_path_factory.mktemp('data')
  assert _build_refcoco(root / 'sample' / 'refcoco', '--shards', '3') == 0
  assert _build_narratives(root / 'sample' / 'ln', '--shards', '2') == 0
  return root


@pytest.fixture
def data_dir(built_sample, monkeypatch):
  monkeypatch.setenv('PIXEL_LLM_DATA_DIR', str(built_sample))
  return built_sample
