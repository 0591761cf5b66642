"""Which checkpoints stay, against a model of the rules written down again."""

import functools
import logging
import tempfile

from clu import metric_writers
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import numpy as np
import pytest
from test_checkpoints import make
from test_checkpoints import manager
from test_checkpoints import partitioner
from test_checkpoints import state_at

import gin
from t5x import best_checkpoints
from t5x import checkpoint_config
from t5x import checkpoint_managers
from t5x import checkpoint_utils
from t5x import checkpoints
from t5x import retention

VALUES = st.one_of(st.none(), st.sampled_from([-1.5, 0.0, 0.5, np.nan]))


@st.composite
def histories(draw, most=10):
  """Settings of a run, and for each save its step, metric and pin."""
  count = draw(st.integers(1, most))
  steps = np.cumsum(
      draw(st.lists(st.integers(1, 3), min_size=count, max_size=count))
  )
  saves = [
      (int(step), draw(VALUES), draw(st.booleans()) and draw(st.booleans()))
      for step in steps
  ]
  rules = {
      'keep': draw(st.sampled_from([None, 1, 2, 3])),
      'force_keep_period': draw(st.sampled_from([None, 2, 5])),
  }
  if draw(st.booleans()):
    rules |= {
        'metric_name_to_monitor': 'train/loss',
        'metric_mode': draw(st.sampled_from(['min', 'max'])),
        'keep_checkpoints_without_metrics': draw(st.booleans()),
    }
  return rules, saves


def survivors(rules, saves):
  """The steps that are left after all saves, by the documented rules."""
  alive = []
  for step, value, pinned in saves:
    alive.append((step, value, pinned))
    keep, period = rules['keep'], rules['force_keep_period']
    safe = {s for s, _, is_pinned in alive if is_pinned}
    safe |= {s for s, _, _ in alive if period and s % period == 0}
    if 'metric_name_to_monitor' not in rules:
      safe |= {s for s, _, _ in (alive[-keep:] if keep else alive)}
    else:
      sign = {'min': -1, 'max': 1}[rules['metric_mode']]
      safe.add(step)
      measured = [(s, sign * v) for s, v, _ in alive if v is not None]
      for s, v in measured:
        # Better: a larger number, or the same one later; nan is the worst.
        better = [
            t
            for t, w in measured
            if (not np.isnan(w) and (np.isnan(v) or w > v))
            or ((w == v or (np.isnan(w) and np.isnan(v))) and t > s)
        ]
        if keep is None or len(better) < keep:
          safe.add(s)
      if rules['keep_checkpoints_without_metrics']:
        safe |= {s for s, v, _ in alive if v is None}
    alive = [save for save in alive if save[0] in safe]
  return [s for s, _, _ in alive]


@given(histories())
@settings(max_examples=150, deadline=None)
def test_the_policy_keeps_what_the_rules_say(history):
  rules, saves = history
  values = {s: v for s, v, _ in saves if v is not None}
  pins = {f'/run/checkpoint_{s}' for s, _, pinned in saves if pinned}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
        best_checkpoints,
        'read_metrics',
        lambda directory, name, steps: {
            s: values[s] for s in steps if s in values
        },
    )
    patch.setattr(checkpoint_utils, 'is_pinned_checkpoint', pins.__contains__)
    policy = retention.get_policy('/run', **rules)
    alive = []
    for step, _, _ in saves:
      alive.append(step)
      doomed = retention.get_doomed(policy, alive)
      alive = [s for s in alive if s not in doomed]
  assert alive == survivors(rules, saves)


def write_scalars(directory, values, tag='loss'):
  writer = metric_writers.SummaryWriter(str(directory))
  for step, value in values.items():
    writer.write_scalars(step, {tag: value})
  writer.close()


@given(histories(most=5), st.booleans())
@settings(max_examples=8, deadline=None)
def test_both_layouts_keep_what_the_rules_say(history, use_orbax):
  rules, saves = history
  with tempfile.TemporaryDirectory() as directory:
    write_scalars(
        f'{directory}/train', {s: v for s, v, _ in saves if v is not None}
    )
    if use_orbax:
      saver = manager(directory, **rules)
    else:
      cls = checkpoints.SaveBestCheckpointer
      if 'metric_name_to_monitor' not in rules:
        cls, rules = checkpoints.Checkpointer, {**rules}
        rules['force_keep_period'] = None
      kwargs = {k: v for k, v in rules.items() if v is not None}
      saver = cls(
          make().global_train_state_shape, partitioner(), directory, **kwargs
      )
    for step, _, pinned in saves:
      saver.save(state_at(step))
      if use_orbax:
        saver.wait_until_finished()
      if pinned:
        checkpoint_utils.pin_checkpoint(f'{directory}/checkpoint_{step}')
    if use_orbax:
      saver.close()
    assert checkpoints.all_steps(directory) == survivors(rules, saves)


BEST = {
    'metric_name_to_monitor': 'train/loss',
    'metric_mode': 'min',
    'keep_checkpoints_without_metrics': False,
}


def _by_gin(cls, **bound):
  name = f'best_{cls.__name__}'
  configurable = gin.external_configurable(cls, name)
  for key, value in bound.items():
    gin.bind_parameter(f'{name}.{key}', value)
  return configurable


@pytest.fixture
def clean_gin():
  yield
  gin.clear_config()


@pytest.mark.parametrize('form', [functools.partial, 'subclass', 'gin'])
@pytest.mark.parametrize(
    'where', ['checkpointer_cls', 'checkpoint_manager_cls']
)
def test_best_settings_are_honoured_in_every_form(
    tmp_path, form, where, clean_gin
):
  del clean_gin
  write_scalars(tmp_path / 'train', {1: 0.1, 2: 0.9, 3: 0.5})
  base = {
      'checkpointer_cls': checkpoints.SaveBestCheckpointer,
      'checkpoint_manager_cls': checkpoints.OrbaxCheckpointManagerInterface,
  }[where]
  settings_ = {**BEST, 'keep': 1}
  if form == 'gin':
    cls = _by_gin(base, **settings_)
  elif form == 'subclass':

    class Best(base):

      def __init__(self, *args, **kwargs):
        super().__init__(*args, **{**settings_, **kwargs})

    cls = Best
  else:
    cls = form(form(base, **BEST), keep=1)
  cfg = checkpoint_config.SaveCheckpointConfig(period=1, **{where: cls})
  m = checkpoint_managers.create_orbax_checkpoint_manager(
      save_cfg=cfg,
      train_state=make().global_train_state_shape,
      partitioner=partitioner(),
      model_dir=str(tmp_path),
  )
  for step in (1, 2, 3, 4):
    m.save(state_at(step))
    m.wait_until_finished()
  m.close()
  assert checkpoints.all_steps(str(tmp_path)) == [1, 4]


def test_the_class_alone_brings_its_own_defaults(tmp_path):
  cfg = checkpoint_config.SaveCheckpointConfig(
      keep=1, checkpointer_cls=checkpoints.SaveBestCheckpointer
  )
  write_scalars(tmp_path / 'train', {1: 0.9, 2: 0.1}, 'accuracy')
  m = checkpoint_managers.create_orbax_checkpoint_manager(
      save_cfg=cfg,
      train_state=make().global_train_state_shape,
      partitioner=partitioner(),
      model_dir=str(tmp_path),
  )
  for step in (1, 2, 3, 4):
    m.save(state_at(step))
    m.wait_until_finished()
  m.close()
  # 3 and 4 have no accuracy: such ones stay unless told otherwise.
  assert checkpoints.all_steps(str(tmp_path)) == [1, 3, 4]


def test_tags_of_seqio_may_go_without_their_prefix(tmp_path, caplog):
  run = tmp_path / 'inference_eval/task'
  write_scalars(run, {1: 0.25}, 'eval/bleu')
  read = functools.partial(best_checkpoints.read_metrics, str(tmp_path))
  assert read('inference_eval/task/bleu', [1, 2]) == {1: 0.25}
  assert read('inference_eval/task/eval/bleu', [1, 2]) == {1: 0.25}
  with caplog.at_level(logging.WARNING, 'absl'):
    assert read('inference_eval/task/blue', [1]) == {}
  assert "No scalar 'blue'" in caplog.text
  assert 'eval/bleu' in caplog.text


def test_scalars_that_are_written_later_are_seen(tmp_path):
  run = tmp_path / 'train'
  read = functools.partial(
      best_checkpoints.read_metrics, str(tmp_path), 'train/loss'
  )
  write_scalars(run, {1: 0.5, 2: 0.25})
  assert read([1, 2, 3]) == {1: 0.5, 2: 0.25}
  # A run that went on from step 1 writes a file of its own.
  write_scalars(run, {2: 0.75, 3: 0.125})
  assert read([1, 2, 3]) == {1: 0.5, 2: 0.75, 3: 0.125}
