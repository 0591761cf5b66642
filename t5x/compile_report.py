"""The report of `t5x.precompile`, to read and as JSON."""

from collections.abc import Iterator
import dataclasses
import functools
from typing import Any

from t5x import compiled_step
from t5x import precompiling
from t5x import text_table

_table = functools.partial(text_table.lines, right=(1,))

_GIB = 2**30


def lines(report: precompiling.Report) -> Iterator[str]:
  """Yields the report's lines."""
  hardware = report.topology
  axes = ' x '.join(f'{name} {n}' for name, n in report.mesh_shape.items())
  yield (
      f'{hardware.name}: {len(hardware.devices)} devices of'
      f' {hardware.devices[0].device_kind}, {hardware.num_hosts} hosts,'
      f' {hardware.num_slices} slices; mesh {axes}'
  )
  for step in report.steps:
    yield ''
    yield (
        f'==== {step.name} step: {step.batch_size} examples, compiled in'
        f' {step.compile_seconds:.0f} s ===='
    )
    yield from _step_lines(step, report)


def _step_lines(
    step: compiled_step.CompiledStep, report: precompiling.Report
) -> Iterator[str]:
  yield from _memory_lines(step)
  yield ''
  yield from _flops_lines(step)
  yield ''
  yield from _collective_lines(step, report.mesh_shape)
  if step.roofline is not None:
    yield ''
    yield from _roofline_lines(step, report)


def _memory_lines(step: compiled_step.CompiledStep) -> Iterator[str]:
  memory = step.memory
  unit, name = (_GIB, 'GiB') if memory.total >= _GIB else (2**20, 'MiB')

  def shown(size: int) -> str:
    return f'{size / unit:,.2f}'

  yield f'Memory of a device, {name}'
  yield from _table(
      [
          ('  arguments', shown(memory.arguments)),
          ('  temporaries', shown(memory.temporaries)),
          ('  outputs', shown(memory.outputs)),
          ('  aliased', f'-{shown(memory.aliased)}'),
          ('  program', shown(memory.code)),
          ('  total', shown(memory.total)),
          ('  of', '-' if memory.limit is None else shown(memory.limit)),
      ]
  )
  if step.refusal:
    yield f'  The compiler: {step.refusal}'
  verdict = 'fits' if step.fits else 'DOES NOT FIT'
  yield f'  {verdict}; the largest arrays:'
  yield from _table(
      [
          ('    ' + a.name, shown(a.device_bytes), a.kind, a.shape)
          for a in step.largest
      ]
  )


def _flops_lines(step: compiled_step.CompiledStep) -> Iterator[str]:
  flops = step.flops
  yield 'Matrix work, FLOPs'
  yield from _table(
      [
          ('  model, all devices', f'{flops.model:.4g}'),
          ('  computed again, all devices', f'{flops.recomputed:.4g}'),
          ('  both, a device', f'{flops.total / step.num_devices:.4g}'),
          ('  as compiled, a device', f'{step.costs.flops:.4g}'),
      ]
  )
  for line in (*flops.unknown, *step.costs.unknown_loops):
    yield f'  not known: {line}'


def _collective_lines(
    step: compiled_step.CompiledStep, mesh_shape: dict[str, int]
) -> Iterator[str]:
  yield 'Collectives of a device'
  rows = [('  kind', 'over', 'count', 'MiB', 'MiB sent')]
  for row in _collectives(step, mesh_shape):
    rows.append(
        (
            '  ' + row['kind'],
            ' '.join(row['axes']),
            f'{row["count"]:,.0f}',
            f'{row["bytes"] / 2**20:,.1f}',
            f'{row["sent_bytes"] / 2**20:,.1f}',
        )
    )
  if len(rows) == 1:
    yield '  none'
  else:
    yield from _table(rows)


def _roofline_lines(
    step: compiled_step.CompiledStep, report: precompiling.Report
) -> Iterator[str]:
  roofline, chip = step.roofline, report.topology.chip
  yield 'Roofline of a device, ms'
  yield from _table(
      [
          ('  matrix work', _ms(roofline.matmul), f'{chip.flops:.4g} FLOP/s'),
          (
              '  memory',
              _ms(roofline.hbm),
              f'{step.costs.hbm_bytes / _GIB:,.1f} GiB',
              f'{chip.hbm_bandwidth / 1e9:,.0f} GB/s',
          ),
          ('  network', _ms(roofline.network)),
      ]
  )
  at_most = step.flops.model / (step.num_devices * chip.flops * roofline.least)
  yield (
      f'  at least {_ms(roofline.least)} ms a step, bound by {roofline.bound};'
      f' {_ms(roofline.without_overlap)} ms if nothing overlaps'
  )
  yield f'  so at most {at_most:.0%} model FLOPs utilisation'
  if roofline.unpriced:
    yield (
        f'  {roofline.unpriced} collectives between slices are left out: no'
        f' published bandwidth for {chip.name}'
    )


def _collectives(
    step: compiled_step.CompiledStep, mesh_shape: dict[str, int]
) -> list[dict[str, Any]]:
  """Sums collectives of one kind over the same mesh axes."""
  rows: dict[Any, dict[str, Any]] = {}
  for collective, count in step.costs.collectives:
    axes = collective.axes(mesh_shape)
    row = rows.setdefault(
        (collective.kind, axes),
        {
            'kind': collective.kind,
            'axes': list(axes),
            'count': 0.0,
            'bytes': 0.0,
            'sent_bytes': 0.0,
        },
    )
    row['count'] += count
    row['bytes'] += count * collective.num_bytes
    row['sent_bytes'] += count * collective.sent_bytes
  return sorted(rows.values(), key=lambda row: -row['sent_bytes'])


def as_json(report: precompiling.Report) -> dict[str, Any]:
  """Returns the report as numbers, texts, lists and dicts; bytes, seconds."""
  hardware = report.topology
  return {
      'topology': hardware.name,
      'num_devices': len(hardware.devices),
      'num_hosts': hardware.num_hosts,
      'num_slices': hardware.num_slices,
      'device_kind': hardware.devices[0].device_kind,
      'mesh': report.mesh_shape,
      'steps': [_step_json(step, report.mesh_shape) for step in report.steps],
  }


def _step_json(
    step: compiled_step.CompiledStep, mesh_shape: dict[str, int]
) -> dict[str, Any]:
  data = dataclasses.asdict(step)
  data['fits'] = step.fits
  data['flops']['model'] = step.flops.model
  data['memory']['total'] = step.memory.total
  data['costs']['collectives'] = _collectives(step, mesh_shape)
  if step.roofline is not None:
    data['roofline'] |= {
        'least': step.roofline.least,
        'without_overlap': step.roofline.without_overlap,
        'bound': step.roofline.bound,
    }
  return data


def _ms(seconds: float) -> str:
  return f'{seconds * 1e3:,.1f}'
