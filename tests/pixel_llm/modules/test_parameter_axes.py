"""Every parameter of every vision module carries its logical axes."""

from flax import traverse_util
import jax
import jax.numpy as jnp
import pytest

from pixel_llm import axes
from pixel_llm.modules import eva02_vit
from pixel_llm.modules import mask_adapter
from pixel_llm.modules import point_predictor
from pixel_llm.modules import prompt_adapter
from pixel_llm.modules import sam_image_encoder
from pixel_llm.modules import sam_mask_decoder
from pixel_llm.modules import sam_prompt_encoder
from pixel_llm.modules import visual_projection

KNOWN_AXES = {v for k, v in vars(axes).items() if k.isupper()}
IMAGES = jnp.zeros((1, 32, 32, 3))

# Module, positional inputs, keyword inputs.
MODULES = {
    'eva02_vit': (eva02_vit.Eva02Vit(depth=2), (IMAGES,), {}),
    'sam_image_encoder': (
        sam_image_encoder.SamImageEncoder(depth=2, global_block_indexes=(1,)),
        (IMAGES,),
        {},
    ),
    'sam_prompt_encoder': (
        sam_prompt_encoder.SamPromptEncoder(),
        (),
        {
            'boxes': jnp.zeros((1, 4)),
            'masks': jnp.zeros((1, 8, 8, 1)),
            'image_hw': (32, 32),
            'grid_hw': (2, 2),
        },
    ),
    'sam_mask_decoder': (
        sam_mask_decoder.SamMaskDecoder(),
        (
            jnp.zeros((1, 2, 2, 256)),
            jnp.zeros((2, 2, 256)),
            jnp.zeros((1, 1, 2, 256)),
            jnp.zeros((256,)),
        ),
        {},
    ),
    'prompt_adapter': (
        prompt_adapter.PromptAdapter(depth=2),
        (
            jnp.zeros((1, 2, 2, 20)),
            jnp.zeros((2, 2, 256)),
            jnp.zeros((1, 1, 2, 256)),
            jnp.zeros((256,)),
        ),
        {},
    ),
    'mask_adapter': (
        mask_adapter.MaskAdapter(),
        (
            jnp.zeros((1, 1, 2, 256)),
            jnp.zeros((1, 1, 4, 40)),
            jnp.zeros((1, 1, 5, 24)),
            jnp.ones((1, 1, 5), bool),
        ),
        {},
    ),
    'visual_projection': (
        visual_projection.VisualProjection(),
        (jnp.zeros((1, 3, 8)),),
        {},
    ),
    'point_predictor': (
        point_predictor.PointPredictor(),
        (jnp.zeros((1, 3, 8)),),
        {},
    ),
}


@pytest.mark.parametrize('name', MODULES)
def test_axes_cover_every_parameter_with_its_rank(name):
  module, args, kwargs = MODULES[name]
  variables = jax.eval_shape(
      lambda: module.init(jax.random.key(0), *args, **kwargs)
  )
  params = traverse_util.flatten_dict(variables['params'])
  param_axes = traverse_util.flatten_dict(variables['params_axes'])
  assert {(*p[:-1], f'{p[-1]}_axes') for p in params} == set(param_axes)
  for path, array in params.items():
    names = param_axes[*path[:-1], f'{path[-1]}_axes'].names
    assert len(names) == array.ndim, path
    # A mesh axis can be used once in an array, and so can a logical one.
    assert len(set(names)) == len(names), path
    assert set(names) <= KNOWN_AXES, path
    assert array.dtype == jnp.float32, path


def test_an_axis_of_eva02_has_one_width_which_a_mesh_divides():
  # Inside its MLP too: 2,730 values, which few meshes would divide.
  module, args, _ = MODULES['eva02_vit']
  variables = jax.eval_shape(lambda: module.init(jax.random.key(0), *args))
  names = traverse_util.flatten_dict(variables['params_axes'])
  widths: dict[str, set[int]] = {}
  for path, array in traverse_util.flatten_dict(variables['params']).items():
    logical = names[*path[:-1], f'{path[-1]}_axes'].names
    for axis, size in zip(logical, array.shape):
      widths.setdefault(axis, set()).add(size)
  assert widths[axes.EMBED] == {1024}
  assert widths[axes.MLP] == {2730}
