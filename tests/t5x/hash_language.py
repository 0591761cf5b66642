"""A language whose next token depends on all read so far, worked by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

EOS = 1
NUM_STATES = 23
VOCAB = 4


def table(seed):
  """Logits of the next token by state; padding is all but impossible."""
  logits = np.random.default_rng(seed).normal(0, 2, (NUM_STATES, VOCAB))
  logits[:, 0] = -1e4
  return logits.astype(np.float32)


def next_hash(value, token):
  return (value * 5 + token + 1) % NUM_STATES


def step_fn(logits, offset=0):
  """A model that hashes what it reads; all layers do the same."""

  def step(state):
    cache = dict(state.cache)
    layers = cache['hash'] if offset else cache['hash'][None]
    layers = next_hash(layers, state.cur_token[None])
    cache['hash'] = layers if offset else layers[0]
    cache['cache_index'] = cache['cache_index'] + 1
    return jnp.asarray(logits)[layers[0, :, 0]], cache

  return step


def new_cache(rows, offset=0):
  shape = (2, rows, 1) if offset else (rows, 1)
  index = jnp.zeros((2,) if offset else (), jnp.int32)
  return {'hash': jnp.zeros(shape, jnp.int32), 'cache_index': index}


def prefilled_cache(prompts, lengths, offset=0):
  """The cache behind all but the last token of each prompt."""
  cache = new_cache(len(prompts), offset)
  hashes = np.zeros((len(prompts), 1), np.int32)
  for row, (prompt, length) in enumerate(zip(prompts, lengths)):
    for token in prompt[:length]:
      hashes[row] = next_hash(hashes[row], token)
  index = jnp.asarray(lengths, jnp.int32)
  if offset:
    hashes, index = np.stack([hashes] * 2), jnp.stack([index] * 2)
  return {**cache, 'hash': jnp.asarray(hashes), 'cache_index': index}


def log_softmax(x):
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def log_prob(logits, tokens, prompt_length=0):
  """Log probability of the tokens behind the prompt."""
  value, total = next_hash(0, 0), 0.0
  for place, token in enumerate(tokens):
    if place >= prompt_length:
      total += log_softmax(logits[value].astype(np.float64))[token]
    value = next_hash(value, token)
  return total


def all_sequences(length, prompt=()):
  """Every text that ends within the length."""
  for words in range(length - len(prompt)):
    for text in itertools.product(range(2, VOCAB), repeat=words):
      yield (*prompt, *text, EOS)


def greedy(logits, length, prompt=()):
  value, tokens = next_hash(0, 0), []
  for place in range(length):
    given = place < len(prompt)
    token = prompt[place] if given else int(logits[value].argmax())
    tokens.append(token)
    if token == EOS and not given:
      break
    value = next_hash(value, token)
  return tokens + [0] * (length - len(tokens))


def prompt_rows(prompts, length):
  rows = np.zeros((len(prompts), length), np.int32)
  for row, prompt in zip(rows, prompts):
    row[1 : 1 + len(prompt)] = prompt
  return rows


PROMPTS = [(), (2, 3), (3,), (2, EOS, 3)]


def run(decode, *args, **settings):
  """Compiles as a whole: op by op takes longer."""
  return jax.jit(lambda: decode(*args, **settings))()


def always(probs):
  """A model that does not care what it reads."""

  def step(state):
    rows = state.cur_token.shape[0]
    logits = jnp.log(jnp.array(probs))
    return jnp.broadcast_to(logits, (rows, len(probs))), state.cache

  return step


def counted(step):
  """The step function, and a list that grows with every step run."""
  calls = []

  def counting(state):
    jax.debug.callback(lambda: calls.append(1))
    return step(state)

  return counting, calls


def never_ends(state):
  logits = jnp.array([-1e9, -1e9, 0.0, jnp.log(0.5)])
  rows = state.cur_token.shape[0]
  return jnp.broadcast_to(logits, (rows, VOCAB)), state.cache
