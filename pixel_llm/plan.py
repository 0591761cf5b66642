r"""What a run costs on a pod, and how to cut it over the pod's chips.

    python -m pixel_llm.plan --gin_file=gin/pixel_llm_t5_trace.gin \
      --gin_file=gin/mesh/v5e.gin --topology=v5e:8x8

compiles the train step for the pod (`t5x.precompile`) and prints hours and
chip-hours, what a host has to read, and the size and time of a checkpoint. With
--sweep it compiles candidates of `gin/mesh/data.gin`, and plans with the best.
With --report it takes a report of `t5x.precompile --json` instead. See
docs/pods.md. With --smallest it compiles nothing, and says which slice of each
kind of TPU is the smallest that the train state fits, and why. See
docs/launch.md.

Exit status: 0 planned; 1 nothing fits, or failed; 2 wrong arguments.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
import json
import math
import sys
from typing import Any

from pixel_llm import command_line
from pixel_llm import mesh_choice
from pixel_llm import mesh_sweep
from pixel_llm import run_costs
from pixel_llm import smallest_pods

_GIB = 2**30


def _parser() -> argparse.ArgumentParser:
  parser = command_line.new_parser('python -m pixel_llm.plan', __doc__)
  parser.add_argument(
      '--gin_file',
      action='append',
      required=True,
      metavar='FILE',
      help='a gin file of the run; may be repeated, later ones win',
  )
  command_line.add_gin_bindings(parser)
  parser.add_argument(
      '--topology',
      metavar='KIND:SIZE',
      help='the pod, as t5x.precompile has it: v5e:8x8, v4:2x2x4, …',
  )
  parser.add_argument(
      '--sweep',
      action='store_true',
      help='compile ways to cut the run, and take the best',
  )
  parser.add_argument(
      '--partitions',
      type=lambda text: tuple(map(int, text.split(','))),
      default=mesh_sweep.PARTITIONS,
      metavar='N,N',
      help='of a sweep: numbers of devices that may share a copy of the model'
      ' (1,2,4)',
  )
  parser.add_argument(
      '--report',
      metavar='FILE',
      help='a report of t5x.precompile, instead of compiling',
  )
  parser.add_argument(
      '--smallest',
      action='store_true',
      help='only say, by arithmetic, what the smallest slices are that could'
      ' hold the run',
  )
  parser.add_argument(
      '--room_gib',
      type=float,
      default=smallest_pods.ROOM_GIB,
      help='of --smallest: what a step takes of a chip beside its state and its'
      ' gradients (%(default)g: one image at a time)',
  )
  parser.add_argument(
      '--image_kb',
      type=float,
      default=run_costs.Rates.image_bytes / 1e3,
      help='kilobytes of a stored picture (%(default)g: a JPEG of COCO)',
  )
  parser.add_argument(
      '--storage_mb_per_second',
      type=float,
      default=run_costs.Rates.storage_bytes_per_second / 1e6,
      help='of a host, to where checkpoints lie (%(default)g)',
  )
  return parser


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the command line; wrong arguments end the process."""
  parser = _parser()
  args = command_line.parse(parser, argv)
  asked = (args.topology is not None, args.report is not None, args.smallest)
  if sum(asked) != 1:
    parser.error('Give one of --topology, --report and --smallest.')
  if args.sweep and args.topology is None:
    parser.error('--sweep compiles: it needs --topology.')
  return args


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  return command_line.run(_run, _parse(argv))


def _run(args: argparse.Namespace) -> int:
  if args.smallest:
    run = smallest_pods.state_of_gin(args.gin_file, args.gin_bindings)
    room = int(args.room_gib * _GIB)
    print('\n'.join(smallest_pods.lines(run, room)))
    return 0
  facts = run_costs.facts_of_gin(args.gin_file, args.gin_bindings)
  if args.report:
    with open(args.report, encoding='utf-8') as file:
      report = json.load(file)
  elif args.sweep:
    found = _sweep(args, facts)
    if found is None:
      print('error: nothing fits; take a larger pod.', file=sys.stderr)
      return 1
    report = found
  else:
    report = mesh_choice.compile_step(
        args.gin_file, args.gin_bindings, args.topology
    )
  rates = run_costs.Rates(
      image_bytes=args.image_kb * 1e3,
      storage_bytes_per_second=args.storage_mb_per_second * 1e6,
  )
  print('\n'.join(lines(facts, report, rates)))
  return 0 if report['steps'][0]['fits'] else 1


def _sweep(
    args: argparse.Namespace, facts: run_costs.RunFacts
) -> Mapping[str, Any] | None:
  """Compiles candidates, tells of each; returns the report of the best."""
  files = [*args.gin_file]
  if mesh_choice.MESH_FILE not in files:
    files.append(mesh_choice.MESH_FILE)

  def compile_choice(choice: mesh_choice.MeshChoice) -> Mapping[str, Any]:
    bindings = [*args.gin_bindings, *choice.bindings()]
    return mesh_choice.compile_step(files, bindings, args.topology)

  trials = []
  for trial in mesh_sweep.sweep(
      compile_choice,
      facts.batch_size,
      mesh_choice.num_devices(args.topology),
      args.partitions,
  ):
    trials.append(trial)
    print(trial_line(trial), flush=True)
  found = mesh_sweep.best(trials)
  if found is None:
    return None
  print(f'Best: {found.choice.flags()}\n')
  return found.report


def trial_line(trial: mesh_sweep.Trial) -> str:
  """Returns a line about a candidate."""
  name = ', '.join(trial.choice.bindings())
  if trial.report is None:
    return f'{name}: {trial.error}'
  memory = f'{trial.memory / _GIB:.1f} GiB'
  if not trial.fits:
    return f'{name}: {memory}, does not fit'
  return f'{name}: {memory}, at least {trial.seconds * 1e3:,.1f} ms a step'


def lines(
    facts: run_costs.RunFacts,
    report: Mapping[str, Any],
    rates: run_costs.Rates,
) -> Iterator[str]:
  """Yields the plan's lines."""
  step = report['steps'][0]
  memory = step['memory']
  limit = memory['limit'] or math.inf
  yield (
      f'{report["topology"]}: {report["num_devices"]} chips,'
      f' {report["num_hosts"]} hosts; mesh {mesh_choice.describe_mesh(report)}'
  )
  yield (
      f'  memory      {memory["total"] / _GIB:.1f} of {limit / _GIB:.1f} GiB a'
      f' chip: {"fits" if step["fits"] else "DOES NOT FIT"}'
  )
  yield (
      f'  steps       {facts.train_steps:,} of {facts.batch_size} images,'
      f' {facts.train_steps * facts.batch_size / 1e6:,.2f} million images'
  )
  if step['roofline'] is None:
    yield f'  checkpoint  {facts.checkpoint_bytes / 1e9:,.2f} GB'
    yield (
        f'{report["topology"]} has no published figures, so that its steps have'
        ' no price.'
    )
    return
  yield from _price_lines(facts, report, rates)


def _price_lines(
    facts: run_costs.RunFacts,
    report: Mapping[str, Any],
    rates: run_costs.Rates,
) -> Iterator[str]:
  """Yields the lines about time."""
  costs = run_costs.price(facts, report, rates)
  least, most = (s * 1e3 for s in costs.step_seconds)
  yield (
      f'  a step      {least:,.1f} ms at least, bound by'
      f' {report["steps"][0]["roofline"]["bound"]}; {most:,.1f} ms if nothing'
      ' overlaps'
  )
  yield (
      f'  hours       {costs.hours[0]:,.1f} to {costs.hours[1]:,.1f};'
      f' {costs.chip_hours[0]:,.0f} to {costs.chip_hours[1]:,.0f} chip-hours'
  )
  yield (
      f'  a host      reads {costs.images_per_second:,.0f} images/s,'
      f' {costs.read_bytes_per_second / 1e6:,.1f} MB/s of'
      f' {rates.image_bytes / 1e3:g} kB each, and hands'
      f' {costs.feed_bytes_per_second / 1e6:,.1f} MB/s to its chips'
  )
  yield (
      f'  checkpoint  {facts.checkpoint_bytes / 1e9:,.2f} GB, of a host'
      f' {costs.host_checkpoint_bytes / 1e9:,.2f} GB in'
      f' {costs.save_seconds:,.1f} s at'
      f' {rates.storage_bytes_per_second / 1e6:g} MB/s, every'
      f' {costs.save_period_seconds:,.0f} s'
  )
  if costs.save_seconds > costs.save_period_seconds:
    yield (
        '  Saves take longer than the steps between them: raise SAVE_PERIOD'
        f' ({facts.save_period}).'
    )
  yield 'Assumed:'
  for assumption in run_costs.ASSUMPTIONS:
    yield f'  {assumption}'


if __name__ == '__main__':
  sys.exit(main())
