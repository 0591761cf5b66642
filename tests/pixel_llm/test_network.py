"""The whole network against the original's figures, and its properties."""

import pathlib

import jax
import numpy as np
import pytest

from pixel_llm import prompt_embeddings
from pixel_llm import stages
from pixel_llm.golden import case as case_lib
from pixel_llm.golden import compare
from pixel_llm.golden.runners import network_settings
from pixel_llm.golden.runners import whole_model

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'


@pytest.mark.golden
@pytest.mark.parametrize('name', sorted(whole_model.RUNNERS))
def test_losses_gradients_and_every_inference_output_equal_the_original(name):
  case = case_lib.load_case(GOLDEN, name)
  reports = compare.compare_case(whole_model.RUNNERS[name](case), case.expected)
  assert not [f'{r.name}: {r.message}' for r in reports if not r.passed]


@pytest.fixture(scope='module')
def refseg():
  case = case_lib.load_case(GOLDEN, 'model_refseg_t5')
  net = network_settings.build_network(case.settings)
  batch = {k: case.inputs[k] for k in case.inputs}
  arrays = (
      batch['inputs'],
      np.array([[112, 84], [70, 112]], np.int32),
      batch['prompt_boxes'],
      batch['context_tokens'],
      batch['text_tokens'],
  )
  apply = jax.jit(net.apply)
  return (lambda *a: apply({'params': case.params}, *a)), arrays


def predictions(outputs: stages.Outputs):
  return {
      'logits': outputs.text.logits,
      'points': outputs.location.points,
      'boxes': outputs.location.boxes,
      'masks': outputs.mask.logits,
      'iou': outputs.mask.iou,
  }


def test_the_order_of_prompts_moves_no_prediction(refseg):
  forward, (image, image_hw, boxes, context, text) = refseg
  order = np.array([2, 0, 1])
  plain = predictions(forward(image, image_hw, boxes, context, text))
  moved = predictions(
      forward(
          image,
          image_hw,
          boxes[:, order],
          context[:, order],
          text[:, order],
      )
  )
  for name, values in plain.items():
    np.testing.assert_allclose(
        moved[name], values[:, order], rtol=1e-4, atol=1e-4, err_msg=name
    )


def test_pixels_outside_the_valid_area_are_never_seen(refseg):
  forward, (image, image_hw, boxes, context, text) = refseg
  rows, columns = np.indices(image.shape[1:3])
  outside = (rows[None] >= image_hw[:, 0, None, None]) | (
      columns[None] >= image_hw[:, 1, None, None]
  )
  noisy = np.where(outside[..., None], np.float32(173.0), image)
  assert (noisy != image).any()
  plain = predictions(forward(image, image_hw, boxes, context, text))
  moved = predictions(forward(noisy, image_hw, boxes, context, text))
  for name, values in plain.items():
    np.testing.assert_array_equal(moved[name], values, err_msg=name)


def test_dense_prompts_are_the_cells_of_the_map_row_by_row(refseg):
  _, (image, image_hw, boxes, _, _) = refseg
  case = case_lib.load_case(GOLDEN, 'model_refseg_t5')
  net = network_settings.build_network(case.settings)

  def tokens(net, adapter_output):
    features = net.encode_image(image, image_hw)
    return net.encode_prompt(features, boxes), adapter_output(net, features)

  def cells(net, features):
    # The adapter alone, as the network calls it.
    by_box = np.ones(boxes.shape[:2], bool)
    dense = net.prompt_adapter(
        features.fused,
        net.prompt_encoder.dense_pe(*features.fused.shape[1:3]),
        prompt_embeddings.embed_prompt_boxes(
            net.prompt_encoder,
            boxes,
            by_box,
            image.shape[1:3],
            points_per_side=2,
        ),
        net.prompt_encoder.no_mask(),
    ).dense
    return net.visual_project_layers(dense)

  dense = net.clone(prompt_fusion='dense')
  found, expected = jax.jit(
      lambda params: dense.apply({'params': params}, cells, method=tokens)
  )(case.params)
  height, width = expected.shape[2:4]
  assert found.shape[2] == height * width
  np.testing.assert_allclose(
      found[:, :, width + 2], expected[:, :, 1, 2], rtol=1e-4, atol=1e-4
  )


def test_an_unknown_fusion_is_refused(refseg):
  _, (image, image_hw, boxes, context, text) = refseg
  case = case_lib.load_case(GOLDEN, 'model_refseg_t5')
  net = network_settings.build_network(case.settings)
  with pytest.raises(ValueError, match="'sparse' and 'dense'"):
    jax.eval_shape(
        lambda params: net.clone(prompt_fusion='spares').apply(
            {'params': params}, image, image_hw, boxes, context, text
        ),
        case.params,
    )


def test_a_mask_decoder_without_its_adapter_is_refused(refseg):
  del refseg
  case = case_lib.load_case(GOLDEN, 'model_refseg_t5')
  net = network_settings.build_network(case.settings).clone(mask_adapter=None)
  with pytest.raises(ValueError, match='mask_adapter and mask_decoder'):
    _ = net.has_masks
