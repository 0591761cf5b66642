"""The rules of `gin/mesh`: they add to every run, and cut every model."""

import ast
import re

from flax import traverse_util
import pytest
import recipe_files

import gin
from pixel_llm import axes
from pixel_llm.pretrained import target_model
from t5x import axis_rules

MESHES = sorted(p.stem for p in (recipe_files.ROOT / 'gin/mesh').glob('*.gin'))
# What has every part of the network, with each head.
WHOLE = [
    f'pixel_llm_{head}_trace_refseg_densecap_llava' for head in ('t5', 'bert')
]
PARSED = [
    run if run == WHOLE[0] else pytest.param(run, marks=pytest.mark.slow)
    for run in recipe_files.RUNS
    if 'tiny' not in run
]
# By mesh file: (data, model) of the smallest and the largest mesh it is for.
SHAPES = {
    'data': [(1, 1), (512, 1)],
    'fsdp': [(8, 2), (32, 2), (256, 2)],
    'v4': [(16, 1), (512, 1)],
    'v5e': [(8, 2), (128, 2)],
    'v5p': [(32, 1)],
    'v6e': [(64, 1)],
    'gpu_1': [(1, 1)],
    'gpu_8': [(8, 1)],
    'gpu_64': [(64, 1)],
}


@pytest.mark.parametrize('run', PARSED)
def test_every_mesh_adds_to_every_recipe(run):
  recipe_files.parse(run)
  alone = recipe_files.macros()[0]
  for mesh in MESHES:
    recipe_files.parse(run, f'gin/mesh/{mesh}.gin')
    given, read = recipe_files.macros()
    # A misspelt macro is a new one, which nothing reads.
    assert given - alone <= read, mesh
    assert given > alone, mesh
    assert gin.query_parameter('%FROZEN_DTYPE') == 'bfloat16'


def parameters():
  """Axes and shapes of the parameters of the model that was read, by name."""
  model = recipe_files.macro('MODEL')
  spec = target_model.batch_spec(
      model,
      recipe_files.macro('TASK_FEATURE_LENGTHS'),
      recipe_files.macro('BATCH_SIZE'),
  )
  variables = target_model.variable_shapes(model, spec)
  shapes = traverse_util.flatten_dict(variables['params'], sep='/')
  names = traverse_util.flatten_dict(variables['params_axes'], sep='/')
  return {
      name: (names[f'{name}_axes'].names, x.shape) for name, x in shapes.items()
  }


@pytest.mark.slow
@pytest.mark.parametrize('run', WHOLE)
def test_every_mesh_divides_every_parameter(run):
  recipe_files.parse(run)
  found = parameters()
  assert set(SHAPES) == set(MESHES)
  for mesh, shapes in SHAPES.items():
    recipe_files.parse(run, f'gin/mesh/{mesh}.gin')
    dims = [
        gin.query_parameter(f'%{name}')
        for name in ('ACTIVATION_DIMS', 'PARAMETER_DIMS')
    ]
    rules = axis_rules.standard_logical_axis_rules(
        *dims, axes.additional_rules()
    )
    partitions = gin.query_parameter('%NUM_PARTITIONS')
    towers = recipe_files.bindings().get(
        '/t5x.partitioning.PjitPartitioner.tower_rules', '()'
    )
    for data, model in shapes:
      assert model == partitions, mesh
      for name, (logical, shape) in found.items():
        updates = [
            update
            for pattern, updates in ast.literal_eval(towers)
            if re.search(pattern, name)
            for update in updates
        ]
        # Raises for a size that does not divide.
        axis_rules.to_mesh_axes(
            name,
            logical,
            shape,
            axis_rules.update_logical_axis_rules(rules, updates),
            {'data': data, 'model': model},
        )
