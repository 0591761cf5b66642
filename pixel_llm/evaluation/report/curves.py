"""Line charts as inline SVG."""

from collections.abc import Sequence
import html
import math

from pixel_llm.evaluation.report import runs as runs_lib

# In units of the drawing.
_WIDTH, _HEIGHT = 380, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 30
_MAX_POINTS = 300
# With more points than this the dots are seen only under the pointer.
_MAX_DOTS = 40
NUM_COLORS = 6

# A run's name and its (step, value) points.
Series = tuple[str, Sequence[tuple[int, float]]]


def format_number(value: float | int) -> str:
  """Short text of a number: 4 significant digits, whole numbers whole."""
  if value == int(value) and abs(value) < 1e6:
    return str(int(value))
  return f'{value:.4g}'


def ticks(
    low: float | int, high: float | int, num: int = 4
) -> list[float | int]:
  """Round numbers that cover a range.

  Args:
    low: least value.
    high: greatest value, not less.
    num: about how many steps.

  Returns:
    Multiples of 1, 2 or 5 times a power of ten; the first is at most `low`,
    the last at least `high`, and there are two or more.
  """
  size = max(abs(low), abs(high))
  # Equal but for rounding: a line in the middle.
  if high - low <= 1e-9 * size or size < 1e-200:
    margin = 0.1 * size if size > 1e-200 else 1.0
    low, high = low - margin, high + margin
  raw = (high - low) / num
  power = 10.0 ** math.floor(math.log10(raw))
  step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
  first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  return [i * step for i in range(first, last + 1)]


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
  """At most about `_MAX_POINTS` of the points, evenly, with the last one."""
  stride = max(len(points) // _MAX_POINTS, 1)
  kept = list(points[::stride])
  if kept[-1] != points[-1]:
    kept.append(points[-1])
  return kept


def line_chart(title: str, series: Sequence[Series]) -> str:
  """Draws one metric of several runs.

  Args:
    title: name of the metric.
    series: name of a run and its (step, value) points; its place in the list
      is its colour, so a run without points stays in. One run has points.

  Returns:
    A `figure` element.
  """
  points = [point for _, line in series for point in line]
  x_ticks = ticks(min(p[0] for p in points), max(p[0] for p in points), 3)
  y_ticks = ticks(min(p[1] for p in points), max(p[1] for p in points))

  def x_at(step: float | int) -> float:
    share = (step - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
    return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)

  def y_at(value: float | int) -> float:
    share = (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
    return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 1)

  parts = []
  for tick in y_ticks:
    y = y_at(tick)
    parts.append(f'<path class="grid" d="M{_LEFT} {y}H{_WIDTH - _RIGHT}"/>')
    parts.append(
        f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">'
        f'{format_number(tick)}</text>'
    )
  for tick in x_ticks:
    parts.append(
        f'<text x="{x_at(tick)}" y="{_HEIGHT - 10}" text-anchor="middle">'
        f'{format_number(tick)}</text>'
    )
  last_values = []
  for index, (name, line) in enumerate(series):
    if not line:
      continue
    color = f'c{index % NUM_COLORS}'
    places = [(x_at(s), y_at(v), s, v) for s, v in _thinned(line)]
    path = ' '.join(f'{x},{y}' for x, y, _, _ in places)
    parts.append(f'<polyline class="line {color}" points="{path}"/>')
    kind = 'dot' if len(places) <= _MAX_DOTS else 'dot hidden'
    for x, y, step, value in places:
      label = html.escape(f'{name}, step {step}: {format_number(value)}')
      parts.append(
          f'<circle class="{kind} {color}" cx="{x}" cy="{y}" r="2.5">'
          f'<title>{label}</title></circle>'
      )
    last_values.append(f'{name} {format_number(line[-1][1])}')
  label = html.escape(f'{title} by step; last: {", ".join(last_values)}')
  return (
      f'<figure class="chart"><figcaption>{html.escape(title)}</figcaption>'
      f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
      f'{"".join(parts)}</svg>'
      f'<p class="last">last: {html.escape(", ".join(last_values))}</p>'
      '</figure>'
  )


def metric_names(
    runs: Sequence[runs_lib.Run], group: str
) -> dict[str, list[Series]]:
  """The series of every metric of a group; a run without it is left empty.

  Args:
    runs: all runs.
    group: such as `train`.

  Returns:
    Metric to (run's name, points), in the order of the runs.
  """
  names = sorted({name for run in runs for name in run.curves.get(group, {})})
  return {
      name: [
          (run.name, run.curves.get(group, {}).get(name, [])) for run in runs
      ]
      for name in names
  }
