import numpy as np
import pytest
import safetensors.torch
import torch
import torch_models

from pixel_llm.modules import eva02_vit
from pixel_llm.pretrained import import_weights

SIDE, PATCH = 56, 14


@pytest.fixture(scope='module')
def eva():
  return torch_models.import_eva()


def tower(eva, enlarged):
  """timm's `eva02_large_patch14_clip_224`, small."""
  grid = SIDE // PATCH
  model = enlarged(
      eva.Eva(
          img_size=SIDE,
          patch_size=PATCH,
          embed_dim=24,
          depth=2,
          num_heads=3,
          mlp_ratio=4 * 2 / 3,
          qkv_fused=False,
          swiglu_mlp=True,
          scale_mlp=True,
          scale_attn_inner=True,
          use_rot_pos_emb=True,
          ref_feat_shape=(grid, grid),
          global_pool='token',
          num_classes=5,
      )
  )
  # The original's epsilon; timm has 1e-6 here too.
  for block in model.blocks:
    block.mlp.norm.eps = 1e-5
  return model


OURS = eva02_vit.Eva02Vit(
    patch_size=PATCH,
    embed_dim=24,
    depth=2,
    num_heads=3,
    pretrain_image_size=SIDE,
    attention_norm=True,
)


@pytest.mark.parametrize('prefix', ['', 'visual.trunk.'])
def test_the_tower_of_timm_computes_the_same_here(
    eva, tmp_path, enlarged, import_params, prefix
):
  model = tower(eva, enlarged)
  file = tmp_path / 'open_clip_model.safetensors'
  tensors = {f'{prefix}{k}': v for k, v in model.state_dict().items()}
  if prefix:
    tensors['text.token_embedding.weight'] = torch.ones(2, 3)
  safetensors.torch.save_file(tensors, file)
  params, report = import_params(str(file))
  assert 'EVA02 of timm, OpenCLIP or its authors, safetensors' in report
  assert f"{prefix}head.weight left out: CLIP's projection" in report

  image = torch.randn(1, 3, SIDE, SIDE)
  with torch.no_grad():
    want = model.forward_features(image).numpy()
  got = OURS.apply(
      {'params': params['git_backbone']},
      image.numpy().transpose(0, 2, 3, 1),
      method='tokens',
  )
  assert np.std(want) > 0.1
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_the_authors_names_hold_the_same(
    eva, tmp_path, enlarged, import_params
):
  model = tower(eva, enlarged)
  renamed = {
      '.mlp.fc1_g.': '.mlp.w1.',
      '.mlp.fc1_x.': '.mlp.w2.',
      '.mlp.fc2.': '.mlp.w3.',
      '.mlp.norm.': '.mlp.ffn_ln.',
      '.attn.norm.': '.attn.inner_attn_ln.',
      '.q_proj.bias': '.q_bias',
      '.v_proj.bias': '.v_bias',
  }
  tensors = {}
  for name, tensor in model.state_dict().items():
    for old, new in renamed.items():
      name = name.replace(old, new)
    tensors[f'visual.{name}'] = tensor
  tensors['logit_scale'] = torch.ones(())
  torch.save({'module': tensors}, tmp_path / 'EVA02_CLIP_L.pt')
  torch.save(model.state_dict(), tmp_path / 'timm.pth')
  got, _ = import_params(str(tmp_path / 'EVA02_CLIP_L.pt'), output='authors')
  want, _ = import_params(str(tmp_path / 'timm.pth'), output='timm')
  got, want = (
      import_weights.traverse_util.flatten_dict(x, sep='/') for x in (got, want)
  )
  assert got.keys() == want.keys()
  for name in want:
    np.testing.assert_array_equal(got[name], want[name])
