"""What the stages of the network give each other, by field.

Coordinates are pixels of the network input. Prompts are an axis of their own
here; `network` folds them into the batch only for the language model.
"""

from flax import struct
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from pixel_llm.modules import box_decoder


@struct.dataclass
class ImageFeatures:
  """What both towers see of the images.

  Attributes:
    fused: both maps on the larger grid, concatenated on channels.
    sam: the localisation tower's own map, for masks.
    valid_hw: height and width of the valid area.
    input_hw: height and width of the network input, padding included.
  """

  fused: Float[Array, 'B h w D']
  sam: Float[Array, 'B hs ws Ds']
  valid_hw: Float[Array, 'B 2']
  input_hw: tuple[int, int] = struct.field(pytree_node=False)


@struct.dataclass
class Prompts:
  """Where to look, what is asked and what is to be said there.

  Attributes:
    boxes: where to look.
    context_tokens: what is asked, 0 is padding.
    text_tokens: begin … end, 0 is padding.
    rows: the row of the batch that text and targets come from.
    mask: False where the text does not belong to the box, as for a proposal
      that found no target.
  """

  boxes: Float[Array, 'B N 4']
  context_tokens: Int[Array, 'B N C']
  text_tokens: Int[Array, 'B N T']
  rows: Int[Array, 'B N']
  mask: Bool[Array, 'B N']

  def take(self, x: Num[Array, 'B _G *X']) -> Num[Array, 'B _N *X']:
    """Takes what a feature of the batch holds for each prompt."""
    index = self.rows.reshape(*self.rows.shape, *[1] * (x.ndim - 2))
    return jnp.take_along_axis(x, index, axis=1)


@struct.dataclass
class TextOutputs:
  """What the language model says about a text.

  Attributes:
    logits: at each position, of the token after it.
    features: after the decoder's last norm; the point head reads them.
  """

  logits: Float[Array, 'B N T V']
  features: Float[Array, 'B N T D']


@struct.dataclass
class LocationOutputs:
  """Where the words of a text are.

  Attributes:
    points: (x, y) per token.
    point_logits: further outputs of the point head, which no loss uses.
    point_mask: tokens whose points count for the box.
    boxes: around the points that count; inverted if none does.
  """

  points: Float[Array, 'B N T P 2']
  point_logits: Float[Array, 'B N T P K']
  point_mask: Bool[Array, 'B N T']
  boxes: Float[Array, 'B N 4']


@struct.dataclass
class PointTargets:
  """Where the words of a text should be.

  Attributes:
    points: (x, y) per token.
    mask: tokens whose points count.
  """

  points: Float[Array, 'B N T P 2']
  mask: Bool[Array, 'B N T']


@struct.dataclass
class MaskOutputs:
  """Masks at four times the grid of SAM's features; M = 1.

  Attributes:
    logits: above 0 is inside; they cover the padded network input.
    iou: the decoder's estimate of its own mask's IoU.
  """

  logits: Float[Array, 'B N M h w']
  iou: Float[Array, 'B N M']


@struct.dataclass
class Outputs:
  """Everything a training step needs of the network.

  Attributes:
    prompts: the prompts that got text.
    visual_tokens: what the language model reads of the image.
    text: logits and features of the prompts' text.
    location: points and boxes of that text; None without a point head.
    mask: masks of those boxes; None without a mask decoder.
    detection: what the box decoder says; None where it did not run.
  """

  prompts: Prompts
  visual_tokens: Float[Array, 'B N L D']
  text: TextOutputs
  location: LocationOutputs | None
  mask: MaskOutputs | None
  detection: box_decoder.BoxOutputs | None
