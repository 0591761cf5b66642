"""Draws texts from the language model, over a step function with a cache.

RefA: Holtzman et al., "The Curious Case of Neural Text Degeneration" (arXiv
1904.09751), section 3.1, for top-p; RefB: Fan et al., "Hierarchical Neural
Story Generation" (arXiv 1805.04833), section 5.4, for top-k.

What a prompt's texts are is a function of its key and its own logits: neither
the other rows of the batch nor the number of samples moves a draw.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from pixel_llm import generation
from pixel_llm.modules import decode_cache


def row_keys(rng: Array, num_images: int, num_prompts: int) -> Key[Array, ' M']:
  """Makes a key for every prompt of every image, from its place alone.

  Prompts added behind an image's last one change no other prompt's key.

  Args:
    rng: a key of any kind, typed or raw.
    num_images: images, `B`.
    num_prompts: prompts an image, `N`.

  Returns:
    Keys of the rows, prompt by prompt and image by image.
  """
  # A draw must not depend on the batch around it. Of JAX's generators only
  # threefry keeps that under vmap; a run may have a faster one.
  root = jax.random.wrap_key_data(
      jax.random.bits(rng, (2,), 'uint32'), impl='threefry2x32'
  )
  images = _children(root, num_images)
  return jax.vmap(lambda key: _children(key, num_prompts))(images).reshape(-1)


def _children(key: Key[Array, ''], count: int) -> Key[Array, ' count']:
  """Makes keys 0 … count - 1 of a key, each whatever the count."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))


@dataclasses.dataclass(frozen=True)
class Sample:
  """Draws every token from the model's distribution, cut and sharpened.

  A token is drawn with probability proportional to p^(1/temperature), among the
  `top_k` likeliest (RefB) and, of these, the fewest that together have at least
  the share `top_p` of what was left (RefA). Of tokens with equal logits the one
  with the lower id counts as the likelier.

  Scores are those of `generation.write_each` under the model itself, at
  temperature 1 and uncut: so they rank texts drawn with any settings, and a
  row's texts stand in their order.

  Attributes:
    num_samples: texts a row, drawn independently; equal ones are kept.
    temperature: below 1 sharpens; 0 takes the likeliest token, which may repeat
      the one before it (`generation.Greedy` forbids that).
    top_k: tokens to draw from, 0 for all.
    top_p: share of the probability to draw from, 1 for all. Alone it sorts the
      whole vocabulary at every step; a `top_k` beside it saves that.
  """

  num_samples: int = 1
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0

  def __post_init__(self):
    if self.num_samples < 1:
      raise ValueError(
          f'Sample.num_samples is {self.num_samples}; draw at least 1 text.'
      )
    if not 0.0 <= self.temperature < math.inf:
      raise ValueError(
          f'Sample.temperature is {self.temperature}; it must be finite and not'
          ' negative. 1 draws from the model as it is, 0 takes the likeliest'
          ' token.'
      )
    if self.top_k < 0:
      raise ValueError(
          f'Sample.top_k is {self.top_k}; give a number of tokens, or 0 to draw'
          ' from all.'
      )
    if not 0.0 < self.top_p <= 1.0:
      raise ValueError(
          f'Sample.top_p is {self.top_p}; it is a share in (0, 1], 1 to draw'
          ' from all tokens.'
      )

  @property
  def num_beams(self) -> int:
    """Texts a row."""
    return self.num_samples

  def __call__(
      self,
      step: decode_cache.StepFn,
      cache: decode_cache.DecodeCache,
      start: Int[Array, 'M T'],
      end_id: int,
      row_mask: Bool[Array, ' M'] | None = None,
      keys: Key[Array, ' M'] | None = None,
  ) -> generation.Decoded:
    """Draws `num_samples` texts a row; see `generation.Decoder`.

    Raises:
      ValueError: if there is no key to draw with.
    """
    if keys is None and self.temperature > 0.0:
      raise ValueError(
          f'{self} draws tokens and needs a random key: pass `rng` to'
          ' `predict_batch`, as T5X does, or set temperature = 0.'
      )
    # Each text has a key of its own, each step a key of that.
    texts = None
    if keys is not None:
      texts = jax.vmap(lambda key: _children(key, self.num_samples))(keys)

    def choose(logits, previous, index):
      del previous
      token = jnp.argmax(logits, axis=-1)
      if self.temperature > 0.0:
        token = self._draw(logits, _fold_in_each(texts, index))
      at_token = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
      return token, at_token - generation.log_normaliser(logits)

    decoded = generation.write_each(
        step,
        cache,
        jnp.repeat(start[:, None], self.num_samples, axis=1),
        end_id,
        row_mask,
        choose,
    )
    order = jnp.argsort(decoded.scores, axis=1)
    return generation.Decoded(
        tokens=jnp.take_along_axis(decoded.tokens, order[..., None], axis=1),
        scores=jnp.take_along_axis(decoded.scores, order, axis=1),
    )

  def _draw(
      self, logits: Float[Array, 'M K V'], keys: Key[Array, 'M K']
  ) -> Int[Array, 'M K']:
    """Draws a token for every text."""
    draw = jax.vmap(jax.vmap(jax.random.categorical))
    # The likeliest token keeps 0, whatever the temperature.
    logits -= jnp.max(logits, axis=-1, keepdims=True)
    logits /= self.temperature
    if not self.top_k and self.top_p == 1.0:
      return draw(keys, logits)
    vocabulary = logits.shape[-1]
    count = min(self.top_k or vocabulary, vocabulary)
    best, tokens = jax.lax.top_k(logits, count)
    probabilities = jax.nn.softmax(best)
    likelier = jnp.cumsum(probabilities, axis=-1) - probabilities
    best = jnp.where(likelier < self.top_p, best, -jnp.inf)
    drawn = draw(keys, best)[..., None]
    return jnp.take_along_axis(tokens, drawn, axis=-1)[..., 0]


def _fold_in_each(
    keys: Key[Array, 'M K'], index: Int[Array, '']
) -> Key[Array, 'M K']:
  """Makes the keys of step `index`."""
  return jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(
      keys, index
  )
