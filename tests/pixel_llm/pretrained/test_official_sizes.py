"""Weights of the published sizes fit the model of the paper.

Names and shapes only: neither side fills memory.
"""

from flax import traverse_util
import numpy as np
import pytest
import torch
import torch_models
import transformers

import gin
from pixel_llm.pretrained import fitting
from pixel_llm.pretrained import formats
from pixel_llm.pretrained import sources
from pixel_llm.pretrained import target_model

GIN_FILE = 'gin/pixel_llm_t5_refseg.gin'
ATTENTION_NORM = 'eva02_vit.Eva02Vit.attention_norm = True'
# What training on pixel-aligned captions adds to its parts.
OWN_PARTS = {
    'mask_adapter',
    'point_predictor',
    'prompt_adapter',
    'visual_project_layers',
}


@pytest.fixture(autouse=True)
def _gin_search_paths(monkeypatch):
  monkeypatch.setattr(gin.config, '_LOCATION_PREFIXES', [''])


def published():
  """SAM ViT-H, EVA02-CLIP-L/14 and Flan-T5-XL, by format."""
  config = transformers.T5Config(
      vocab_size=32128,
      d_model=2048,
      d_kv=64,
      d_ff=5120,
      num_layers=24,
      num_heads=32,
      feed_forward_proj='gated-gelu',
      tie_word_embeddings=False,
  )
  with torch.device('meta'):
    return {
        'sam': torch_models.import_sam().build_sam_vit_h(),
        'eva02': torch_models.import_eva().eva02_large_patch14_clip_224(),
        't5_hf': transformers.T5ForConditionalGeneration(config),
    }


def arrays(model):
  """One number each, seen from everywhere: of any size without memory."""
  return {
      name: np.broadcast_to(np.float32(number), tuple(x.shape))
      for number, (name, x) in enumerate(model.state_dict().items())
      # A file holds tied arrays once.
      if not name.endswith('embed_tokens.weight')
  }


@pytest.mark.slow
def test_published_sizes_fill_the_model_of_the_paper():
  params = {}
  for name, model in published().items():
    source = sources.Source(name, 'PyTorch', arrays(model))
    assert formats.detect(source) == name
    result = formats.convert(source, name)
    assert not result.unknown and not result.misshapen
    assert set(result.left_out) <= {'head.weight', 'head.bias'}
    params.update(result.arrays())
  # 0.64 + 0.30 + 2.85 billion.
  assert 3.7e9 < sum(x.size for x in params.values()) < 3.9e9

  target = target_model.from_gin([GIN_FILE], [ATTENTION_NORM])
  fit = fitting.fit(params, target.params)
  assert not fit.unknown and not fit.wrong
  assert all('/mask_downscaling/' in name for name in fit.left_out)
  fresh = [name for name in fit.fresh if not name.endswith('_lora')]
  assert {name.split('/')[0] for name in fresh} == OWN_PARTS
  shapes = traverse_util.flatten_dict(target.params, sep='/')
  assert {k: v.shape for k, v in fit.params.items()} == {
      k: v.shape for k, v in shapes.items() if k not in fit.fresh
  }
