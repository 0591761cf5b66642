"""What moves no loss and no prediction of a whole, tiny PixelLLM.

More prompts that are padding, anywhere among the others; their order; pixels
outside the valid area; longer context and text. Both text heads, all losses,
all predictions.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_llm import beam_search
from pixel_llm import generation
from pixel_llm import mask_bits
from pixel_llm import models
from pixel_llm import network
from pixel_llm.modules import bert_text_head
from pixel_llm.modules import eva02_vit
from pixel_llm.modules import mask_adapter
from pixel_llm.modules import point_predictor
from pixel_llm.modules import prompt_adapter
from pixel_llm.modules import sam_image_encoder
from pixel_llm.modules import sam_mask_decoder
from pixel_llm.modules import sam_prompt_encoder
from pixel_llm.modules import t5_text_head
from pixel_llm.modules import visual_projection

IMAGES, PROMPTS, TEXT, CONTEXT, SIDE = 2, 3, 7, 3, 16
VOCABULARY, BEGIN, END = 13, 3, 2
SEEDS = range(4)

HEADS = {
    't5': t5_text_head.T5TextHead(
        t5_text_head.T5TextConfig(
            vocab_size=VOCABULARY,
            emb_dim=12,
            num_heads=2,
            num_encoder_layers=1,
            num_decoder_layers=1,
            head_dim=6,
            mlp_dim=16,
            mlp_activations=('gelu', 'linear'),
            encoder_lora_rank=2,
            decoder_lora_rank=2,
        )
    ),
    'bert': bert_text_head.BertTextHead(
        vocab_size=VOCABULARY,
        emb_dim=12,
        num_heads=2,
        num_layers=1,
        mlp_dim=16,
        max_length=TEXT + 4,
    ),
}


def make_model(head: str, decoder: generation.Decoder):
  net = network.PixelLLM(
      git_backbone=eva02_vit.Eva02Vit(
          patch_size=4,
          embed_dim=8,
          depth=1,
          num_heads=2,
          pretrain_image_size=SIDE,
          drop_path_rate=0.0,
      ),
      sam_backbone=sam_image_encoder.SamImageEncoder(
          image_size=SIDE,
          patch_size=4,
          embed_dim=8,
          depth=1,
          num_heads=2,
          window_size=3,
          global_block_indexes=(),
      ),
      prompt_encoder=sam_prompt_encoder.SamPromptEncoder(),
      prompt_adapter=prompt_adapter.PromptAdapter(
          depth=1,
          transformer_dim=16,
          num_outputs=3,
          output_dim=10,
          num_heads=2,
          mlp_dim=16,
      ),
      visual_project_layers=(
          visual_projection.VisualProjection(12) if head == 't5' else None
      ),
      textual=HEADS[head],
      point_predictor=point_predictor.PointPredictor(hidden_dim=8, depth=2),
      begin_token_id=BEGIN,
      end_token_id=END,
      mask_adapter=mask_adapter.MaskAdapter(depth=1, mlp_dim=16),
      mask_decoder=sam_mask_decoder.SamMaskDecoder(),
  )
  return models.PixelLLMModel(net, optimizer_def=None, decoder=decoder)


def draw_batch(seed: int):
  """Draws a batch with prompts that count, and slots with anything in them."""
  rng = np.random.default_rng(seed)
  shape = (IMAGES, PROMPTS)

  def tokens(length, begin, end):
    ids = rng.integers(4, VOCABULARY, (*shape, length))
    last = rng.integers(1, length, shape)[..., None]
    places = np.arange(length)
    ids = np.where(places == last, END, ids) if end else ids
    ids = np.where(places > last, 0, ids)
    ids[..., 0] = BEGIN if begin else ids[..., 0]
    return ids.astype(np.int32)

  corners = rng.uniform(0, SIDE, (*shape, 2, 2, 2)).astype(np.float32)
  boxes = np.concatenate([corners.min(-2), corners.max(-2)], axis=-1)
  in_use = rng.uniform(size=shape) < 0.7
  in_use[:, 0] = True
  # The first image has a trace, the second has none.
  points = rng.uniform(0, SIDE, (*shape, TEXT, 2, 2)).astype(np.float32)
  points[1, in_use[1]] = 0
  weights = {
      name: (in_use & (rng.uniform(size=shape) < 0.8)).astype(np.float32)
      for name in ('caption_weights', 'point_weights', 'mask_weights')
  }
  text_tokens = tokens(TEXT, begin=True, end=True)
  # A text without a word has no box to draw a mask in.
  weights['mask_weights'] *= text_tokens[:, :, 1] != END
  return {
      'image': rng.integers(0, 256, (IMAGES, SIDE, SIDE, 3)).astype(np.uint8),
      'image_hw': rng.integers(SIDE // 2, SIDE + 1, (IMAGES, 2), np.int32),
      'prompt_boxes': boxes[:, :, 0],
      'context_tokens': tokens(CONTEXT, begin=False, end=False),
      'text_tokens': text_tokens,
      'boxes': boxes[:, :, 1],
      'points': points,
      'masks': mask_bits.pack(rng.integers(0, 2, (*shape, SIDE, SIDE))),
      'prompt_mask': in_use,
      **weights,
  }


PER_IMAGE = ('image', 'image_hw')


def pad(batch, name, axis, amount):
  widths = [(0, 0)] * batch[name].ndim
  widths[axis] = (0, amount)
  return np.pad(batch[name], widths)


def add_slots(batch, seed):
  """Adds two slots an image, shuffles all, and spoils unseen pixels.

  Returns:
    The batch, and where the old prompts are now.
  """
  rng = np.random.default_rng(seed + 100)
  # Slots of another batch, none of them in use.
  other = {k: v[:, :2] for k, v in draw_batch(seed + 50).items()}
  order = np.stack([rng.permutation(PROMPTS + 2) for _ in range(IMAGES)])
  moved = {}
  for name, values in batch.items():
    if name in PER_IMAGE:
      continue
    unused = other[name]
    if name == 'prompt_mask' or name.endswith('_weights'):
      unused = np.zeros_like(unused)
    both = np.concatenate([values, unused], axis=1)
    index = order.reshape(*order.shape, *[1] * (both.ndim - 2))
    moved[name] = np.take_along_axis(both, index, axis=1)
  rows, columns = np.indices((SIDE, SIDE))
  height, width = np.moveaxis(batch['image_hw'], 1, 0)[..., None, None]
  outside = ((rows >= height) | (columns >= width))[..., None]
  noise = rng.integers(0, 256, batch['image'].shape).astype(np.uint8)
  moved['image'] = np.where(outside, noise, batch['image'])
  moved['image_hw'] = batch['image_hw']
  places = np.argsort(order, axis=1)[:, :PROMPTS]
  return moved, places


@functools.cache
def setup(head, decoder, random_params):
  """A model with drawn parameters, as one compiled function of a batch."""
  model = make_model(head, decoder)
  batch = draw_batch(0)
  params = random_params(
      model.module, *(jnp.asarray(batch[k]) for k in models.NETWORK_INPUTS)
  )
  for name in ('mask_adapter', 'mask_decoder'):
    # They are wide; large numbers would hide small ones.
    params[name] = jax.tree.map(lambda x: 0.2 * x, params[name])

  @jax.jit
  def run(params, batch):
    _, metrics = model.eval_fn(params, batch)
    values = {k: v.compute() for k, v in metrics.items() if 'timing' not in k}
    tokens, aux = model.predict_batch_with_aux(params, batch)
    return values, {'tokens': tokens, **aux}

  return lambda batch: run(params, batch)


def assert_equal_where_in_use(actual, expected, in_use):
  for name, values in expected.items():
    np.testing.assert_allclose(
        np.asarray(actual[name])[in_use],
        np.asarray(values)[in_use],
        rtol=1e-4,
        atol=1e-4,
        err_msg=name,
    )


def assert_equal_losses(actual, expected, names):
  assert set(names) <= set(expected) and set(actual) == set(expected)
  for name, value in expected.items():
    np.testing.assert_allclose(
        actual[name], value, rtol=1e-4, atol=1e-5, err_msg=name
    )


@pytest.mark.parametrize(
    ('head', 'decoder'),
    [
        pytest.param('t5', beam_search.BeamSearch(3, 2), id='t5'),
        pytest.param(
            'bert', generation.Greedy(), id='bert', marks=pytest.mark.slow
        ),
    ],
)
def test_unused_slots_order_and_unseen_pixels_move_nothing(
    head, decoder, random_params
):
  run = setup(head, decoder, random_params)
  texts = set()
  for seed in SEEDS:
    batch = draw_batch(seed)
    moved, places = add_slots(batch, seed)
    losses, found = run(batch)
    more_losses, more = run(moved)
    assert_equal_losses(
        more_losses, losses, ['loss', 'text_loss', 'point_loss', 'mask_loss']
    )
    back = {
        name: np.asarray(x)[np.arange(IMAGES)[:, None], places]
        for name, x in more.items()
    }
    assert {'tokens', 'scores', 'boxes', 'points', 'mask_logits'} <= set(found)
    assert_equal_where_in_use(back, found, batch['prompt_mask'])
    texts |= {tuple(t) for t in np.asarray(found['tokens']).reshape(-1, TEXT)}
  assert len(texts) > 3, texts


@pytest.mark.parametrize(
    'head', [pytest.param('t5', marks=pytest.mark.slow), 'bert']
)
def test_longer_context_and_text_move_nothing(head, random_params):
  run = setup(head, generation.Greedy(), random_params)
  num_ended = 0
  for seed in SEEDS:
    batch = draw_batch(seed)
    losses, found = run(batch)
    longer = {
        **batch,
        'text_tokens': pad(batch, 'text_tokens', 2, 4),
        'points': pad(batch, 'points', 2, 4),
        'context_tokens': pad(batch, 'context_tokens', 2, 2),
    }
    more_losses, more = run(longer)
    assert_equal_losses(
        more_losses, losses, ['text_loss', 'point_loss', 'mask_loss']
    )
    for name in ('tokens', 'points', 'point_mask', 'gt_text_points'):
      more[name] = more[name][:, :, :TEXT]
    # A text that was cut off at TEXT goes on where there is room.
    ended = np.any(np.asarray(found['tokens'])[..., : TEXT - 1] == END, axis=-1)
    num_ended += ended.sum()
    in_use = batch['prompt_mask'] & ended
    # Points of padding mean nothing.
    of_words = in_use[..., None] & np.asarray(found['point_mask'])
    assert_equal_where_in_use(more, {'points': found.pop('points')}, of_words)
    of_words = batch['prompt_mask'][..., None] & (batch['text_tokens'] > BEGIN)
    given = found.pop('gt_text_points')
    assert_equal_where_in_use(more, {'gt_text_points': given}, of_words)
    has_box = in_use & np.asarray(found['box_mask'])
    of_boxes = {k: found.pop(k) for k in ('boxes', 'mask_logits', 'mask_iou')}
    assert_equal_where_in_use(more, of_boxes, has_box)
    assert_equal_where_in_use(more, found, in_use)
  assert num_ended > 2, 'all texts were cut off'
