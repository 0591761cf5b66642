import pytest

from t5x import step_plan


def plan(**kwargs):
  return step_plan.StepPlan.create(**{'first': 0, 'total_steps': 10, **kwargs})


def test_units_end_at_the_smallest_period_and_at_the_total():
  p = plan(first=3, total_steps=20, eval_period=8, save_period=4)
  assert list(p.unit_ends()) == [7, 11, 15, 19, 20]
  assert [s for s in p.unit_ends() if p.saves_at(s)] == [7, 11, 15, 19, 20]
  assert [s for s in p.unit_ends() if p.is_due(8, s)] == [11, 19, 20]


def test_stretches_stop_at_checkpoint_steps():
  p = plan(save_period=10, stats_period=4, checkpoint_steps=[3, 7])
  assert list(p.stretches(0, 10)) == [3, 7, 10]
  assert p.saves_at(3)
  assert not p.saves_at(4)


def test_a_run_without_periods_is_one_unit():
  assert list(plan().unit_ends()) == [10]
  assert list(plan().stretches(0, 10)) == [10]
  assert not plan().saves_at(10)


def test_relative_steps_count_from_the_start():
  assert plan(first=7, relative_steps=5).total == 12
  assert list(plan(first=7, relative_steps=0).unit_ends()) == []


def test_a_run_cannot_end_before_it_starts():
  with pytest.raises(
      ValueError, match='step 10 but starts at step 11.*TRAIN_STEPS_RELATIVE'
  ):
    plan(first=11)


def test_periods_are_multiples_of_the_smallest():
  with pytest.raises(ValueError, match=r'eval_period \(5\).*\(2\)'):
    plan(eval_period=5, save_period=2)
