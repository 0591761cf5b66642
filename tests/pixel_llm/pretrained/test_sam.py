import functools

from flax import traverse_util
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import torch_models
import transformers

from pixel_llm.modules import sam_image_encoder
from pixel_llm.modules import sam_mask_decoder
from pixel_llm.modules import sam_prompt_encoder
from pixel_llm.pretrained import sam

SIDE, PATCH = 32, 8
BOXES = np.array([[[3.0, 4.0, 20.0, 28.0], [1.0, 2.0, 9.0, 30.0]]], np.float32)


@pytest.fixture
def model(enlarged):
  # Beside the tower SAM's sizes are the same in every variant.
  config = transformers.SamConfig(
      vision_config={
          'hidden_size': 8,
          'num_hidden_layers': 3,
          'num_attention_heads': 2,
          'image_size': SIDE,
          'patch_size': PATCH,
          'mlp_dim': 16,
          'global_attn_indexes': [1],
          'window_size': 3,
      },
      prompt_encoder_config={'image_size': SIDE, 'patch_size': PATCH},
  )
  return narrowed(enlarged(transformers.SamModel(config)))


def narrowed(network):
  """Wide layers would saturate with enlarged weights."""
  with torch.no_grad():
    for parameter in network.mask_decoder.parameters():
      if parameter.ndim > 1:
        parameter.mul_(0.2)
  return network


def tower():
  return sam_image_encoder.SamImageEncoder(
      image_size=SIDE,
      patch_size=PATCH,
      embed_dim=8,
      depth=3,
      num_heads=2,
      mlp_ratio=2.0,
      window_size=3,
      global_block_indexes=(1,),
  )


@pytest.fixture
def meta(enlarged):
  """SAM as its authors build it, of the same sizes."""
  modeling = torch_models.import_sam().modeling
  width = 256
  grid = (SIDE // PATCH, SIDE // PATCH)
  return narrowed(
      enlarged(
          modeling.Sam(
              modeling.ImageEncoderViT(
                  img_size=SIDE,
                  patch_size=PATCH,
                  embed_dim=8,
                  depth=3,
                  num_heads=2,
                  mlp_ratio=2.0,
                  norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
                  use_rel_pos=True,
                  window_size=3,
                  global_attn_indexes=(1,),
              ),
              modeling.PromptEncoder(width, grid, (SIDE, SIDE), 16),
              modeling.MaskDecoder(
                  transformer_dim=width,
                  transformer=modeling.TwoWayTransformer(2, width, 8, 2048),
              ),
          )
      )
  )


def activations_of_transformers(model, image):
  features = model.vision_encoder(image).last_hidden_state
  outputs = [
      model(
          image_embeddings=features,
          input_boxes=torch.tensor(BOXES),
          multimask_output=several,
      )
      for several in (False, True)
  ]
  return features, [(x.pred_masks, x.iou_scores) for x in outputs]


def activations_of_meta(model, image):
  features = model.image_encoder(image)
  sparse, dense = model.prompt_encoder(None, torch.tensor(BOXES[0]), None)
  outputs = [
      model.mask_decoder(
          features,
          model.prompt_encoder.get_dense_pe(),
          sparse,
          dense,
          multimask_output=several,
      )
      for several in (False, True)
  ]
  return features, [(masks[None], scores[None]) for masks, scores in outputs]


def assert_same_activations(params, model, activations):
  image = torch.randn(1, 3, SIDE, SIDE)
  with torch.no_grad():
    features, decoded = activations(model, image)
  ours = tower().apply(
      {'params': params['sam_backbone']}, image.numpy().transpose(0, 2, 3, 1)
  )
  compare(ours, features.numpy().transpose(0, 2, 3, 1))

  prompts = sam_prompt_encoder.SamPromptEncoder()
  variables = {'params': params['prompt_encoder']}
  grid = SIDE // PATCH
  sparse = prompts.apply(
      variables, jnp.asarray(BOXES), (SIDE, SIDE), method='boxes'
  )
  for several, (masks, scores) in zip((False, True), decoded):
    got = sam_mask_decoder.SamMaskDecoder().apply(
        {'params': params['mask_decoder']},
        ours,
        prompts.apply(variables, grid, grid, method='dense_pe'),
        sparse,
        prompts.apply(variables, method='no_mask'),
        multimask_output=several,
    )
    compare(got[0], masks.numpy())
    compare(got[1], scores.numpy())


def compare(got, want):
  assert np.std(want) > 0.01
  np.testing.assert_allclose(
      got, want, rtol=1e-5, atol=1e-5 * max(1, abs(want).max())
  )


def test_sam_of_transformers_computes_the_same_here_and_goes_back(
    model, tmp_path, import_params, export
):
  model.save_pretrained(tmp_path / 'hf')
  params, report = import_params(str(tmp_path / 'hf'))
  assert 'SAM of Hugging Face, safetensors' in report
  assert_same_activations(params, model, activations_of_transformers)

  path = export('sam_hf', params)
  model.config.save_pretrained(path)
  back, info = transformers.SamModel.from_pretrained(
      path, output_loading_info=True
  )
  assert not info['unexpected_keys']
  assert set(info['missing_keys']) <= {sam._HF_MATRIX_COPY}
  for name, value in model.state_dict().items():
    assert torch.equal(back.state_dict()[name], value), name


def test_sam_of_meta_computes_the_same_here_and_goes_back(
    meta, tmp_path, import_params, export
):
  torch.save(meta.state_dict(), tmp_path / 'sam_vit.pth')
  params, report = import_params(str(tmp_path / 'sam_vit.pth'))
  assert 'SAM of Meta, PyTorch' in report
  assert 'UNKNOWN' not in report and 'left out' not in report
  assert_same_activations(params, meta, activations_of_meta)

  file = export('sam', params) / 'model.safetensors'
  want = {name: x.clone() for name, x in meta.state_dict().items()}
  with torch.no_grad():
    for parameter in meta.parameters():
      parameter.zero_()
  meta.load_state_dict(safetensors.torch.load_file(file))
  for name, value in meta.state_dict().items():
    assert torch.equal(value, want[name]), name


def test_both_projects_hold_one_sam_under_other_names(
    model, tmp_path, import_params, export
):
  model.save_pretrained(tmp_path / 'hf')
  params, _ = import_params(str(tmp_path / 'hf'))
  path = export('sam', params)
  again, _ = import_params(str(path / 'model.safetensors'), output='from_meta')
  again, params = (
      traverse_util.flatten_dict(x, sep='/') for x in (again, params)
  )
  assert again.keys() == params.keys()
  for name in params:
    np.testing.assert_array_equal(again[name], params[name])


def test_both_copies_of_the_position_matrix_are_the_same(model):
  arrays = {name: x.numpy() for name, x in model.state_dict().items()}
  result = sam.hf_to_ours(arrays)
  assert list(result.left_out) == [sam._HF_MATRIX_COPY]
  assert not result.unknown and not result.misshapen
  arrays[sam._HF_MATRIX_COPY] = arrays[sam._HF_MATRIX_COPY] + 1
  with pytest.raises(ValueError, match='differs'):
    sam.hf_to_ours(arrays)
