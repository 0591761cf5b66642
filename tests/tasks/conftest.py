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


def _build_others(root):
  """The sets of the other layouts, one folder each below `root`."""
  mixed = f'{SAMPLE}/uninext/mixed_instances.json#train'
  captions = f'{SAMPLE}/coco_captions/captions'
  for source, folder, images, *options in (
      ('vg', 'vg', SAMPLE_IMAGES)
      + tuple(
          f'{split}={SAMPLE}/vg/{split}.json' for split in ('train', 'test')
      ),
      ('coco_captions', 'coco_captions', SAMPLE_IMAGES)
      + tuple(f'{s}={captions}_{s}2017.json' for s in ('train', 'val')),
      ('llava', 'llava', [str(SAMPLE)])
      + (f'train={SAMPLE}/llava/llava_v1_5_mix665k.json',),
      ('uninext', 'mixed_coco', SAMPLE_IMAGES, f'train={mixed}'),
      ('uninext', 'mixed_vg', [f'{SAMPLE}/VG_100K'], f'train={mixed}'),
  ):
    arguments = [source, '--images', *images, '--output', str(root / folder)]
    for split in options:
      arguments += ['--split', split]
    if source == 'uninext':
      arguments += ['--data_source', folder.removeprefix('mixed_')]
    # Status 3: the text-only rows of LLaVA are left out.
    assert build.main([*arguments, '--shards', '2']) == 3 * (source == 'llava')


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
  _build_others(root / 'sample')
  return root


@pytest.fixture
def data_dir(built_sample, monkeypatch):
  monkeypatch.setenv('PIXEL_LLM_DATA_DIR', str(built_sample))
  return built_sample
