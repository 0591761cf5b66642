"""The page of docs/pods.md, from the reports of `pods.py`."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pixel_llm import mesh_choice
from t5x import chips

_GIB = 2**30

_HEAD = """# Every recipe on pods

The steps of the published recipes at full size, compiled for TPU pods by TPU's
own compiler, on a machine without any ([precompile](precompile.md) tells what
the figures mean, and how far to trust them). `benchmarks/pods.py` compiles the
cells and writes this page from their reports, `docs/pods/<cell>.json`, which hold
the command of each, its largest arrays and its collectives:

```sh
pip install -c constraints.txt 'jax[tpu]'
python benchmarks/pods.py compile   # what is missing, or whose gin files changed
python benchmarks/pods.py table
```

Each cell is `gin/pixel_llm_<recipe>.gin`, then `gin/mesh/<kind>.gin`, and what the
column *also* says. *Mesh* is data x model: the batch is cut over the first, heads,
MLPs and vocabulary over the second; a model axis of 1 is a whole copy on each
chip. Frozen parameters are bfloat16. *Model* is FLOPs of a step on all chips. *At
least* is the roofline: no step can be faster; *at most* is the time if nothing
overlaps, and *MFU* the model FLOPs utilisation at the roofline. *Sent* is what a
chip puts on the wire.
"""

_TAIL = """
## What a run costs

```sh
python -m pixel_llm.plan --gin_file=gin/pixel_llm_t5_trace.gin \\
  --gin_file=gin/mesh/v5e.gin --topology=v5e:8x8   # or --report=FILE
python -m pixel_llm.plan --gin_file=gin/pixel_llm_t5_trace.gin \\
  --topology=v5e:8x8 --sweep
```

compiles the train step, or reads its report (a file of `docs/pods`, or of
`t5x.precompile --json`), and prints steps times roofline as hours and chip-hours,
what a host has to read and decode, and the size and time of a checkpoint, with what
it assumes. The hours are bounds, from the roofline to no overlap at all; measured
runs are slower. `--sweep` compiles ways to cut the run: for each number of chips
that share a copy (`--partitions=1,2,4`), with parameters cut over the batch's chips
or not, the least that is computed again first, then more, then the batch in parts,
until it fits. It prints each, and plans with the fastest."""

# Begins the line about reports that are older than their gin files.
CHANGED = 'Compiled before the last change of their gin files: '

_COLUMNS = (
    ('recipe', '---'),
    ('mesh', '---'),
    ('also', '---'),
    ('GiB a chip', '---:'),
    ('model', '---:'),
    ('at least, ms', '---:'),
    ('bound by', '---'),
    ('at most, ms', '---:'),
    ('MFU', '---:'),
    ('sent, MiB', '---:'),
    ('compiled, s', '---:'),
)

_STEPS = {
    'train': 'Train steps',
    'predict': 'Predict steps, of inference evaluation',
}


def page(
    cells: Sequence[Any],
    stored: Callable[[Any], Mapping[str, Any] | None],
    changed: Sequence[Any] = (),
) -> str:
  """Returns the page.

  Args:
    cells: `pods.Cell`s.
    stored: gives the report of a cell, None where there is none.
    changed: those whose gin files have changed since.
  """
  return '\n'.join(_lines(cells, stored, changed)) + '\n'


def _lines(
    cells: Sequence[Any],
    stored: Callable[[Any], Mapping[str, Any] | None],
    changed: Sequence[Any],
) -> Iterator[str]:
  yield _HEAD
  reports = {cell: stored(cell) for cell in cells}
  known = {cell: report for cell, report in reports.items() if report}
  versions = sorted({(r['libtpu'], r['jax']) for r in known.values()})
  told = ', '.join(f'libtpu {tpu} with jax {jax}' for tpu, jax in versions)
  yield f'{len(known)} of {len(cells)} cells are compiled, by {told}.'
  unfit = [cell for cell, r in known.items() if not r['steps'][0]['fits']]
  yield (
      'All of them fit.'
      if not unfit
      else f'Not fitting: {", ".join(_short(cell) for cell in unfit)}.'
  )
  if changed:
    names = ', '.join(_short(cell) for cell in changed)
    yield f'{CHANGED}{names}.'
  for step, title in _STEPS.items():
    rows = {cell: r for cell, r in known.items() if cell.step == step}
    if rows:
      yield f'\n## {title}'
    for topology in dict.fromkeys(cell.topology for cell in rows):
      yield from _table(
          topology,
          {cell: r for cell, r in rows.items() if cell.topology == topology},
      )
  missing = [cell for cell, report in reports.items() if not report]
  if missing:
    yield '\n## Not compiled yet\n'
    yield from _missing_lines(missing, cells)
  yield _TAIL


def _short(cell: Any) -> str:
  return f'{cell.head}_{cell.recipe} on {cell.topology} ({cell.step})'


def _missing_lines(
    missing: Sequence[Any], cells: Sequence[Any]
) -> Iterator[str]:
  """Says which cells have no report, a line a step and topology."""
  for step, topology in dict.fromkeys((c.step, c.topology) for c in missing):

    def names(of: Iterable[Any], step=step, topology=topology) -> list[str]:
      return [
          f'{cell.head}_{cell.recipe}'
          for cell in of
          if (cell.step, cell.topology) == (step, topology)
      ]

    found = names(missing)
    told = 'all' if found == names(cells) else ', '.join(found)
    yield f'- {step}, {topology}: {told}'


def _table(
    topology: str, reports: Mapping[Any, Mapping[str, Any]]
) -> Iterator[str]:
  """Yields the table of one topology."""
  first = next(iter(reports.values()))
  chip = chips.TPUS[topology.partition(':')[0]]
  limit = first['steps'][0]['memory']['limit'] / _GIB
  yield (
      f'\n### {topology}\n\n{first["num_devices"]} chips of {chip.name},'
      f' {limit:.0f} GiB each, {first["num_hosts"]} hosts.\n'
  )
  for cells in zip(*_COLUMNS):
    yield f'| {" | ".join(cells)} |'
  for cell, report in reports.items():
    yield f'| {" | ".join(_row(cell, report, chip))} |'


def _row(
    cell: Any, report: Mapping[str, Any], chip: chips.Chip
) -> Iterator[str]:
  (step,) = report['steps']
  yield f'`{cell.head}_{cell.recipe}`, {step["batch_size"]} images'
  yield mesh_choice.describe_mesh(report)
  yield ', '.join(f'`{binding}`' for binding in cell.bindings)
  fits = '' if step['fits'] else ', does not fit'
  yield f'{step["memory"]["total"] / _GIB:.1f}{fits}'
  yield f'{step["flops"]["model"]:.2e}'
  roofline = step['roofline']
  yield f'{roofline["least"] * 1e3:,.1f}'
  yield roofline['bound']
  yield f'{roofline["without_overlap"] * 1e3:,.1f}'
  peak = step['num_devices'] * chip.per_device().flops * roofline['least']
  yield f'{step["flops"]["model"] / peak:.0%}'
  sent = sum(row['sent_bytes'] for row in step['costs']['collectives'])
  yield f'{sent / 2**20:,.0f}'
  yield f'{step["compile_seconds"]:.0f}'
