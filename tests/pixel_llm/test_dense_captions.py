"""The T5X model with a box decoder: tasks in one batch, captions of objects."""

import dataclasses

from golden_models import golden_batch
from golden_models import golden_model
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_llm import beam_search
from pixel_llm import detection_losses
from pixel_llm import generation
from pixel_llm import objective
from pixel_llm import stages
from pixel_llm import text_prompts
from pixel_llm.modules import centernet
from pixel_llm.modules import roi_head

# Of the golden cases.
SIZE_RANGES = (
    (0, 20.0),
    (16.0, 40.0),
    (32.0, 80.0),
    (64.0, 160.0),
    (128.0, 25000.0),
)
LOSSES = ('text', 'point', 'detection')


@pytest.fixture(scope='module')
def joint():
  """The joint case: parameters, batches by task, and a compiled loss."""
  case, model, _ = golden_model(
      'model_joint_t5',
      objective=objective.Objective(size_ranges=SIZE_RANGES),
  )
  batches = {v: golden_batch(case, v) for v in ('', 'ref', 'trace')}
  loss_fn = jax.jit(model.loss_fn, static_argnums=2)
  return case, model, batches, lambda b: loss_fn(case.params, b, None)


def take(batch, images):
  return {name: value[np.asarray(images)] for name, value in batch.items()}


def parts(metrics):
  return {name: metrics[f'{name}_loss'].total for name in LOSSES}


@pytest.mark.golden
@pytest.mark.parametrize('task', ['', 'ref', 'trace'])
def test_the_loss_of_a_task_pure_batch_equals_the_original(joint, task):
  case, _, batches, loss_fn = joint
  loss, _ = loss_fn(batches[task])
  suffix = f'_{task}' if task else ''
  np.testing.assert_allclose(
      loss, case.expected[f'out/loss{suffix}/total_loss'], rtol=1e-4
  )


def test_a_mixed_batch_takes_each_loss_from_the_images_of_its_task(joint):
  _, _, batches, loss_fn = joint
  objects, expressions = take(batches[''], [0]), take(batches['ref'], [1])
  mixed = {
      name: np.concatenate([objects[name], expressions[name]])
      for name in objects
  }
  found = parts(loss_fn(mixed)[1])
  of_objects = parts(loss_fn(objects)[1])
  of_expressions = parts(loss_fn(expressions)[1])
  np.testing.assert_allclose(found['text'], of_objects['text'], rtol=1e-4)
  np.testing.assert_allclose(
      found['detection'], of_objects['detection'], rtol=1e-4
  )
  np.testing.assert_allclose(found['point'], of_expressions['point'], rtol=1e-4)
  assert of_expressions['text'] == of_expressions['detection'] == 0
  assert of_objects['point'] == 0


def test_slices_weigh_by_the_images_that_take_part(joint):
  _, model, batches, loss_fn = joint
  batch = take(batches[''], [0, 1])
  batch['caption_weights'] = batch['caption_weights'] * np.array([[1.0], [0.0]])
  prepared = model.prepare_batch(batch)
  sliced = [parts(loss_fn(take(prepared, [i]))[1]) for i in range(2)]
  alone = [parts(loss_fn(take(batch, [i]))[1]) for i in range(2)]
  # Only the first image has captions, both have objects.
  np.testing.assert_allclose(sliced[0]['text'], alone[0]['text'], rtol=1e-5)
  assert sliced[1]['text'] == 0
  for i in range(2):
    np.testing.assert_allclose(
        sliced[i]['detection'], alone[i]['detection'] / 2, rtol=1e-5
    )


def test_hidden_boxes_are_no_targets(joint):
  _, _, batches, loss_fn = joint
  batch = take(batches[''], [0])
  hidden = dict(batch)
  hidden['detection_weights'] = batch['detection_weights'] * np.array(
      [1.0, 1.0, 0.0, 0.0]
  )
  removed = dict(hidden)
  removed['boxes'] = batch['boxes'] * hidden['detection_weights'][..., None]
  plain = parts(loss_fn(batch)[1])
  found = parts(loss_fn(hidden)[1])
  assert abs(found['detection'] - plain['detection']) > 1e-3
  np.testing.assert_allclose(
      found['detection'], parts(loss_fn(removed)[1])['detection'], rtol=1e-5
  )


def test_order_and_padding_of_objects_move_no_loss():
  case, model, batch = golden_model(
      'model_densecap_t5',
      objective=objective.Objective(size_ranges=SIZE_RANGES),
  )
  ones = batch['prompt_mask'].astype(np.float32)
  batch |= {'caption_weights': ones, 'detection_weights': ones}
  batch['object_captions'] = batch['prompt_mask']
  rng = np.random.default_rng(0)
  order = [2, 4, 0, 3, 5, 1]
  moved = dict(batch)
  for name, value in batch.items():
    if value.ndim > 1 and value.shape[1] == 4:
      padding = np.zeros_like(value[:, :2])
      if name in ('text_tokens', 'prompt_boxes'):
        # Whatever an unused slot holds, it must not count.
        padding = rng.integers(2, 90, padding.shape).astype(value.dtype)
      elif name == 'context_tokens':
        padding = value[:, :2]
      moved[name] = np.concatenate([value, padding], axis=1)[:, order]
  loss_fn = jax.jit(model.loss_fn, static_argnums=2)
  loss, metrics = loss_fn(case.params, batch, None)
  np.testing.assert_allclose(
      loss, case.expected['out/loss/total_loss'], rtol=1e-4
  )
  moved_loss, moved_metrics = loss_fn(case.params, moved, None)
  np.testing.assert_allclose(moved_loss, loss, rtol=1e-5)
  for name in ('text_loss', 'detection_loss', 'accuracy'):
    np.testing.assert_allclose(
        moved_metrics[name].compute(), metrics[name].compute(), rtol=1e-5
    )


@pytest.mark.golden
def test_detections_are_captioned_as_in_the_original():
  case, model, batch = golden_model(
      'model_joint_t5', generation.Greedy(), caption_detections=True
  )
  predict = jax.jit(model.predict_batch_with_aux)
  tokens, aux = predict(case.params, batch)
  expected = case.expected
  np.testing.assert_array_equal(
      tokens, expected['out/greedy/final_text_tokens']
  )
  np.testing.assert_allclose(
      aux['boxes'], expected['out/prep/detection_boxes'], atol=1e-2
  )
  np.testing.assert_allclose(
      aux['point_boxes'],
      expected['out/greedy/point_detection_boxes'],
      atol=1e-2,
  )
  np.testing.assert_allclose(
      aux['detection_scores'], expected['out/prep/detection_scores'], rtol=1e-4
  )
  np.testing.assert_array_equal(
      aux['box_mask'].sum(-1), expected['out/prep/num_detections']
  )


@pytest.mark.golden
def test_rescored_beams_carry_their_own_text():
  case, model, batch = golden_model(
      'model_densecap_t5',
      beam_search.BeamSearch(3, 1),
      caption_detections=True,
      rescore_detections=True,
  )
  tokens, aux = jax.jit(model.predict_batch_with_aux)(case.params, batch)
  prefix = 'out/beam3x1/rescored_'
  np.testing.assert_array_equal(
      tokens,
      generation.zero_after_end(
          jnp.asarray(case.expected[f'{prefix}text_tokens']), 1
      ),
  )
  np.testing.assert_allclose(
      aux['detection_scores'],
      case.expected[f'{prefix}detection_scores'],
      rtol=1e-3,
  )
  np.testing.assert_allclose(
      aux['boxes'], case.expected[f'{prefix}detection_boxes'], atol=1e-2
  )


def test_a_detection_run_without_its_parts_is_refused():
  with pytest.raises(ValueError, match='needs network.box_decoder'):
    golden_model('model_trace_t5', generation.Greedy(), caption_detections=True)
  with pytest.raises(ValueError, match='set caption_detections'):
    golden_model('model_joint_t5', generation.Greedy(), rescore_detections=True)


def test_a_box_decoder_that_does_not_train_still_has_parameters(joint):
  case, model, batches, _ = joint
  frozen = dataclasses.replace(model.objective, detection_weight=0.0)
  model = type(model)(model.module, None, None, frozen)
  batch = batches['ref']
  variables = jax.eval_shape(
      lambda: model.get_initial_variables(
          jax.random.PRNGKey(0), {k: v.shape for k, v in batch.items()}
      )
  )
  assert jax.tree.map(lambda x: x.shape, variables['params']) == jax.tree.map(
      jnp.shape, dict(case.params)
  )
  loss, metrics = jax.eval_shape(
      lambda p: model.loss_fn(p, batch, None), case.params
  )
  assert loss.shape == ()
  assert 'detection_loss' not in metrics


def sample(index, classes):
  index = jnp.asarray([index])
  rows = index.shape[1]
  return roi_head.RoiSample(
      boxes=jnp.arange(4.0 * rows).reshape(1, rows, 4),
      mask=jnp.ones((1, rows), bool),
      is_positive=jnp.asarray([classes]) > 0,
      match_index=index,
      match_classes=jnp.asarray([classes]),
      labels=jnp.asarray([classes]),
      target_boxes=jnp.zeros((1, rows, 4)),
  )


def given(rows):
  tokens = jnp.arange(rows * 3).reshape(1, rows, 3)
  return text_prompts.given_prompts(
      -jnp.ones((1, rows, 4)), tokens + 100, tokens
  )


def test_a_proposal_says_what_its_target_says():
  prompts = text_prompts.proposal_prompts(
      sample([1, 0, 1], [1, 1, 0]), given(2), 2
  )
  assert prompts.text_tokens.tolist() == [[[3, 4, 5], [0, 1, 2]]]
  assert prompts.context_tokens.tolist() == [[[103, 104, 105], [100, 101, 102]]]
  assert prompts.boxes.tolist() == [[[0, 1, 2, 3], [4, 5, 6, 7]]]
  weights = jnp.asarray([[0.0, 1.0]])
  assert prompts.take(weights).tolist() == [[1, 0]]


def test_a_proposal_without_target_weighs_nothing():
  prompts = text_prompts.proposal_prompts(
      sample([1, 0, 1], [1, 1, 0]), given(2), 3
  )
  assert prompts.mask.tolist() == [[True, True, False]]
  chosen = objective.chosen_rows(
      prompts, {'caption_weights': jnp.ones((1, 2)), 'image': jnp.zeros(1)}
  )
  assert chosen['caption_weights'].tolist() == [[1, 1, 0]]
  assert chosen['image'].tolist() == [0]


def test_images_keep_their_prompts_unless_they_caption_objects():
  proposed = text_prompts.proposal_prompts(sample([0, 0], [1, 0]), given(2), 2)
  prompts = given(2)

  def choose(flags) -> stages.Prompts:
    return text_prompts.choose_prompts(proposed, prompts, jnp.asarray([flags]))

  assert (choose([False, False]).boxes == prompts.boxes).all()
  assert (choose([True, False]).boxes == proposed.boxes).all()
  # With other numbers of proposals an image without object captions is mute.
  fewer = text_prompts.proposal_prompts(sample([0, 0], [1, 0]), prompts, 1)
  mute = text_prompts.choose_prompts(
      fewer, prompts, jnp.asarray([[False, False]])
  )
  assert mute.mask.tolist() == [[False]]


def test_more_text_proposals_than_samples_are_refused():
  with pytest.raises(ValueError, match='num_text_proposals=4'):
    text_prompts.proposal_prompts(sample([0, 0], [1, 0]), given(2), 4)


def test_an_image_without_a_target_still_counts_as_one():
  maps = centernet.CentreMaps(
      logits=jnp.zeros((3, 4)),
      distances=jnp.ones((3, 4, 4)),
      grids=((2, 2),),
      level_strides=(8,),
  )
  boxes = jnp.zeros((3, 1, 4)).at[0, 0].set(jnp.asarray([2.0, 2.0, 6.0, 6.0]))
  targets = detection_losses.centre_targets(maps, boxes, [(0, 100)])
  assert targets.is_centre.sum(-1).tolist() == [1, 0, 0]
  positive, negative = detection_losses.heatmap_losses(
      maps, targets, jnp.asarray([1.0, 1.0, 0.0])
  )
  assert positive.count == negative.count == 2


def test_targets_that_share_a_cell_make_one_centre():
  maps = centernet.CentreMaps(
      logits=jnp.zeros((1, 4)),
      distances=jnp.ones((1, 4, 4)),
      grids=((2, 2),),
      level_strides=(8,),
  )
  boxes = jnp.asarray([[[2.0, 2.0, 6.0, 6.0], [1.0, 3.0, 7.0, 7.0]]])
  targets = detection_losses.centre_targets(maps, boxes, [(0, 100)])
  assert targets.is_centre.sum() == 1
