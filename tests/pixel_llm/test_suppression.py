import pathlib

from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_llm import suppression
from pixel_llm.golden.case import load_case
from pixel_llm.golden.compare import compare_case
from pixel_llm.golden.runners import detection

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
NUM_BOXES = 24


@pytest.mark.golden
def test_matches_the_golden_figures():
  case = load_case(GOLDEN, 'nms')
  outputs = detection.RUNNERS['nms'](case)
  assert [r for r in compare_case(outputs, case.expected) if not r.passed] == []


def greedy(boxes, scores, candidates, classes, threshold):
  """The textbook loop, over Python floats."""

  def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
      return 0.0
    area = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
    return width * height / (area - width * height)

  kept = []
  for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
    rivals = [j for j in kept if classes[i] == classes[j]]
    if candidates[i] and all(
        iou(boxes[i], boxes[j]) < threshold for j in rivals
    ):
      kept.append(i)
  return kept


def draw_boxes(seed):
  # Whole numbers give many equal boxes, and no IoU is a threshold by rounding.
  rng = np.random.default_rng(seed)
  corner = rng.integers(0, 6, (NUM_BOXES, 2))
  size = rng.integers(1, 8, (NUM_BOXES, 2))
  boxes = np.concatenate([corner, corner + size], axis=-1).astype(np.float32)
  scores = rng.permutation(NUM_BOXES).astype(np.float32)
  return (
      boxes,
      scores,
      rng.random(NUM_BOXES) < 0.8,
      rng.integers(0, 3, NUM_BOXES),
  )


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    threshold=st.sampled_from([0.11, 0.31, 0.47, 0.51, 0.73, 0.93]),
    with_classes=st.booleans(),
)
def test_equals_the_greedy_loop_at_any_threshold(seed, threshold, with_classes):
  boxes, scores, candidates, classes = draw_boxes(seed)
  if not with_classes:
    classes = np.zeros_like(classes)
  expected = greedy(
      boxes.tolist(), scores.tolist(), candidates, classes, threshold
  )
  kept = suppression.non_max_suppression(
      jnp.asarray(boxes),
      jnp.asarray(scores),
      threshold=threshold,
      num_kept=NUM_BOXES,
      candidates=jnp.asarray(candidates),
      classes=jnp.asarray(classes) if with_classes else None,
  )
  assert kept.index[kept.mask].tolist() == expected


def test_a_threshold_below_one_half_is_honoured():
  # The IoU is 1/3: 2 of 6.
  boxes = jnp.asarray([[0.0, 0, 4, 1], [2.0, 0, 6, 1]])
  scores = jnp.asarray([0.9, 0.8])

  def num_kept(threshold):
    kept = suppression.non_max_suppression(
        boxes, scores, threshold=threshold, num_kept=2
    )
    return int(jnp.sum(kept.mask))

  assert [num_kept(t) for t in (0.2, 0.33, 0.34, 0.5, 0.9)] == [1, 1, 2, 2, 2]


def test_a_suppressed_box_suppresses_nothing_however_long_the_chain():
  # Each box overlaps the next by more than a half and no other: every second
  # one stays, and the last decision hangs on all before it.
  left = 4.0 * jnp.arange(40)
  boxes = jnp.stack([left, jnp.zeros(40), left + 10, jnp.ones(40)], axis=-1)
  kept = suppression.suppress(boxes, jnp.ones(40, bool), 0.4)
  assert kept.tolist() == [i % 2 == 0 for i in range(40)]


def test_boxes_that_are_no_candidates_change_nothing():
  boxes, scores, _, _ = draw_boxes(3)
  boxes, scores = jnp.asarray(boxes), jnp.asarray(scores)
  alone = suppression.non_max_suppression(
      boxes, scores, threshold=0.4, num_kept=9
  )
  # Padding scores best and covers everything.
  padding = jnp.tile(jnp.asarray([[0.0, 0, 14, 14]]), (5, 1))
  padded = suppression.non_max_suppression(
      jnp.concatenate([boxes, padding]),
      jnp.concatenate([scores, jnp.full(5, 100.0)]),
      threshold=0.4,
      num_kept=9,
      candidates=jnp.arange(NUM_BOXES + 5) < NUM_BOXES,
  )
  np.testing.assert_array_equal(alone.mask, padded.mask)
  np.testing.assert_array_equal(
      alone.index[alone.mask], padded.index[padded.mask]
  )


def test_empty_slots_hold_the_worst_box():
  boxes = jnp.asarray([[0.0, 0, 4, 4], [0.0, 0, 4, 4], [9.0, 9, 10, 10]])
  kept = suppression.non_max_suppression(
      boxes, jnp.asarray([0.5, 0.1, 0.9]), threshold=0.5, num_kept=4
  )
  assert kept.index.tolist() == [2, 0, 1, 1]
  assert kept.mask.tolist() == [True, True, False, False]


def test_images_do_not_touch_each_other():
  drawn = [draw_boxes(seed)[:2] for seed in range(3)]
  boxes, scores = (jnp.stack(x) for x in zip(*drawn))

  def suppress(boxes, scores):
    return suppression.non_max_suppression(
        boxes, scores, threshold=0.3, num_kept=6
    )

  together = jax.jit(jax.vmap(suppress))(boxes, scores)
  for i in range(3):
    alone = suppress(boxes[i], scores[i])
    np.testing.assert_array_equal(together.index[i], alone.index)
    np.testing.assert_array_equal(together.mask[i], alone.mask)


@pytest.mark.parametrize('threshold', [0.0, -0.5, 1.5, 50])
def test_a_threshold_that_is_no_iou_is_an_error(threshold):
  with pytest.raises(ValueError, match=f'threshold is {threshold}'):
    suppression.non_max_suppression(
        jnp.zeros((1, 4)), jnp.zeros(1), threshold=threshold, num_kept=1
    )
