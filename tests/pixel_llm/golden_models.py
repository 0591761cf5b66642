"""Models, parameters and batches of the whole-model golden cases."""

import pathlib

import numpy as np

from pixel_llm import models
from pixel_llm.golden import case as case_lib
from pixel_llm.golden.runners import network_settings
from pixel_llm.golden.runners import training_step

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'


def golden_batch(case: case_lib.Case, variant: str = ''):
  """The product's batch of a training batch of a case."""
  batch = training_step.read_batch(case.inputs, variant)
  prompt_mask = batch.pop('labels') > 0
  rows = prompt_mask.astype(np.float32)
  batch['prompt_mask'] = prompt_mask
  shape = batch['text_tokens'].shape
  batch.setdefault('points', np.zeros((*shape, 2, 2), np.float32))
  no_flag = np.zeros(shape[0], np.float32)
  for weights, flag in (
      ('caption_weights', 'caption_flag'),
      ('point_weights', 'point_flag'),
      ('detection_weights', 'detection_flag'),
  ):
    batch[weights] = rows * batch.pop(flag, no_flag)[:, None]
  objects = batch.pop('object_flag', no_flag)
  batch['object_captions'] = (rows * objects[:, None]) > 0
  if 'masks' not in batch:
    del batch['mask_weights']
  return batch


def golden_model(name: str, decoder=None, **model_args):
  """A model, its parameters and the plain batch of a golden case."""
  case = case_lib.load_case(GOLDEN, name)
  model = models.PixelLLMModel(
      network_settings.build_network(case.settings),
      optimizer_def=None,
      decoder=decoder,
      **model_args,
  )
  return case, model, golden_batch(case)
