"""Runs the golden case of geometry, token masks and image preparation.

Sizes that are asked for (of grids, of resized images) are those of the figures.
The case does not store the two image sizes of which `image_size_*` chooses:
they are taken from these figures, which say no more than that the larger one
and the first one are chosen (`case.UNSTORED_INPUTS`).
"""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from pixel_llm import geometry
from pixel_llm.golden import case as golden_case
from pixel_llm.modules import image_features

Arrays = dict[str, geometry.AnyArray]


def _grids(expected: Mapping[str, np.ndarray]) -> Arrays:
  """Grids by names such as `3_offset` (cell centres), `3_edge` and `thick2`."""
  outputs: Arrays = {}
  for name, array in expected.items():
    if not name.startswith(('out/solid_grid/', 'out/donut_grid/')):
      continue
    _, kind, spec = name.split('/')
    if spec.startswith('thick'):
      thickness = int(spec.removeprefix('thick'))
      # A border of n·n - (n - 2t)² = 4t(n - t) points.
      side = len(array) // (4 * thickness) + thickness
      outputs[name] = geometry.donut_grid(side, thickness=thickness)
      continue
    side, placement = spec.split('_')
    grid = {
        'solid_grid': geometry.solid_grid,
        'donut_grid': geometry.donut_grid,
    }[kind]
    outputs[name] = grid(int(side), cell_centres=placement == 'offset')
  return outputs


def _boxes_and_points(case: golden_case.Case) -> Arrays:
  inputs = {k: jnp.asarray(v) for k, v in case.inputs.items()}
  boxes, points, image_hw = (
      inputs[k] for k in ('boxes', 'points', 'image_shape')
  )
  num_grid_points = case.expected['out/boxes_to_points'].shape[-2]
  outputs: Arrays = {
      'out/boxes_to_points': geometry.boxes_to_points(
          boxes, round(num_grid_points**0.5)
      ),
      'out/boxes_to_points_corners': geometry.boxes_to_points(boxes, 0),
      'out/points_to_absolute': geometry.points_to_absolute(
          inputs['relative_points'], image_hw
      ),
      'out/points_to_relative': geometry.points_to_relative(points, image_hw),
      'out/boxes_to_relative': geometry.boxes_to_relative(boxes, image_hw),
  }
  prefix = 'out/points_to_boxes/side'
  for name in case.expected:
    if name.startswith(prefix):
      side, _, masked = name.removeprefix(prefix).partition('_')
      outputs[name] = geometry.points_to_boxes(
          points,
          inputs['points_valid'] > 0 if masked else None,
          points_per_side=int(side),
      )
  # The masked figure takes its prompts' flags from those of their first points.
  valid = inputs['points_valid'] > 0
  for suffix, mask in (('', jnp.ones_like(valid)), ('_masked', valid)):
    outputs[f'out/point_labels_eval{suffix}'] = geometry.point_labels(
        mask[..., 0], valid.shape[-1]
    )
  return outputs


def _token_masks(case: golden_case.Case) -> Arrays:
  begin_id, end_id = (int(i) for i in case.settings['begin / end'].split('/'))
  prefix = 'out/token_mask/'
  outputs = {}
  for name in case.expected:
    if name.startswith(prefix):
      ignore = name.removeprefix(prefix)
      outputs[name] = geometry.token_mask(
          jnp.asarray(case.inputs['tokens']),
          '' if ignore == '(empty)' else ignore,
          begin_id=begin_id,
          end_id=end_id,
      )
  return outputs


def _images(case: golden_case.Case) -> Arrays:
  images = jnp.asarray(case.inputs['images'])
  mask = jnp.asarray(case.inputs['padding_mask'])
  full_hw = jnp.broadcast_to(
      jnp.asarray(images.shape[1:3]), (images.shape[0], 2)
  )
  outputs: Arrays = {
      'out/image_shape_from_mask': geometry.image_hw_from_mask(mask),
      'out/image_shape_no_mask': geometry.image_hw_from_mask(
          geometry.valid_mask(full_hw, *images.shape[1:3])
      ),
  }
  prefix = 'out/preprocess/'
  for name, expected in case.expected.items():
    if name.startswith(prefix):
      tower, _, how = name.removeprefix(prefix).partition('_')
      normalizer = {
          'git': image_features.ImageNormalizer,
          'sam': image_features.SamImageNormalizer,
      }[tower](size=expected.shape[1:3])
      outputs[name] = normalizer(images, None if how == 'no_mask' else mask)
  return outputs


def _fusion(case: golden_case.Case) -> Arrays:
  maps = {name: jnp.asarray(case.inputs[f'map_{name}']) for name in ('a', 'b')}
  sizes = {
      'a': tuple(case.expected['out/image_size_plus'].tolist()),
      'b': tuple(case.expected['out/image_size_comma'].tolist()),
  }
  outputs = {}
  for name, expression in (('plus', 'b+a'), ('comma', 'b,a')):
    outputs[f'out/concat_{name}'] = image_features.fuse_feature_maps(
        expression, maps
    )
    outputs[f'out/image_size_{name}'] = np.asarray(
        image_features.fused_size(expression, sizes)
    )
  return outputs


def run_utils(case: golden_case.Case) -> dict[str, np.ndarray]:
  """Computes every array of the `utils` case."""
  outputs = (
      _grids(case.expected)
      | _boxes_and_points(case)
      | _token_masks(case)
      | _images(case)
      | _fusion(case)
  )
  return {name: np.asarray(array) for name, array in outputs.items()}


RUNNERS = {'utils': run_utils}
