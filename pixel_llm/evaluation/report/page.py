"""The page: what was run, results, samples, curves, credits."""

from collections.abc import Mapping, Sequence
import html
import re

from pixel_llm.evaluation.report import credits as credits_lib
from pixel_llm.evaluation.report import curves
from pixel_llm.evaluation.report import pictures
from pixel_llm.evaluation.report import runs as runs_lib
from pixel_llm.evaluation.report import sample_cards
from pixel_llm.evaluation.report import samples as samples_lib
from pixel_llm.evaluation.report import style

# Curves to see at once; all others are folded away.
_MAIN_CURVE = re.compile(
    r'loss|accuracy|precision|iou|_l1|learning_rate|gradient_norm|grad_norm',
    re.IGNORECASE,
)
_SIDE_CURVE = re.compile(r'^timing|non_padding|effective_batch|_per_')
# A curve a parameter would drown the page.
_MAX_FOLDED = 60


def _escape(text: object) -> str:
  return html.escape(str(text), quote=True)


def runs_section(runs: Sequence[runs_lib.Run]) -> str:
  """What was run: folders, steps, configurations."""
  parts = ['<h2>What was run</h2>']
  for index, run in enumerate(runs):
    tasks = ', '.join(
        f'{p.task} ({len(p.rows)} prompts, step {p.step})'
        for p in run.predictions
    )
    steps = 'no metrics' if run.last_step is None else f'step {run.last_step}'
    config = ''
    if run.config:
      config = (
          '<details><summary>configuration (gin)</summary>'
          f'<pre>{_escape(run.config)}</pre></details>'
      )
    parts.append(
        '<div class="card"><p><span class="swatch'
        f' c{index % curves.NUM_COLORS}"></span><strong>{_escape(run.name)}'
        f'</strong>, up to {steps}</p>'
        f'<p class="dim">folder <code>{_escape(run.folder)}</code></p>'
        f'<p class="dim">predictions: {_escape(tasks or "none")}</p>'
        f'{config}</div>'
    )
  return ''.join(parts)


def results_section(runs: Sequence[runs_lib.Run]) -> str:
  """The last value of every metric of an evaluation, by run."""
  bodies = []
  for group in _groups(runs, training=False):
    named = {
        name: series
        for name, series in curves.metric_names(runs, group).items()
        if not _SIDE_CURVE.search(name)
    }
    if not named:
      continue
    rows = ''.join(
        f'<tr><th scope="row">{_escape(name)}</th>'
        f'{"".join(_last_cell(points) for _, points in series)}</tr>'
        for name, series in named.items()
    )
    bodies.append(
        f'<tbody><tr><th scope="rowgroup" colspan="{len(runs) + 1}"'
        f' class="group">{_escape(group)}</th></tr>{rows}</tbody>'
    )
  if not bodies:
    return '<h2>Results</h2><p>No evaluation metrics were found.</p>'
  heads = ''.join(f'<th scope="col">{_escape(run.name)}</th>' for run in runs)
  return (
      '<h2>Results</h2><p class="dim">The last evaluation of each run.</p>'
      '<div class="scroll"><table><thead><tr><th scope="col">metric</th>'
      f'{heads}</tr></thead>{"".join(bodies)}</table></div>'
  )


def _last_cell(points: Sequence[tuple[int, float]]) -> str:
  """The newest value of a metric, or a dash."""
  if not points:
    return '<td class="number">–</td>'
  step, value = points[-1]
  return (
      f'<td class="number">{curves.format_number(value)}'
      f' <span class="dim">at {step}</span></td>'
  )


def _groups(runs: Sequence[runs_lib.Run], training: bool) -> list[str]:
  """Names of the metric groups of training, or of all others."""
  groups = sorted({group for run in runs for group in run.curves})
  return [group for group in groups if (group == 'train') == training]


def curves_section(runs: Sequence[runs_lib.Run]) -> str:
  """Charts of all metrics, training first; side metrics are folded away."""
  parts = ['<h2>Curves</h2>']
  if len(runs) > 1:
    names = ''.join(
        f'<span><span class="swatch c{i % curves.NUM_COLORS}"></span>'
        f'{_escape(run.name)}</span>'
        for i, run in enumerate(runs)
    )
    parts.append(f'<p class="legend">{names}</p>')
  groups = _groups(runs, training=True) + _groups(runs, training=False)
  for group in groups:
    named = curves.metric_names(runs, group)
    main = [name for name in named if _is_main(name)]
    other = [name for name in named if not _is_main(name)]
    if not named:
      continue
    parts.append(f'<h3>{_escape(group)}</h3>')
    charts = ''.join(curves.line_chart(name, named[name]) for name in main)
    parts.append(f'<div class="grid-of-charts">{charts}</div>')
    if other:
      parts.append(_folded({name: named[name] for name in other}))
  if len(parts) == 1:
    parts.append('<p>No metric lines were found.</p>')
  return ''.join(parts)


def _is_main(name: str) -> bool:
  """Whether a curve is to be seen at once."""
  return bool(_MAIN_CURVE.search(name)) and not _SIDE_CURVE.search(name)


def _folded(named: Mapping[str, Sequence[curves.Series]]) -> str:
  """Charts that open on demand; says which ones there is no room for."""
  shown, left = list(named)[:_MAX_FOLDED], list(named)[_MAX_FOLDED:]
  more = ''
  if left:
    more = (
        f'<p class="dim">{len(left)} more metrics are in the metrics file, from'
        f' {_escape(left[0])} to {_escape(left[-1])}.</p>'
    )
  charts = ''.join(curves.line_chart(name, named[name]) for name in shown)
  noun = 'curve' if len(named) == 1 else 'curves'
  return (
      f'<details><summary>{len(named)} other {noun}</summary>'
      f'<div class="grid-of-charts">{charts}</div>{more}</details>'
  )


def samples_section(
    runs: Sequence[runs_lib.Run],
    store: pictures.PictureStore,
    order: str,
    limit: int,
) -> str:
  """The samples of every run and task.

  Args:
    runs: the runs.
    store: gives the pictures.
    order: one of `samples.ORDERS`.
    limit: how many samples to show of each run's task.

  Returns:
    HTML.
  """
  parts = ['<h2>Samples</h2>']
  for run in runs:
    for predictions in run.predictions:
      shown, everything = samples_lib.choose(predictions.rows, order, limit)
      title = f'{predictions.task}, step {predictions.step}'
      if len(runs) > 1:
        title = f'{run.name}: {title}'
      how = {'worst': ', worst first', 'best': ', best first', 'file': ''}
      parts.append(
          f'<h3>{_escape(title)}</h3><p class="dim">{len(shown)} of'
          f' {len(everything)} prompts{how[order]}. {_outcome(everything)}</p>'
      )
      if any(sample.box_iou is not None for sample in shown):
        parts.append(sample_cards.LEGEND)
      wide = any('trace' in sample.row for sample in shown)
      cards = ''.join(sample_cards.card(sample, store) for sample in shown)
      parts.append(
          f'<div class="grid-of-samples{" wide" if wide else ""}">{cards}</div>'
      )
  if len(parts) == 1:
    parts.append('<p>No predictions files were found.</p>')
  return ''.join(parts)


def _outcome(samples: Sequence[samples_lib.Sample]) -> str:
  """How the samples of a task went as a whole, in a sentence."""
  judged = [s for s in samples if s.is_right is not None]
  if judged:
    right = sum(bool(s.is_right) for s in judged)
    no_box = sum(s.row.get('bbox') is None for s in judged)
    return (
        f'{right} of {len(judged)} boxes have an IoU above 0.5;'
        f' {no_box} prompts got no box.'
    )
  distances = [s.trace_l1 for s in samples if s.trace_l1 is not None]
  if distances:
    mean = sum(distances) / len(distances)
    return (
        f'The mean distance of a point is {mean:.3f} of the picture over'
        f' {len(distances)} captions.'
    )
  return ''


def _link(text: str, address: str) -> str:
  """Text that leads to an address of the web, or only text."""
  if not address.startswith(('http://', 'https://')):
    return _escape(text)
  return f'<a href="{_escape(address)}">{_escape(text)}</a>'


def credits_section(
    store: pictures.PictureStore,
    credits: Mapping[str, credits_lib.Credit],
    runs: Sequence[runs_lib.Run],
) -> str:
  """Origin of the pictures, and what is missing."""
  parts = []
  items = []
  for name in sorted(store.used):
    credit = credits.get(name.rsplit('/', 1)[-1])
    if credit is None:
      items.append(f'<li>{_escape(name)}: origin not given</li>')
      continue
    licence = _link(
        credit.licence or 'licence not given', credit.licence_address
    )
    items.append(
        f'<li>{_escape(name)}: {licence},'
        f' {_link(credit.address, credit.address)}</li>'
    )
  if items:
    parts.append(
        '<h2>Picture credits</h2><details open><summary>'
        f'{len(items)} pictures</summary><ul>{"".join(items)}</ul></details>'
    )
  notes = [note for run in runs for note in run.notes]
  notes += [
      f'Picture {name}: {why}.' for name, why in sorted(store.missing.items())
  ]
  if notes:
    lines = ''.join(f'<li>{_escape(note)}</li>' for note in notes)
    parts.append(f'<h2>Missing</h2><ul>{lines}</ul>')
  return ''.join(parts)


def page(
    title: str,
    subtitle: str,
    runs: Sequence[runs_lib.Run],
    store: pictures.PictureStore,
    credits: Mapping[str, credits_lib.Credit],
    order: str,
    limit: int,
) -> str:
  """The whole report.

  Args:
    title: heading.
    subtitle: line below it.
    runs: one or more runs.
    store: gives the pictures.
    credits: origin of pictures by file name.
    order: one of `samples.ORDERS`.
    limit: how many samples to show of each run's task.

  Returns:
    An HTML document that needs no other file.
  """
  samples = samples_section(runs, store, order, limit)
  body = ''.join(
      [
          f'<header><h1>{_escape(title)}</h1>'
          f'<p class="dim">{_escape(subtitle)}</p></header>',
          '<main>',
          runs_section(runs),
          results_section(runs),
          samples,
          curves_section(runs),
          '</main>',
          f'<footer>{credits_section(store, credits, runs)}</footer>',
      ]
  )
  return (
      '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
      '<meta name="viewport" content="width=device-width, initial-scale=1">'
      f'<title>{_escape(title)}</title><style>{style.CSS}</style></head>'
      f'<body>{store.definitions()}{body}</body></html>\n'
  )
