"""Statistics of a split are those of its records."""

import json
import pathlib
import re

import converted
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest

from tasks.build import __main__ as build
from tasks.build import records
from tasks.build import statistics

SAMPLE = pathlib.Path(__file__).parents[3] / 'tasks' / 'sample'


def test_statistics_of_the_sample_are_those_of_its_annotations(built_sample):
  directory = built_sample / 'sample' / 'refcoco' / 'train'
  document = json.loads(
      (SAMPLE / 'refcoco/merge_coco_img_safe_train.json').read_text()
  )
  found = converted.manifest(directory)['statistics']
  captions = [row['caption'].split() for row in document['images']]
  lengths = sorted(map(len, captions))
  assert found['words_per_text'] == {
      'count': len(captions),
      'total': sum(lengths),
      'mean': round(sum(lengths) / len(lengths), 3),
      'least': lengths[0],
      'median': lengths[len(lengths) // 2],
      'p99': lengths[-2],
      'most': lengths[-1],
  }
  objects = {a['original_id']: a for a in document['annotations']}
  assert found['boxes_per_record']['total'] == len(objects)
  assert found['masks_per_record']['total'] == len(objects)
  assert found['box_area_percent']['count'] == len(objects)
  assert 'utterances_per_trace' not in found


_PLACES = st.lists(
    st.builds(
        records.Place,
        texts=st.lists(st.text(max_size=20), max_size=3),
        box=st.sampled_from([None, np.array([0.0, 0.0, 0.5, 0.5])]),
    ),
    max_size=3,
)
_RECORDS = st.lists(
    st.builds(
        records.Record,
        name=st.just('1'),
        encoded=st.binary(max_size=5),
        height=st.integers(1, 9),
        width=st.integers(1, 9),
        places=_PLACES,
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=50, deadline=None)
@given(_RECORDS, st.integers(0, 6))
def test_shards_add_up_to_the_whole_in_any_order(rows, cut):
  whole, first, second = (statistics.Statistics() for _ in range(3))
  for number, row in enumerate(rows):
    whole.count(row)
    (first if number < cut else second).count(row)
  stored = json.loads(json.dumps(first.to_json()))
  second.add(statistics.Statistics.from_json(stored))
  assert second.summary() == whole.summary()
  lengths = [len(t.split()) for r in rows for p in r.places for t in p.texts]
  if lengths:
    summary = whole.summary()['words_per_text']
    expected = np.quantile(lengths, 0.5, method='inverted_cdf')
    assert summary['median'] == expected
    assert summary['total'] == sum(lengths)
  assert ('words_per_text' in whole.summary()) == bool(lengths)


def test_stats_prints_every_figure(built_sample, capsys):
  assert build.main(['stats', str(built_sample / 'sample')]) == 0
  shown = capsys.readouterr().out
  assert 'refcoco/train: 10 records' in shown
  assert re.search(r'utterances_per_trace +\d', shown)
  assert re.search(r'boxes_per_record +10 +21 ', shown)


@pytest.mark.parametrize('workers', ['1', '2'])
def test_the_progress_bar_shows_rate_and_time_left(
    workers, tmp_path, monkeypatch, capsys
):
  # It is drawn on terminals only.
  monkeypatch.setattr('sys.stderr.isatty', lambda: True)
  monkeypatch.setenv('TQDM_MININTERVAL', '0')
  file = SAMPLE / 'refcoco/merge_coco_img_safe_train.json'
  arguments = ['--split', f'train={file}', '--output', str(tmp_path)]
  arguments += ['--images', str(SAMPLE / 'train2017')]
  arguments += [str(SAMPLE / 'train2014'), '--shards', '2']
  build.main(['refcoco', *arguments, '--workers', workers])
  shown = capsys.readouterr().err
  # Pictures done, time gone < time left, pictures a second.
  assert re.search(r'\b[1-9]0?/10 \[\d+:\d+<\d+:\d+, +\d+\.\d+image/s', shown)
