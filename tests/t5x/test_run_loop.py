"""`loop.train` in this process: evaluation, saving, stopping, starting."""

import functools
import json

import jax
import numpy as np
import pytest
from run_kwargs import dataset_cfg
from run_kwargs import run_kwargs
import seqio
import tiny_task

from t5x import checkpoint_config
from t5x import checkpoint_utils
from t5x import checkpoints
from t5x import loop
from t5x import optimizers
from t5x import trainer


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def find(path, key):
  return {line['step']: line[key] for line in lines(path) if key in line}


class StopAt(trainer.BaseAction):

  def __init__(self, step):
    self.step, self.seen = step, []

  def run(self, train_state, metrics_by_task):
    self.seen.append(metrics_by_task)
    return int(train_state.step) >= self.step


@pytest.fixture(scope='module')
def whole_run(tmp_path_factory):
  """Four steps, evaluated in both ways every second one."""
  model_dir = tmp_path_factory.mktemp('run')
  step, state = loop.train(
      **run_kwargs(
          model_dir,
          save={'period': 2, 'checkpoint_steps': [3]},
          stats_period=1,
          eval_period=2,
          train_eval_dataset_cfg=dataset_cfg('validation', 'tiny_mixture'),
          infer_eval_dataset_cfg=dataset_cfg('validation'),
          inference_evaluator_cls=lambda **kwargs: seqio.Evaluator(
              logger_cls=[seqio.TensorBoardLogger, seqio.JSONLogger],
              target_field_name='tokens',
              **kwargs,
          ),
      )
  )
  assert step == int(state.step) == 4
  return model_dir


def test_every_step_has_its_loss_and_its_learning_rate(whole_run):
  metrics = whole_run / 'train-metrics.jsonl'
  assert list(find(metrics, 'loss')) == [1, 2, 3, 4]
  assert find(metrics, 'learning_rate')[4] == pytest.approx(0.01)


def test_the_run_times_its_parts(whole_run):
  metrics = whole_run / 'train-metrics.jsonl'
  for name in ('init_or_restore_seconds', 'compilation_seconds'):
    assert set(find(metrics, f'timing/{name}')) == {0}
  assert set(find(metrics, 'timing/train_iter_warmup')) == {0}
  assert set(find(metrics, 'timing/checkpoint_seconds')) == {0, 2, 3, 4}
  assert set(find(metrics, 'timing/evaluate_seconds')) == {2, 4}


def test_saves_before_the_loop_at_periods_and_at_extra_steps(whole_run):
  assert checkpoints.all_steps(str(whole_run)) == [0, 2, 3, 4]


def test_the_loss_is_measured_on_every_task_and_the_mixture(whole_run):
  for name in ('tiny_task', 'tiny_plain_task', 'tiny_mixture'):
    metrics = whole_run / f'training_eval/{name}-metrics.jsonl'
    assert set(find(metrics, 'loss')) == {2, 4}


def test_decoded_results_are_scored_and_written(whole_run):
  directory = whole_run / 'inference_eval'
  written = lines(directory / 'tiny_plain_task-metrics.jsonl')
  assert [line['step'] for line in written] == [2, 4]
  # The last batch is padded: ten examples, eight a batch.
  assert written[0]['exact'] == 1.0
  assert len(lines(directory / 'tiny_plain_task-000004.jsonl')) == 10
  assert list((directory / 'tiny_plain_task').glob('events*'))


def test_model_info_names_every_variable(whole_run):
  text = (whole_run / 'model-info.txt').read_text()
  assert (
      'Variable head/kernel size 8 shape (embed=8, mlp=1) partition spec'
      " (None, 'model')\n" in text
  )
  assert 'Total number of parameters: 64\n\nVariable step size 1' in text


def test_a_finished_run_returns_at_once(whole_run):
  step, state = loop.train(**run_kwargs(whole_run))
  assert step == int(state.step) == 4
  # Sharded as the trainer wants it.
  spec = state.params['blocks.0']['kernel'].sharding.spec
  assert tuple(spec) == (None, 'model')


class Crash(Exception):
  pass


def test_an_evaluation_that_was_cut_off_is_made_up_for(tmp_path):
  calls = []

  def evaluator(crashes, **kwargs):
    class Evaluator(seqio.Evaluator):

      def evaluate(self, *args, **kwargs):
        # Step 2's goes well; the run dies in that of its last step.
        calls.append(crashes)
        if crashes and len(calls) == 2:
          raise Crash
        return super().evaluate(*args, **kwargs)

    return Evaluator(
        logger_cls=[seqio.JSONLogger], target_field_name='tokens', **kwargs
    )

  def run(crashes):
    return loop.train(
        **run_kwargs(
            tmp_path,
            save={'period': 2},
            eval_period=2,
            infer_eval_dataset_cfg=dataset_cfg('validation'),
            inference_evaluator_cls=functools.partial(evaluator, crashes),
            concurrent_metrics=False,
        )
    )

  with pytest.raises(Crash):
    run(crashes=True)
  path = tmp_path / 'inference_eval/tiny_plain_task-metrics.jsonl'
  assert [line['step'] for line in lines(path)] == [2]
  step, _ = run(crashes=False)
  assert step == 4
  assert [line['step'] for line in lines(path)] == [2, 4]
  assert not (tmp_path / 'evaluation_owed').exists()
  # And it is not made up for twice.
  run(crashes=False)
  assert [line['step'] for line in lines(path)] == [2, 4]


def test_another_model_in_model_dir_is_refused(whole_run):
  model = tiny_task.TinyModel(optimizers.adamw(0.01), width=9)
  with pytest.raises(ValueError, match='MODEL_DIR holds another model'):
    loop.train(**run_kwargs(whole_run, model=model))
  model = tiny_task.TinyModel(optimizers.sgd(0.01))
  with pytest.raises(ValueError, match='Only in the checkpoint(.|\n)*/mu/'):
    loop.train(**run_kwargs(whole_run, model=model))


def test_a_new_run_starts_from_another_ones_checkpoint(whole_run, tmp_path):
  restore = checkpoint_config.RestoreCheckpointConfig(
      str(whole_run / 'checkpoint_3'), mode='specific'
  )
  step, state = loop.train(
      **run_kwargs(
          tmp_path, restore=restore, relative_steps=2, save={'period': 2}
      )
  )
  assert step == int(state.step) == 5
  first = checkpoints.load_t5x_checkpoint(str(tmp_path), step=3)
  saved = checkpoints.load_t5x_checkpoint(str(whole_run), step=3)
  jax.tree.map(np.testing.assert_array_equal, first, saved)


def test_a_saved_cast_does_not_change_the_dtype_of_training(tmp_path):
  for total in (2, 4):
    _, state = loop.train(
        **run_kwargs(
            tmp_path, save={'dtype': 'bfloat16', 'period': 2}, total_steps=total
        )
    )
    assert state.params['head']['kernel'].dtype == np.float32


def test_a_run_in_the_legacy_layout_goes_on_and_may_change_its_layout(tmp_path):
  for total, use_orbax in ((2, False), (4, False), (6, True), (8, False)):
    step, _ = loop.train(
        **run_kwargs(
            tmp_path,
            save={'period': 2},
            total_steps=total,
            stats_period=1,
            use_orbax=use_orbax,
        )
    )
    assert step == total
  losses = find(tmp_path / 'train-metrics.jsonl', 'loss')
  whole = tmp_path / 'whole'
  loop.train(
      **run_kwargs(whole, save={'period': 8}, total_steps=8, stats_period=1)
  )
  assert losses == find(whole / 'train-metrics.jsonl', 'loss')
  layouts = [
      checkpoint_utils.detect_checkpoint_type(
          str(tmp_path / f'checkpoint_{step}')
      ).name
      for step in checkpoints.all_steps(str(tmp_path))
  ]
  assert layouts == ['T5X', 'T5X', 'T5X', 'ORBAX', 'T5X']


def test_actions_stop_the_run_and_it_is_saved(tmp_path):
  action = StopAt(2)
  step, _ = loop.train(
      **run_kwargs(
          tmp_path,
          save={'period': 4},
          stats_period=1,
          concurrent_metrics=False,
          actions={'TRAIN': [action]},
      )
  )
  assert step == 2
  assert checkpoints.all_steps(str(tmp_path)) == [0, 2]
  assert [list(seen) for seen in action.seen] == [['train'], ['train']]
  assert action.seen[0]['train']['loss'].value > 0


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        ({'actions': {'EVAL': []}}, "Unknown action mode 'EVAL'"),
        ({'actions': {'TRAIN': []}}, 'concurrent_metrics = False'),
        (
            {'restore': checkpoint_config.RestoreCheckpointConfig(['a', 'b'])},
            'must be a string',
        ),
        (
            {
                'restore': checkpoint_config.RestoreCheckpointConfig(
                    'a', mode='all'
                )
            },
            "mode 'all'",
        ),
        ({'gc_period': 3}, 'multiple of the smallest'),
        ({'train_dataset_cfg': dataset_cfg('tset')}, "no split 'tset'"),
    ],
)
def test_contradictions_are_refused(tmp_path, overrides, message):
  with pytest.raises(ValueError, match=message):
    loop.train(**run_kwargs(tmp_path, **overrides))


def test_preemption_saves_and_goes_on_being_raised(tmp_path):
  class Preempted(trainer.Trainer):

    def train(self, batch_iter, num_steps, start_step=None):
      super().train(batch_iter, 1, start_step).result()
      raise trainer.PreemptionError('the machine goes away')

  kwargs = run_kwargs(tmp_path)
  kwargs['trainer_cls'] = lambda **kw: Preempted(
      **kw, learning_rate_fn=lambda step: 0.01, num_microbatches=None
  )
  with pytest.raises(trainer.PreemptionError):
    loop.train(**kwargs)
  assert checkpoints.all_steps(str(tmp_path)) == [0, 1]


def test_a_run_that_saves_nothing_still_goes_on_from_a_checkpoint(whole_run):
  step, state = loop.train(
      **run_kwargs(
          whole_run,
          total_steps=5,
          checkpoint_cfg=checkpoint_config.CheckpointConfig(),
      )
  )
  assert step == int(state.step) == 5
  assert checkpoints.latest_step(str(whole_run)) == 4
