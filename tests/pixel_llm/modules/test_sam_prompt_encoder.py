import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_llm.golden.case import load_case
from pixel_llm.golden.compare import compare_case
from pixel_llm.golden.runners import vision
from pixel_llm.modules import sam_prompt_encoder

GOLDEN = pathlib.Path(__file__).parents[2] / 'golden'


@pytest.mark.golden
def test_matches_the_golden_figures():
  case = load_case(GOLDEN, 'sam_prompt_encoder')
  outputs = vision.RUNNERS[case.name](case)
  assert [r for r in compare_case(outputs, case.expected) if not r.passed] == []


SIZES = {'image_hw': (64, 48), 'grid_hw': (3, 2)}


@pytest.fixture(name='bound')
def make_bound_encoder():
  encoder = sam_prompt_encoder.SamPromptEncoder(embed_dim=8, mask_dim=4)
  variables = encoder.init(jax.random.key(0), boxes=jnp.zeros((1, 4)), **SIZES)
  return encoder.bind({'params': variables['params']})


def test_a_tree_made_without_masks_has_no_mask_branch(bound):
  params = bound.variables['params']
  assert 'mask_downscaling' not in params
  assert len(jax.tree.leaves(params)) == 7


def test_a_tree_made_with_masks_has_a_mask_branch():
  encoder = sam_prompt_encoder.SamPromptEncoder(embed_dim=8, mask_dim=4)
  (_, dense), variables = encoder.init_with_output(
      jax.random.key(0),
      boxes=jnp.zeros((2, 4)),
      masks=jnp.zeros((2, 12, 8, 1)),
      **SIZES,
  )
  assert dense.shape == (2, 3, 2, 8)
  assert set(variables['params']['mask_downscaling']) == set('01346')


def test_leading_axes_are_free(bound):
  points = jax.random.uniform(jax.random.key(1), (2, 3, 5, 2)) * 40
  labels = jax.random.randint(jax.random.key(2), (2, 3, 5), -1, 2)
  together = bound.points(points, labels, (64, 48), pad=True)
  assert together.shape == (2, 3, 6, 8)
  np.testing.assert_allclose(
      together[1, 2],
      bound.points(points[1, 2], labels[1, 2], (64, 48), pad=True),
      atol=1e-6,
  )


def test_an_ignored_point_does_not_depend_on_its_place(bound):
  labels = jnp.full((1, 2), -1)
  points = jnp.asarray([[[0.0, 0.0], [17.0, 5.0]]])
  embedded = bound.points(points, labels, (64, 48))
  np.testing.assert_array_equal(embedded[0, 0], embedded[0, 1])


def test_box_corners_are_points_with_their_own_type(bound):
  boxes = jnp.asarray([[3.0, 4.0, 30.0, 41.0]])
  corners = bound.boxes(boxes, (64, 48))
  points = bound.points(boxes.reshape(1, 2, 2), jnp.ones((1, 2), int), (64, 48))
  params = bound.variables['params']
  for i, kind in enumerate((2, 3)):
    np.testing.assert_allclose(
        corners[0, i] - params[f'point_embeddings.{kind}.weight'][0],
        points[0, i] - params['point_embeddings.1.weight'][0],
        atol=1e-5,
    )


def test_the_random_matrix_receives_no_gradient(bound):
  def total(params):
    encoder = sam_prompt_encoder.SamPromptEncoder(embed_dim=8)
    sparse, _ = encoder.apply(
        {'params': params}, boxes=jnp.ones((2, 4)), **SIZES
    )
    return jnp.sum(sparse**2)

  grads = jax.grad(total)(bound.variables['params'])
  matrix = grads['pe_layer']['positional_encoding_gaussian_matrix']
  np.testing.assert_array_equal(matrix, jnp.zeros_like(matrix))
  assert jnp.any(grads['point_embeddings.2.weight'] != 0)


def test_points_without_labels_are_refused(bound):
  with pytest.raises(ValueError, match='points and labels come together'):
    bound(points=jnp.zeros((1, 2, 2)), **SIZES)


def test_an_empty_prompt_is_refused(bound):
  with pytest.raises(ValueError, match='give points, boxes or both'):
    bound(**SIZES)


def test_an_odd_width_is_refused():
  encoder = sam_prompt_encoder.SamPromptEncoder(embed_dim=7)
  with pytest.raises(ValueError, match='embed_dim=7 must be even'):
    encoder.init(jax.random.key(0), boxes=jnp.zeros((1, 4)), **SIZES)
