"""Traces over time spans, by hand."""

import numpy as np

from tasks.build import localized_narratives as ln

# The mouse goes right at 0.1 a second, and down from second 2 on.
_TRACE = np.array(
    [[0.0, 0.0, 0.5], [2.0, 0.2, 0.5], [4.0, 0.4, 0.9]], np.float64
)


def test_centre_is_the_average_over_time_and_box_the_extremes():
  trace = ln.integrate(_TRACE, np.array([[0.0, 2.0]]))
  np.testing.assert_allclose(trace.centers, [[0.1, 0.5]])
  np.testing.assert_allclose(trace.boxes, [[0.0, 0.5, 0.2, 0.5]])
  assert trace.points.shape == (1, ln.NUM_SAMPLES, 2)


def test_words_outside_the_recording_take_its_nearest_end():
  spans = np.array([[-9.0, -3.0], [30.0, 31.0]])
  trace = ln.integrate(_TRACE, spans)
  np.testing.assert_allclose(trace.centers, [[0.0, 0.5], [0.4, 0.9]])
  np.testing.assert_allclose(trace.boxes[1], [0.4, 0.9, 0.4, 0.9])


def test_order_of_the_points_does_not_matter():
  spans = np.array([[0.5, 3.0], [1.0, 1.0]])
  straight = ln.integrate(_TRACE, spans)
  shuffled = ln.integrate(_TRACE[[2, 0, 1]], spans)
  np.testing.assert_array_equal(straight.points, shuffled.points)


def test_empty_and_backward_spans_stay_finite_and_within_the_trace():
  trace = ln.integrate(_TRACE, np.array([[1.0, 1.0], [3.0, 1.0]]))
  np.testing.assert_allclose(trace.centers[0], [0.1, 0.5])
  low, high = trace.boxes[1, :2], trace.boxes[1, 2:]
  assert np.all((low <= trace.centers[1]) & (trace.centers[1] <= high))


def test_equal_times_do_not_divide_by_zero():
  points = np.array([[1.0, 0.1, 0.2], [1.0, 0.3, 0.4]])
  trace = ln.integrate(points, np.array([[0.0, 2.0]]))
  assert np.all(np.isfinite(trace.centers))
  assert np.all((trace.centers >= 0.1) & (trace.centers <= 0.4))
