"""A notice to stop that comes during an evaluation: it does not wait for it."""

import functools
import json
import signal

import pytest
from run_kwargs import dataset_cfg
from run_kwargs import run_kwargs
import seqio

from t5x import checkpoints
from t5x import loop
from t5x import preemption


@pytest.fixture(name='notice')
def _notice(monkeypatch):
  """Sets the batch, counted over both evaluations, in which SIGTERM comes."""
  raise_if_reached = preemption.raise_if_reached
  seen = []

  def set_batch(number):
    seen.clear()

    def check():
      seen.append(None)
      if len(seen) == number:
        signal.raise_signal(signal.SIGTERM)
      raise_if_reached()

    monkeypatch.setattr(preemption, 'raise_if_reached', check)
    return seen

  return set_batch


def test_an_evaluation_is_left_to_the_next_start(tmp_path, notice):
  owed = tmp_path / 'evaluation_owed'
  scored = tmp_path / 'inference_eval/tiny_plain_task-metrics.jsonl'

  def run():
    return loop.train(
        **run_kwargs(
            tmp_path,
            save={'period': 4},
            eval_period=2,
            train_eval_dataset_cfg=dataset_cfg('validation'),
            infer_eval_dataset_cfg=dataset_cfg('validation'),
            inference_evaluator_cls=functools.partial(
                seqio.Evaluator,
                logger_cls=[seqio.JSONLogger],
                target_field_name='tokens',
            ),
        )
    )

  def is_preempted():
    with pytest.raises(preemption.PreemptionError, match='which is saved'):
      run()
    assert checkpoints.latest_step(str(tmp_path)) == 2
    assert owed.read_text() == '2'
    assert not scored.exists()

  seen = notice(2)
  is_preempted()
  assert len(seen) == 2  # in the loss, which has two batches
  notice(3)
  is_preempted()  # in what is decoded, owed from the first start
  notice(0)
  step, _ = run()
  assert step == 4
  assert not owed.exists()
  steps = [json.loads(x)['step'] for x in scored.read_text().splitlines()]
  assert steps == [2, 4]


def test_an_evaluation_without_a_run_hears_no_notice():
  with preemption.heeded():
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(preemption.PreemptionError):
      preemption.raise_if_reached()
  preemption.raise_if_reached()
