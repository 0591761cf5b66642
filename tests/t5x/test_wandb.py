"""Weights & Biases: asked for, resumed, offline, and not installed."""

import dataclasses
import functools
import sys
import types
from typing import Any

import pytest
from run_kwargs import dataset_cfg
from run_kwargs import run_kwargs
import seqio

from t5x import loop
from t5x import wandb_run


@dataclasses.dataclass
class StandIn:
  """A run that keeps what it is told."""

  settings: dict[str, Any]
  logged: list[dict[str, float]] = dataclasses.field(default_factory=list)
  axes: list[tuple[str, Any]] = dataclasses.field(default_factory=list)
  texts: dict[str, str] = dataclasses.field(default_factory=dict)
  finished: bool = False

  def __post_init__(self):
    def update(values, allow_val_change=False):
      assert allow_val_change
      self.texts.update(values)

    self.config = types.SimpleNamespace(update=update)

  def define_metric(self, name, step_metric=None):
    self.axes.append((name, step_metric))

  def log(self, values):
    assert not self.finished
    self.logged.append(values)

  def finish(self):
    self.finished = True


class CommError(Exception):
  pass


@pytest.fixture
def runs(monkeypatch):
  """The runs that a stand-in for the library was asked to start."""
  started = []

  def init(**settings):
    started.append(StandIn(settings))
    return started[-1]

  module = types.ModuleType('wandb')
  module.init = init
  module.errors = types.SimpleNamespace(CommError=CommError)
  monkeypatch.setitem(sys.modules, 'wandb', module)
  return started


CONFIG = wandb_run.WandbConfig('captions', tags=('tiny',))


def test_a_run_sends_its_scalars_and_goes_on_as_the_same_run(runs, tmp_path):
  def summarize(model_dir, writer, step):
    del model_dir
    writer.write_texts(step, {'gin': 'A = 1'})

  for total_steps in (2, 4):
    loop.train(
        **run_kwargs(
            tmp_path,
            save={'period': 2},
            total_steps=total_steps,
            stats_period=1,
            eval_period=2,
            train_eval_dataset_cfg=dataset_cfg('validation'),
            infer_eval_dataset_cfg=dataset_cfg('validation'),
            inference_evaluator_cls=functools.partial(
                seqio.Evaluator, target_field_name='tokens'
            ),
            summarize_config_fn=summarize,
            wandb=CONFIG,
        )
    )
  first, second = runs
  assert first.settings['project'] == 'captions'
  assert first.settings['tags'] == ['tiny']
  assert first.settings['resume'] == 'allow'
  assert first.settings['id'] == second.settings['id']
  assert (tmp_path / 'wandb_run_id').read_text() == first.settings['id']
  assert ('*', 'step') in first.axes
  assert first.texts == {'gin': 'A = 1'}
  assert first.finished and second.finished

  def points(run, name):
    return {line['step']: line[name] for line in run.logged if name in line}

  assert set(points(first, 'train/loss')) == {1, 2}
  assert set(points(second, 'train/loss')) == {3, 4}
  assert set(points(second, 'training_eval/tiny_plain_task/loss')) == {4}
  assert set(points(second, 'inference_eval/tiny_plain_task/exact')) == {4}
  assert all(
      isinstance(v, int | float) for x in first.logged for v in x.values()
  )


def test_a_server_that_does_not_answer_leaves_the_run_on_disk(
    runs, tmp_path, monkeypatch
):
  start = sys.modules['wandb'].init

  def init(**settings):
    if settings['mode'] != 'offline':
      raise CommError('no route to host')
    return start(**settings)

  monkeypatch.setattr(sys.modules['wandb'], 'init', init)
  wandb_run.WandbRun(CONFIG, str(tmp_path))
  (run,) = runs
  assert run.settings['mode'] == 'offline'


def test_without_the_library_the_run_is_refused_before_anything_is_written(
    tmp_path, monkeypatch
):
  monkeypatch.delitem(sys.modules, 'wandb', raising=False)
  monkeypatch.setattr(wandb_run.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ImportError, match='pip install wandb'):
    loop.train(**run_kwargs(tmp_path / 'run', wandb=CONFIG))
  assert not (tmp_path / 'run').exists()


def test_a_run_that_does_not_ask_for_it_never_imports_it(runs, tmp_path):
  loop.train(**run_kwargs(tmp_path, total_steps=1, save={'period': 1}))
  assert not runs
  assert not (tmp_path / 'wandb_run_id').exists()
