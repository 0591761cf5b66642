import jax
import jax.numpy as jnp
import numpy as np

from pixel_llm import matching
from pixel_llm import roi_ops


def draw_boxes(seed, count):
  rng = np.random.default_rng(seed)
  corner = rng.uniform(0, 60, (count, 2))
  size = rng.uniform(5, 40, (count, 2))
  return jnp.asarray(np.concatenate([corner, corner + size], -1), jnp.float32)


def sample(iou, *, rng=None, num_samples=4, fraction=0.5, min_iou=0.6):
  count = len(iou)
  return matching.sample_boxes(
      jnp.ones((count, 4)),
      jnp.asarray(iou, jnp.float32),
      min_iou=min_iou,
      num_samples=num_samples,
      positive_fraction=fraction,
      rng=rng,
  )


def test_a_box_matches_the_target_it_overlaps_most():
  boxes, targets = draw_boxes(0, 20), draw_boxes(1, 6)
  match = matching.match_boxes(boxes, targets)
  iou = np.asarray(roi_ops.pairwise_iou(boxes, targets))
  np.testing.assert_array_equal(match.index, iou.argmax(axis=1))
  np.testing.assert_array_equal(match.iou, iou.max(axis=1))


def test_padding_targets_change_no_match():
  boxes, targets = draw_boxes(0, 20), draw_boxes(1, 6)
  alone = matching.match_boxes(boxes, targets)
  padded = matching.match_boxes(
      boxes, jnp.concatenate([targets, jnp.zeros((3, 4))])
  )
  jax.tree.map(np.testing.assert_array_equal, alone, padded)


def test_without_targets_nothing_matches():
  match = matching.match_boxes(draw_boxes(0, 5), jnp.zeros((3, 4)))
  np.testing.assert_array_equal(match.iou, 0)
  assert match.classes(jnp.zeros(3, jnp.int32), 0.6).tolist() == [0] * 5


def test_a_match_has_a_class_from_the_given_iou_on():
  match = matching.Match(
      index=jnp.asarray([1, 0, 1]), iou=jnp.asarray([0.6, 0.9, 0.59])
  )
  assert match.classes(jnp.asarray([7, 8]), 0.6).tolist() == [8, 7, 0]


def test_positive_boxes_come_first():
  found = sample([0.1, 0.9, 0.7, 0.0, 0.8, 0.2])
  assert found.index.tolist() == [1, 2, 0, 3]
  assert found.is_positive.tolist() == [True, True, False, False]
  assert found.mask.tolist() == [True] * 4


def test_negative_boxes_fill_up_where_positive_ones_are_few():
  found = sample([0.1, 0.2, 0.7, 0.0, 0.3])
  assert found.index.tolist() == [2, 0, 1, 3]
  assert found.is_positive.tolist() == [True, False, False, False]


def test_positive_boxes_never_exceed_their_fraction():
  found = sample([0.9, 0.8, 0.7, 0.1])
  assert found.index[:3].tolist() == [0, 1, 3]
  assert found.mask.tolist() == [True, True, True, False]
  assert found.is_positive.tolist() == [True, True, False, False]


def test_removed_boxes_are_not_sampled():
  boxes = jnp.asarray(
      [[0.0, 0, 0, 0], [-4.0, -9, -1, 0], [1.0, 1, 5, 5], [0.0, 0, 7, 7]]
  )
  found = matching.sample_boxes(
      boxes,
      jnp.asarray([1.0, 0.0, 0.2, 0.8]),
      min_iou=0.6,
      num_samples=4,
      positive_fraction=0.5,
  )
  assert found.index[:2].tolist() == [3, 2]
  assert found.mask.tolist() == [True, True, False, False]


def test_more_slots_than_boxes_stay_empty():
  found = sample([0.9, 0.1], num_samples=5)
  assert found.index[:2].tolist() == [0, 1]
  assert found.mask.tolist() == [True, True, False, False, False]
  assert found.is_positive.tolist() == [True] + [False] * 4


def test_a_draw_keeps_the_numbers_and_reaches_every_box():
  iou = [0.9] * 6 + [0.1] * 6
  draws = [sample(iou, rng=jax.random.key(i)) for i in range(30)]
  seen = set()
  for found in draws:
    assert found.is_positive.tolist() == [True, True, False, False]
    assert np.all(np.diff(found.index[:2]) > 0)
    assert np.all(found.index[:2] < 6) and np.all(found.index[2:] >= 6)
    seen |= set(found.index.tolist())
  assert seen == set(range(12))
