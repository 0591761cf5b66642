"""What a converter wrote, as its tests read it."""

import collections
import json

from array_record.python import array_record_data_source
import tensorflow as tf


def records(directory):
  shards = sorted(str(p) for p in directory.glob('*.array_record'))
  source = array_record_data_source.ArrayRecordDataSource(shards)
  return [
      tf.train.Example.FromString(source[i]).features.feature
      for i in range(len(source))
  ]


def manifest(directory):
  return json.loads((directory / 'manifest.json').read_text())


def notes(directory):
  text = (directory / 'rejects.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def reasons(directory, level, action='rejected'):
  """Id to reason of the notes of one level and action."""
  return {
      note['id']: note['reason']
      for note in notes(directory)
      if (note['level'], note['action']) == (level, action)
  }


def texts(record, name):
  return [value.decode() for value in record[name].bytes_list.value]


def assert_adds_up(directory, record_level='image'):
  stored = manifest(directory)
  for level, counts in stored['counts'].items():
    assert counts['read'] == counts['written'] + counts['rejected'], level
    rejected = [
        note
        for note in notes(directory)
        if (note['level'], note['action']) == (level, 'rejected')
    ]
    assert len(rejected) == counts['rejected'], level
    by_reason = stored['reasons'].get(level, {}).get('rejected', {})
    assert by_reason == collections.Counter(n['reason'] for n in rejected)
  assert len(records(directory)) == stored['num_records']
  assert stored['counts'][record_level]['written'] == stored['num_records']
