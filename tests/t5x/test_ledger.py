"""Where the wall clock of a run went."""

import json
import time

import jax
import pytest
from run_kwargs import run_kwargs

from t5x import ledger as ledger_lib
from t5x import loop
from t5x import step_watch


class Clock:
  """Stands still until it is told."""

  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


@pytest.fixture
def clock():
  return Clock()


@pytest.fixture
def ledger(clock):
  return ledger_lib.Ledger(clock=clock)


def _lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def _nonzero(seconds):
  return {name: value for name, value in seconds.items() if value}


def test_each_second_counts_once_for_the_innermost_category(ledger, clock):
  clock.now += 1
  ledger.enter('data')
  clock.now += 2
  with ledger.spend('evaluation'):
    clock.now += 4
    with pytest.raises(KeyError), ledger.spend('compile'):
      clock.now += 8
      raise KeyError
    clock.now += 16
  clock.now += 32
  assert _nonzero(ledger.seconds()) == pytest.approx(
      {'startup': 1, 'data': 34, 'evaluation': 20, 'compile': 8}, abs=1e-3
  )


def test_time_before_the_ledger_is_startup():
  ledger = ledger_lib.Ledger(time.time() - 50)
  assert 50 <= ledger.seconds()['startup'] < 60


def test_process_start_lies_between_boot_and_now():
  start = ledger_lib.process_start()
  # This process has imported JAX.
  assert start < time.time() - 0.1
  assert abs(ledger_lib.process_start() - start) < 0.1


def test_unexplained_time_lowers_the_share(ledger, clock):
  ledger.enter('step')
  clock.now += 3
  ledger.enter('other')
  clock.now += 1
  assert ledger_lib.explained(ledger.seconds()) == pytest.approx(0.75, abs=1e-3)
  table = ledger_lib.summary(ledger.seconds())
  assert '4.0 s, 75.00% explained' in table
  assert table.index('step') < table.index('other')


class DeviceClock(Clock):
  """For the watching thread it tells when the step it waited for was done."""

  def __init__(self):
    super().__init__()
    self.done = 0.0

  def device(self):
    return self.done

  def output(self, done):
    clock = self

    class Output:

      def block_until_ready(self):
        clock.done = done

    return {'loss': Output()}


@pytest.mark.parametrize(
    'done, expected',
    [
        # The step takes 10 s, the wait for the next batch the first 4 of them.
        (110, {'input': 0, 'step': 4, 'idle': 0}),
        # Done after 3 of the 4 seconds.
        (103, {'input': 1, 'step': 3, 'idle': 0}),
        # Done before the host asked, 2 s after the call.
        (99, {'input': 4, 'step': 1, 'idle': 1}),
    ],
)
def test_waiting_for_a_batch_counts_only_while_the_device_has_no_work(
    done, expected
):
  clock = DeviceClock()
  ledger = ledger_lib.Ledger(clock=clock)
  watch = step_watch.StepWatch(ledger, clock)
  # The thread reads its own clock; the loop's fields are set by hand below.
  watch._clock = clock.device
  ledger.enter('step')
  watch._steps.put(
      step_watch._Step(since=98, asked=98, given=98, output=clock.output(done))
  )
  clock.now = 100
  with ledger.spend('input'):
    clock.now = 104
  before = ledger.seconds()
  since = 98 if done == 99 else 100
  clock.now = 104
  watch._steps.put(
      step_watch._Step(
          since=since, asked=100, given=104, output=clock.output(120)
      )
  )
  watch.close()
  after = ledger.seconds()
  assert before['input'] == 4
  assert after['input'] == expected['input']
  assert after['idle'] == expected['idle']
  assert after['step'] - before['step'] == 4 - expected['input'] - (
      expected['idle']
  )
  assert sum(after.values()) == pytest.approx(sum(before.values()))


def test_an_iterator_keeps_its_methods_and_its_end(ledger):
  class Stream:

    def __init__(self):
      self.left = [1, 2]

    def __next__(self):
      if not self.left:
        raise StopIteration
      return self.left.pop(0)

    def peek(self):
      return self.left[0]

  watch = step_watch.StepWatch(ledger)
  batches = watch.batches(Stream())
  assert batches.peek() == 1
  assert list(batches) == [1, 2]
  watch.close()


@pytest.fixture(scope='module')
def twice(tmp_path_factory):
  """Seconds that the ledger should hold, and a run that went on once."""
  model_dir = tmp_path_factory.mktemp('ledger') / 'run'
  elapsed = []
  for total_steps, profile_steps in ((4, None), (8, (5, 7))):
    kwargs = run_kwargs(
        model_dir, total_steps=total_steps, profile_steps=profile_steps
    )
    start = time.time()
    loop.train(**kwargs, start_time=start)
    elapsed.append(time.time() - start)
  return model_dir, elapsed


def test_a_run_explains_its_wall_clock(twice):
  model_dir, elapsed = twice
  found = json.loads((model_dir / 'ledger.json').read_text())
  first, second = found['starts']
  assert found['explained'] >= 0.99
  for entry, seconds in zip(found['starts'], elapsed):
    assert set(entry['seconds']) == set(ledger_lib.CATEGORIES)
    assert min(entry['seconds'].values()) >= 0
    assert sum(entry['seconds'].values()) == pytest.approx(seconds, abs=0.2)
  for name in ('data', 'init', 'compile', 'input', 'step', 'checkpoint'):
    assert first['seconds'][name] > 0, name
  assert (first['first_step'], first['last_step']) == (0, 4)
  assert (second['first_step'], second['last_step']) == (4, 8)
  assert [e['ended_by'] for e in found['starts']] == ['finished'] * 2


def test_a_run_that_goes_on_adds_to_its_ledger(twice):
  model_dir, _ = twice
  found = json.loads((model_dir / 'ledger.json').read_text())
  for name, total in found['seconds'].items():
    parts = [entry['seconds'][name] for entry in found['starts']]
    assert total == pytest.approx(sum(parts), abs=0.05)
  points = [
      line
      for line in _lines(model_dir / 'train-metrics.jsonl')
      if 'ledger/total_seconds' in line
  ]
  totals = [line['ledger/total_seconds'] for line in points]
  assert totals == sorted(totals)
  assert totals[-1] > sum(found['starts'][0]['seconds'].values())


def test_all_scalars_are_in_the_json_lines(twice):
  model_dir, _ = twice
  names = set()
  for line in _lines(model_dir / 'train-metrics.jsonl'):
    names |= set(line)
  # The peak of a CPU is not published.
  assert set(ledger_lib.SCALARS) - names == {'timing/mfu'}


def test_profiled_steps_leave_a_trace(twice):
  model_dir, _ = twice
  traces = list((model_dir / 'profile').rglob('*.xplane.pb'))
  assert traces and traces[0].stat().st_size > 0
  found = json.loads((model_dir / 'ledger.json').read_text())
  assert found['starts'][0]['seconds']['profile'] == 0
  assert found['starts'][1]['seconds']['profile'] > 0


@pytest.mark.parametrize('steps', [(3, 3), (5,), (-1, 2)])
def test_impossible_profile_steps_are_refused(tmp_path, steps):
  with pytest.raises(ValueError, match='profile_steps'):
    loop.train(**run_kwargs(tmp_path / 'run', profile_steps=steps))
  assert not (tmp_path / 'run').exists()


def test_an_error_ends_the_ledger_with_its_name(tmp_path):
  def fails(*_):
    raise RuntimeError('no configuration')

  with pytest.raises(RuntimeError):
    loop.train(**run_kwargs(tmp_path, summarize_config_fn=fails))
  (entry,) = json.loads((tmp_path / 'ledger.json').read_text())['starts']
  assert entry['ended_by'] == 'RuntimeError'


def test_a_ledger_that_is_not_ours_is_refused(tmp_path, ledger):
  (tmp_path / 'ledger.json').write_text('[]')
  with pytest.raises(ValueError, match=r'ledger\.json .* Move it away'):
    ledger.open(str(tmp_path), 0)


def test_other_hosts_write_no_ledger(tmp_path, ledger, monkeypatch):
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  ledger.open(str(tmp_path), 0)
  with ledger:
    pass
  assert not list(tmp_path.iterdir())
