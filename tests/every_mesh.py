"""Loss and gradients of tiny models on meshes of eight CPU devices; JSON.

`every_mesh.py MODEL FORM WHICH`: MODEL is of `MODELS`, FORM scanned or
unrolled, WHICH all or few. Run by `test_every_mesh.py` in processes of their
own: the number of devices is fixed when JAX starts.
"""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp

if __name__ == '__main__' and sys.argv[1] != 't5':
  # Twice the digits wherever the program asks for float32, also in the defaults
  # of what is imported from here on. Otherwise a decision (a ReLU, the best of some
  # scores, an overlap) may be so close that the order of a sum makes it.
  jax.config.update('jax_enable_x64', True)
  jnp.float32 = jnp.float64

import numpy as np
import seqio

import gin
from pixel_llm import axes
from pixel_llm import features
from pixel_llm import models as pixel_llm_models
from pixel_llm import objective
from t5x import gradients
from t5x import models as t5x_models
from t5x import optimizers
from t5x import partitioning
from t5x import train_state as train_state_lib
from t5x.examples.t5 import network as t5_network

ROOT = pathlib.Path(__file__).parents[1]
MODELS = ('t5', 'trace', 'masks', 'densecap')
# (data, model); with one row of data, nothing can be cut over it.
MESHES = {'all': ((8, 1), (4, 2), (2, 4), (1, 8)), 'few': ((2, 4),)}
MICROBATCHES = {'all': (1, 2, 4), 'few': (2,)}
# Images, prompts, text tokens, context tokens, side of an image. Every
# microbatch of every mesh has an image for each of its rows of devices.
B, N, T, C, SIDE = 32, 2, 6, 4, 80

GIN_FILES = {
    'trace': (),
    'masks': ('gin/models/masks.gin',),
    'densecap': ('gin/models/detector.gin',),
}
# The tiny run's network, with heads for eight devices, few words, and blocks of
# SAM that repeat, so that they can be scanned.
GIN_BINDINGS = f"""
from __gin__ import dynamic_registration
from pixel_llm import network
from pixel_llm.modules import sam_image_encoder
from pixel_llm.modules import t5_text_head
OPTIMIZER = None
DECODER = None
DROPOUT_RATE = 0.0
DTYPE = 'float64'
NETWORK = @network.PixelLLM()
TINY_IMAGE_SIZE = {SIDE}
sam_image_encoder.SamImageEncoder.depth = 4
sam_image_encoder.SamImageEncoder.global_block_indexes = (1, 3)
t5_text_head.T5TextConfig.vocab_size = 64
t5_text_head.T5TextConfig.num_heads = 8
t5_text_head.T5TextConfig.head_dim = 16
"""


class OneDevice(partitioning.PjitPartitioner):
  """A mesh of the first device alone."""

  mesh = jax.sharding.Mesh(
      np.array(jax.devices()[:1]).reshape(1, 1), ('data', 'model')
  )


def t5_model(scanned):
  """A T5 whose widths all divide by eight, and a batch."""
  config = t5_network.T5Config(
      vocab_size=64,
      emb_dim=16,
      num_heads=8,
      num_encoder_layers=2,
      num_decoder_layers=2,
      head_dim=4,
      mlp_dim=32,
      mlp_activations=('gelu', 'linear'),
      dropout_rate=0.0,
      scan_layers=scanned,
  )
  vocabulary = seqio.ByteVocabulary()
  model = t5x_models.EncoderDecoderModel(
      t5_network.Transformer(config), vocabulary, vocabulary, optimizers.sgd(1)
  )
  rng = np.random.default_rng(0)
  tokens = rng.integers(1, 64, (3, B, 10)).astype(np.int32)
  targets = tokens[1] * (np.arange(10) < rng.integers(3, 10, (B, 1)))
  return model, {
      'encoder_input_tokens': tokens[0],
      'decoder_input_tokens': tokens[2],
      'decoder_target_tokens': targets,
      'decoder_loss_weights': (targets > 0).astype(np.int32),
  }


def pixel_llm_model(name, scanned):
  """The tiny PixelLLM of a task, and a batch."""
  gin.add_config_file_search_path(str(ROOT))
  gin.parse_config_files_and_bindings(
      ['gin/models/tiny.gin', *GIN_FILES[name]],
      [*GIN_BINDINGS.splitlines(), f'SCAN_LAYERS = {scanned}'],
  )
  module = gin.query_parameter('%NETWORK').scoped_configurable_fn()
  if name == 'densecap':
    # Captions go to what the box decoder proposes.
    module = module.clone(point_predictor=None)
  model = pixel_llm_models.PixelLLMModel(
      module, optimizers.sgd(1), None, objective.Objective()
  )
  return model, pixel_llm_batch(name == 'masks', name == 'densecap')


def pixel_llm_batch(with_masks, with_detection):
  """Random images, boxes and texts; some prompts are padding."""
  rng = np.random.default_rng(0)
  sizes = {'S': SIDE, 'N': N, 'T': T, 'C': C, 'P': 2}
  batch = {
      name: np.zeros(
          (B, *features.feature_shape(feature, sizes)), feature.dtype
      )
      for name, feature in features.model_features(with_masks).items()
  }
  corner = rng.uniform(0, 30, (B, N, 2))
  boxes = np.concatenate([corner, corner + rng.uniform(20, 45, (B, N, 2))], -1)
  tokens = rng.integers(2, 64, (B, N, T))
  tokens *= np.arange(T) < rng.integers(3, T + 1, (B, N, 1))
  mask = np.ones((B, N), bool)
  mask[::3, 1] = False
  batch |= {
      'image': rng.integers(0, 255, batch['image'].shape).astype(np.uint8),
      'image_hw': np.full((B, 2), SIDE, np.int32),
      'prompt_boxes': boxes.astype(np.float32),
      'boxes': boxes.astype(np.float32),
      'text_tokens': tokens.astype(np.int32),
      'context_tokens': rng.integers(2, 64, (B, N, C)).astype(np.int32),
      'points': rng.uniform(0, SIDE, batch['points'].shape).astype(np.float32),
      'prompt_mask': mask,
      'caption_weights': mask.astype(np.float32),
      'point_weights': mask.astype(np.float32),
  }
  if with_masks:
    batch['masks'] = rng.integers(0, 256, batch['masks'].shape).astype(np.uint8)
    batch['mask_weights'] = mask.astype(np.float32)
  if with_detection:
    batch['detection_weights'] = mask.astype(np.float32)
    batch['object_captions'] = mask
  return batch


def initial_state(model, batch):
  """The train state of step 0, as host arrays."""
  shapes = {name: x.shape for name, x in batch.items()}
  types = {name: x.dtype for name, x in batch.items()}

  def create(rng):
    variables = model.get_initial_variables(rng, shapes, types)
    return train_state_lib.FlaxOptimTrainState.create(
        model.optimizer_def, variables
    )

  return jax.device_get(jax.jit(create)(jax.random.PRNGKey(0)))


def loss_and_grads(model, state, batch, partitioner, num_microbatches):
  """Computes them with parameters and batch on the partitioner's mesh.

  Returns:
    The loss, the gradients, and how many parameters are cut.
  """
  placed = partitioner.get_mesh_axes(state)

  def step(state, batch):
    grads, metrics, _ = gradients.accumulate_grads_microbatched(
        model,
        state,
        batch,
        None,
        num_microbatches,
        partitioner.data_partition_spec,
    )
    return metrics['loss'].total, grads

  spec = partitioner.data_partition_spec
  compiled = partitioner.partition(step, (placed, spec), (None, None))

  state = partitioner.move_params_to_devices(state, placed)
  loss, grads = compiled(state, batch)
  cut = sum(
      not leaf.sharding.is_fully_replicated
      for leaf in jax.tree.leaves(state.params)
  )
  return float(loss), jax.tree.map(np.asarray, grads), cut


def difference(found, want):
  """The largest difference of gradients, and its parameter.

  Relative to the parameter's largest gradient, where that is above 1e-3.
  """
  worst = (0.0, '')
  for (path, a), b in zip(
      jax.tree.leaves_with_path(found), jax.tree.leaves(want), strict=True
  ):
    scale = max(1e-3, float(np.max(np.abs(b))))
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    worst = max(worst, (float(np.max(np.abs(a - b))) / scale, name))
  return worst


def partitioners(which):
  """Yields a name and a partitioner for every combination of axes."""
  for data, parts in MESHES[which]:
    for dims in (1, 2) if which == 'all' and data > 1 else (2,):
      rules = partitioning.standard_logical_axis_rules(
          parameter_partitioning_dims=dims,
          additional_rules=axes.additional_rules(),
      )
      yield (
          f'{data}x{parts}{" fsdp" if dims == 2 else ""}',
          partitioning.PjitPartitioner(
              model_parallel_submesh=(1, 1, 1, parts), logical_axis_rules=rules
          ),
      )


def main(name, form, which):
  """Compares every mesh with one device; prints what differs most."""
  assert jax.device_count() == 8
  scanned = form == 'scanned'
  if name == 't5':
    model, batch = t5_model(scanned)
  else:
    model, batch = pixel_llm_model(name, scanned)
  one = OneDevice(
      num_partitions=1,
      logical_axis_rules=partitioning.standard_logical_axis_rules(
          additional_rules=axes.additional_rules()
      ),
  )
  state = initial_state(model, batch)
  whole = loss_and_grads(model, state, batch, one, None)
  report = {'loss': whole[0], 'meshes': {}}
  references = {1: whole}
  for number in MICROBATCHES[which]:
    if number > 1 and which == 'all':
      found = loss_and_grads(model, state, batch, one, number)
      # With a box decoder a loss is a mean of a microbatch: see `objective`.
      references[number] = found if name == 'densecap' else whole
      report['meshes'][f'1x1 {number}'] = {
          'loss': found[0] / references[number][0] - 1,
          'grads': difference(found[1], references[number][1]),
      }
  for mesh, partitioner in partitioners(which):
    for number in MICROBATCHES[which]:
      want = references.get(number, whole)
      loss, grads, cut = loss_and_grads(
          model, state, batch, partitioner, number
      )
      report['meshes'][f'{mesh} {number}'] = {
          'loss': loss / want[0] - 1,
          'grads': difference(grads, want[1]),
          'cut': cut,
      }
      print(mesh, number, report['meshes'][f'{mesh} {number}'], flush=True)
  print(json.dumps(report))


if __name__ == '__main__':
  main(*sys.argv[1:])
