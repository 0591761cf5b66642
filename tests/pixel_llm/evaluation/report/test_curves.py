"""Charts."""

import xml.etree.ElementTree as ET

import hypothesis
from hypothesis import strategies as st

from pixel_llm.evaluation.report import curves

_VALUE = st.floats(-1e6, 1e6, allow_subnormal=False)


@hypothesis.given(_VALUE, st.floats(0, 1e6))
def test_ticks_cover_the_range(low, width):
  high = low + width
  places = curves.ticks(low, high)
  slack = 1e-6 * (places[1] - places[0])
  assert 2 <= len(places) <= 12
  assert places[0] <= low + slack and places[-1] >= high - slack
  assert places == sorted(places)


def test_ticks_are_round():
  assert curves.ticks(0, 200) == [0, 50, 100, 150, 200]
  assert curves.ticks(0.13, 0.87) == [0, 0.2, 0.4, 0.6000000000000001, 0.8, 1]


@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 10**6), _VALUE), min_size=1, max_size=9)
)
def test_points_stay_inside_the_drawing(points):
  figure = ET.fromstring(curves.line_chart('x', [('run', sorted(points))]))
  dots = figure.findall('.//circle')
  assert len(dots) == len(points)
  for dot in dots:
    assert 0 <= float(dot.get('cx')) <= 380
    assert 0 <= float(dot.get('cy')) <= 230


def test_long_lines_are_thinned_but_keep_their_end():
  line = [(step, float(step)) for step in range(5000)]
  figure = ET.fromstring(curves.line_chart('x', [('run', line)]))
  dots = figure.findall('.//circle')
  assert 300 <= len(dots) <= 320
  assert dots[-1].find('title').text == 'run, step 4999: 4999'


def test_names_are_text_and_a_run_without_points_keeps_its_colour():
  text = curves.line_chart('<a & b>', [('one', []), ('t"wo', [(1, 2.0)])])
  figure = ET.fromstring(text)
  assert figure.find('figcaption').text == '<a & b>'
  (line,) = figure.findall('.//polyline')
  assert line.get('class') == 'line c1'
  assert 't"wo 2' in figure.find('svg').get('aria-label')
