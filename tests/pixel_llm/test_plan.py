"""What a run costs on a pod, and the search for the best way to cut it."""

import json
import math

import jax
import pytest

from pixel_llm import mesh_choice
from pixel_llm import mesh_sweep
from pixel_llm import plan
from pixel_llm import run_costs
from pixel_llm.pretrained import target_model

FACTS = run_costs.RunFacts(
    train_steps=7200,
    batch_size=128,
    save_period=1000,
    example_bytes=500_000,
    checkpoint_bytes=16 * 10**9,
)
RUN = ('--gin_file=gin/pixel_llm_tiny_trace.gin',)


def report(seconds=0.5, fits=True, batch_size=128, gib=8):
  """A report of `t5x.precompile`, cut down to what a plan reads."""
  return {
      'topology': 'v5e:8x8',
      'num_devices': 64,
      'num_hosts': 16,
      'mesh': {'data': 32, 'model': 2},
      'steps': [
          {
              'batch_size': batch_size,
              'fits': fits,
              'memory': {'total': gib * 2**30, 'limit': 16 * 2**30},
              'roofline': {
                  'least': seconds,
                  'without_overlap': 2 * seconds,
                  'bound': 'network',
              },
          }
      ],
  }


def test_a_run_is_priced_by_hand():
  costs = run_costs.price(
      FACTS,
      report(),
      run_costs.Rates(image_bytes=1e5, storage_bytes_per_second=1e9),
  )
  # 7,200 steps of half a second are an hour, on 64 chips.
  assert costs.hours == (1.0, 2.0)
  assert costs.chip_hours == (64.0, 128.0)
  # 8 images of a step a host, two steps a second.
  assert costs.images_per_second == 16
  assert costs.read_bytes_per_second == 1.6e6
  assert costs.feed_bytes_per_second == 8e6
  assert costs.host_checkpoint_bytes == 1e9
  assert costs.save_seconds == 1
  assert costs.save_period_seconds == 500


def test_a_report_of_another_run_is_refused():
  with pytest.raises(
      ValueError, match='of 64 examples a step, the run has 128'
  ):
    run_costs.price(FACTS, report(batch_size=64))
  without = report()
  without['steps'][0]['roofline'] = None
  with pytest.raises(ValueError, match='no published figures'):
    run_costs.price(FACTS, without)


def test_the_device_count_is_that_of_the_topology():
  assert mesh_choice.num_devices('v4:2x2x4') == 16
  assert mesh_choice.num_devices('cpu:2') == 2


def test_saves_that_take_too_long_are_told():
  text = '\n'.join(
      plan.lines(FACTS, report(), run_costs.Rates(storage_bytes_per_second=1e6))
  )
  assert 'raise SAVE_PERIOD (1000)' in text
  assert '1.0 to 2.0; 64 to 128 chip-hours' in text


def compiler(fitting):
  """Compiles what `fitting` gives seconds for; notes what was asked."""
  asked = []

  def compile_choice(choice):
    key = (
        choice.num_partitions,
        choice.parameter_dims,
        choice.remat_policy,
        choice.num_microbatches,
    )
    asked.append(key)
    seconds = fitting.get(key)
    if seconds == 'error':
      raise mesh_choice.CompileError('does not divide')
    return report(seconds or 0, fits=seconds is not None)

  return compile_choice, asked


def test_remedies_are_tried_until_a_way_fits():
  compile_choice, asked = compiler(
      {
          (1, 1, 'full', 2): 0.5,
          (1, 2, 'minimal', None): 0.7,
          (2, 1, 'full', None): 0.4,
          (2, 2, 'minimal', None): 'error',
      }
  )
  trials = list(mesh_sweep.sweep(compile_choice, 128, 16, (1, 2, 3)))
  # 16 devices are no multiple of 3.
  assert asked == [
      *[(1, 1, 'minimal', None), (1, 1, 'full', None), (1, 1, 'full', 2)],
      (1, 2, 'minimal', None),
      *[(2, 1, 'minimal', None), (2, 1, 'full', None)],
      (2, 2, 'minimal', None),
  ]
  found = mesh_sweep.best(trials)
  assert found.choice == mesh_choice.MeshChoice(
      num_partitions=2, parameter_dims=1, remat_policy='full'
  )
  assert trials[-1].error == 'does not divide'
  assert 'does not divide' in plan.trial_line(trials[-1])
  assert plan.trial_line(found).endswith('at least 400.0 ms a step')


def test_no_device_is_left_without_an_example():
  compile_choice, asked = compiler({})
  trials = list(mesh_sweep.sweep(compile_choice, 32, 16, (1,)))
  # 32 images in 2 parts are one a device; in 4 parts, none on half of them.
  assert {key[3] for key in asked} == {None, 2}
  assert mesh_sweep.best(trials) is None


def test_a_plan_from_a_report(tmp_path, capsys, monkeypatch):
  asked = []
  # Reading the gin files of a run takes seconds: see the slow tests.
  monkeypatch.setattr(
      run_costs, 'facts_of_gin', lambda *args: asked.append(args) or FACTS
  )
  path = tmp_path / 'report.json'
  path.write_text(json.dumps(report()))
  assert plan.main([*RUN, f'--report={path}', '--gin.BATCH_SIZE=128']) == 0
  assert asked == [(['gin/pixel_llm_tiny_trace.gin'], ['BATCH_SIZE = 128'])]
  out = capsys.readouterr().out
  assert '64 chips, 16 hosts; mesh data 32 x model 2' in out
  assert '8.0 of 16.0 GiB a chip: fits' in out
  path.write_text(json.dumps(report(fits=False)))
  assert plan.main([*RUN, f'--report={path}']) == 1
  assert 'DOES NOT FIT' in capsys.readouterr().out
  path.write_text(json.dumps(report(batch_size=8)))
  assert plan.main([*RUN, f'--report={path}']) == 1
  assert 'the run has 128' in capsys.readouterr().err


@pytest.mark.parametrize(
    'arguments, message',
    [
        ([], 'Give one of --topology, --report and --smallest.'),
        (['--topology=v5e:8x8', '--smallest'], 'Give one of --topology'),
        (['--report=a.json', '--sweep'], '--sweep compiles: it needs'),
    ],
)
def test_a_plan_is_of_one_thing(capsys, arguments, message):
  with pytest.raises(SystemExit) as error:
    plan.main([*RUN, *arguments])
  assert error.value.code == 2
  assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_checkpoint_holds_two_moments_of_what_trains():
  files = ['gin/pixel_llm_tiny_trace.gin']
  bindings = ["FROZEN_DTYPE = 'bfloat16'", "FROZEN = ('sam_backbone',)"]
  facts = run_costs.facts_of_gin(files, bindings)
  params = target_model.from_gin(files, bindings).params
  sizes = {name: _size(tree) for name, tree in params.items()}
  frozen = sizes.pop('sam_backbone')
  trained = sum(sizes.values())
  # Counters of the optimizer and the step are small.
  assert 0 <= facts.checkpoint_bytes - 2 * frozen - 12 * trained < 1000


def _size(tree):
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


@pytest.mark.slow
def test_a_sweep_compiles_and_proposes(capsys):
  args = [*RUN, '--topology=cpu:2', '--sweep', '--partitions=1']
  assert plan.main([*args, '--gin.BATCH_SIZE=4']) == 0
  out = capsys.readouterr().out
  # What fits at once needs no remedy, and of two equal ones the smaller wins.
  first, second, best = out.splitlines()[:3]
  assert first.startswith('NUM_PARTITIONS = 1, PARAMETER_DIMS = 1, REMAT')
  assert second.startswith('NUM_PARTITIONS = 1, PARAMETER_DIMS = 2, REMAT')
  assert best.startswith('Best: --gin.NUM_PARTITIONS=1 --gin.PARAMETER_DIMS=')
  assert 'cpu:2: 2 chips, 1 hosts' in out
  assert 'of 4 images' in out
  assert 'no published figures' in out


@pytest.fixture
def compiler_that(tmp_path, monkeypatch):
  """Has a stand-in for t5x.precompile run shell commands."""

  def make(script):
    python = tmp_path / 'python'
    python.write_text(f'#!/bin/sh\n{script}\n')
    python.chmod(0o755)
    monkeypatch.setattr(mesh_choice.sys, 'executable', str(python))
    return lambda: mesh_choice.compile_step(
        ('gin/a.gin',), ('NUM_PARTITIONS = 1',), 'v5e:8x8'
    )

  return make


def test_a_compiler_that_dies_leaves_its_signal_and_last_words(compiler_that):
  run = compiler_that('seq 20 >&2; kill -SEGV $$')
  with pytest.raises(mesh_choice.CompileError) as error:
    run()
  first, *rest = str(error.value).splitlines()
  assert first == (
      't5x.precompile for v5e:8x8, NUM_PARTITIONS = 1 ended by signal 11'
      ' (Segmentation fault), without a report; its last lines:'
  )
  assert [line.strip() for line in rest] == [str(n) for n in range(13, 21)]


def test_a_compiler_that_says_what_to_mend_is_quoted(compiler_that):
  run = compiler_that('echo noise >&2; echo "error: mend it" >&2; exit 1')
  with pytest.raises(mesh_choice.CompileError, match='^mend it$'):
    run()


def test_a_compiler_that_fails_silently_leaves_its_status(compiler_that):
  with pytest.raises(
      mesh_choice.CompileError, match='with status 3.*or a word$'
  ):
    compiler_that('exit 3')()


@pytest.mark.slow
def test_a_topology_that_is_none_is_an_error_of_the_compiler():
  files = ('gin/pixel_llm_tiny_trace.gin', mesh_choice.MESH_FILE)
  with pytest.raises(mesh_choice.CompileError, match='No topology'):
    mesh_choice.compile_step(files, (), 'v9:2x2')
