"""The watchdog, on a ledger whose clock the test moves."""

import threading

import pytest

from t5x import exit_status
from t5x import ledger as ledger_lib
from t5x import step_watch
from t5x import watchdog


class Clock:
  now = 0.0

  def __call__(self):
    return self.now


class Output:
  """An array that is computed when the test says so."""

  def __init__(self):
    self.asked, self.done = threading.Event(), threading.Event()

  def block_until_ready(self):
    self.asked.set()
    assert self.done.wait(30)


@pytest.fixture
def run():
  """A ledger, a watch, a clock, and a watchdog with its exit statuses."""
  clock = Clock()
  ledger = ledger_lib.Ledger(clock=clock)
  watch = step_watch.StepWatch(ledger, clock)
  statuses, left = [], threading.Event()

  def leave(status):
    statuses.append(status)
    left.set()

  dog = watchdog.Watchdog(
      watchdog.StuckLimits(step=10.0, evaluation=100.0, compile=None),
      ledger,
      watch,
      period=0.01,
      leave=leave,
  )
  yield clock, ledger, watch, dog, left, statuses
  dog.close()
  watch.close()


def test_a_run_that_gets_on_is_left_alone(run):
  clock, ledger, _, dog, left, _ = run
  for category in ('input', 'step', 'input', 'evaluation', 'step'):
    ledger.enter(category)
    clock.now += 9.0
    assert dog.stuck() is None
  ledger.enter('evaluation')
  clock.now += 99.0
  assert dog.stuck() is None
  ledger.enter('compile')
  clock.now += 1e6
  assert dog.stuck() is None
  assert not left.is_set()


def test_a_slow_read_is_named_once_while_a_step_waits_for_it(capfd):
  clock = Clock()
  ledger = ledger_lib.Ledger(clock=clock)
  watch = step_watch.StepWatch(ledger, clock)
  dog = watchdog.Watchdog(
      watchdog.StuckLimits(read=5.0, step=100.0),
      ledger,
      watch,
      period=1e6,
      leave=pytest.fail,
      reads=lambda: [('a.record, record 3', 6.0), ('b.record, record 0', 4.0)],
  )
  ledger.enter('step')
  assert dog.slow_reads() == []
  ledger.enter('input')
  assert dog.slow_reads() == ['a.record, record 3']
  dog.warn()
  dog.warn()
  error = capfd.readouterr().err
  assert error.count('read = 5 s for a.record, record 3.') == 1
  clock.now += 101.0
  assert 'It waits for a.record, record 3.' in dog.stuck()
  dog.close()
  watch.close()


def test_a_batch_that_never_comes_ends_the_run_with_every_stack(run, capfd):
  clock, ledger, _, _, left, statuses = run
  ledger.enter('input')
  clock.now += 11.0
  assert left.wait(30)
  assert statuses == [exit_status.STUCK]
  error = capfd.readouterr().err
  assert 'error: Process 0 is stuck: 11 s in `input`' in error
  assert 'train.stuck_limits.step = 10' in error
  # faulthandler's list of stacks names this function.
  assert 'test_a_batch_that_never_comes' in error


def test_a_step_that_is_never_done_counts_while_the_host_goes_on(run):
  clock, ledger, watch, dog, left, _ = run
  output = Output()
  ledger.enter('step')
  watch.step_started([output])
  assert output.asked.wait(30)
  clock.now += 8.0
  ledger.enter('input')
  assert dog.stuck() is None
  clock.now += 3.0
  assert left.wait(30)
  output.done.set()


def test_after_an_error_among_several_the_way_out_is_short(run, monkeypatch):
  clock, ledger, _, dog, left, _ = run
  monkeypatch.setattr('jax.process_count', lambda: 2)
  dog.closing(ValueError, ValueError('a bad batch'))
  ledger.enter('closing')
  clock.now += 59.0
  assert dog.stuck() is None
  clock.now += 2.0
  assert 'a bad batch' in dog.stuck()
  assert left.wait(30)


def test_limits_are_positive():
  with pytest.raises(ValueError, match='StuckLimits.save must be positive'):
    watchdog.StuckLimits(save=0.0)
