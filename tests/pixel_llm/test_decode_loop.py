"""What the loop of decoding computes, read from its program."""

from collections.abc import Iterator

import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np
import pytest

from pixel_llm import beam_search
from pixel_llm import generation
from pixel_llm.modules import bert_text_head
from pixel_llm.modules import t5_text_head

ROWS, BEAMS, LENGTH = 2, 3, 5
# Numbers that stand for nothing else: visual tokens, width of a head.
NUM_VISUAL, HEAD_DIM = 17, 19
HEADS = {
    't5': t5_text_head.T5TextHead(
        t5_text_head.T5TextConfig(
            vocab_size=11,
            emb_dim=2 * HEAD_DIM,
            num_heads=2,
            num_encoder_layers=1,
            num_decoder_layers=2,
            head_dim=HEAD_DIM,
            mlp_dim=12,
            encoder_lora_rank=2,
            decoder_lora_rank=2,
        )
    ),
    'bert': bert_text_head.BertTextHead(
        vocab_size=11,
        emb_dim=2 * HEAD_DIM,
        num_heads=2,
        num_layers=2,
        mlp_dim=12,
        max_length=LENGTH,
    ),
}
VISUAL = jnp.ones((ROWS, NUM_VISUAL, 2 * HEAD_DIM))


def decoding_program(name, num_beams=BEAMS):
  """The names of the parameters, and the program of beam search."""
  head = HEADS[name]
  params = jax.eval_shape(
      head.init,
      jax.random.key(0),
      VISUAL,
      jnp.zeros((ROWS, LENGTH), jnp.int32),
  )['params']

  def decode(params):
    variables = {'params': params}
    encoded = head.apply(variables, VISUAL, method='encode')
    cache = head.apply(
        variables, encoded, num_beams, LENGTH, method='start_decode'
    )
    decoder = beam_search.BeamSearch(num_beams, 2)
    start = generation.start_tokens(ROWS, LENGTH, 0, 1)
    return decoder(generation.module_step(head, variables), cache, start, 1)

  names = [
      jax.tree_util.keystr(path, simple=True, separator='/')
      for path, _ in jax.tree_util.tree_leaves_with_path(params)
  ]
  return names, jax.make_jaxpr(decode)(params).jaxpr


def equations(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
  """All equations, those of inner programs included."""
  for eqn in jaxpr.eqns:
    yield eqn
    for inner in jax.tree.leaves(
        list(eqn.params.values()),
        is_leaf=lambda x: isinstance(x, (core.Jaxpr, core.ClosedJaxpr)),
    ):
      if isinstance(inner, core.ClosedJaxpr):
        inner = inner.jaxpr
      if isinstance(inner, core.Jaxpr):
        yield from equations(inner)


def the_loop(program: core.Jaxpr) -> core.JaxprEqn:
  (loop,) = (e for e in program.eqns if e.primitive.name == 'while')
  return loop


def body_of(loop: core.JaxprEqn) -> core.Jaxpr:
  return loop.params['body_jaxpr'].jaxpr


@pytest.mark.parametrize('name', HEADS)
def test_beams_neither_copy_nor_move_what_their_row_shares(name):
  _, program = decoding_program(name)
  loop = the_loop(program)
  num_fixed = loop.params['cond_nconsts'] + loop.params['body_nconsts']
  keys_or_values = ROWS * NUM_VISUAL * 2 * HEAD_DIM
  fixed = [v.aval.shape for v in loop.invars[:num_fixed]]
  carried = [v.aval.shape for v in loop.invars[num_fixed:]]
  # Two layers of keys and values, once a row, and not in what steps rewrite.
  shared = [s for s in fixed if np.prod(s) == keys_or_values]
  assert len(shared) == 4, fixed
  assert not [s for s in carried if NUM_VISUAL in s]
  text = ROWS * BEAMS * LENGTH * 2 * HEAD_DIM
  assert sum(np.prod(s) == text for s in carried) == 4, carried

  moved = [
      e.invars[0].aval.shape
      for e in equations(body_of(loop))
      if e.primitive.name == 'gather'
  ]
  assert sum(np.prod(s) == text for s in moved) == 4, moved
  assert not [s for s in moved if NUM_VISUAL in s]
  for eqn in equations(body_of(loop)):
    for out in eqn.outvars:
      if NUM_VISUAL in out.aval.shape:
        assert np.prod(out.aval.shape) <= keys_or_values, eqn


@pytest.mark.parametrize('name', HEADS)
def test_a_step_writes_one_position_into_the_cache(name):
  _, program = decoding_program(name, num_beams=1)
  updates = [
      e
      for e in equations(body_of(the_loop(program)))
      if e.primitive.name == 'dynamic_update_slice'
      and HEAD_DIM in e.invars[0].aval.shape
  ]
  assert len(updates) == 4
  for update in updates:
    room, new = (v.aval.shape for v in update.invars[:2])
    assert np.prod(room) == LENGTH * np.prod(new)


@pytest.mark.parametrize(
    ('name', 'never_read'),
    [
        (
            't5',
            ['/encoder/', 'encoder_decoder_attention/key/', '/rel_embedding'],
        ),
        ('bert', ['visual_projection']),
    ],
)
def test_a_step_reads_no_parameter_of_image_or_prompt(name, never_read):
  names, program = decoding_program(name)
  read = [id(v) for v in the_loop(program).invars]
  in_loop = [n for n, v in zip(names, program.invars) if id(v) in read]
  assert in_loop
  for part in never_read:
    assert [n for n in names if part in n], part
    assert not [n for n in in_loop if part in n], part
