"""Box decoder: finds objects on the fused map (CenterNet2, RefA).

    fpn                 fused map         -> pyramid of strides 8 … 128
    proposal_generator  pyramid           -> where something may be
    roi_heads           pyramid, boxes    -> class and corrected box

Training (`__call__`) adds the target boxes to the proposals and samples; the
sampled boxes, positive ones first, are the prompts of the text as well.
Inference (`detect`) needs no targets.

Boxes live in the frame of the pyramid: 16 pixels a cell of the fused map,
whatever its true stride. They are clipped to the padded network input.

RefA: Probabilistic two-stage detection (arXiv 2103.07461); RefB: Pixel Aligned
Language Models (arXiv 2312.09237), Sec. 4.4.
"""

from flax import linen as nn
from flax import struct
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pixel_llm import roi_ops
from pixel_llm.modules import centernet
from pixel_llm.modules import feature_pyramid
from pixel_llm.modules import roi_head


@struct.dataclass
class BoxOutputs:
  """Everything the detection losses and the text of a training step need.

  Attributes:
    centres: of the proposal stage.
    sample: boxes that entered the RoI stage, with their targets.
    roi: what that stage says of them.
  """

  centres: centernet.CentreMaps
  sample: roi_head.RoiSample
  roi: roi_head.RoiOutputs


class BoxDecoder(nn.Module):
  """The three stages; names of children are those of released checkpoints.

  Attributes:
    fpn: the pyramid.
    proposal_generator: the proposal stage.
    roi_heads: the RoI stage.
  """

  fpn: nn.Module = feature_pyramid.FeaturePyramid()
  proposal_generator: nn.Module = centernet.CenterNet()
  roi_heads: nn.Module = roi_head.RoiHead()

  def __call__(
      self,
      features: Float[Array, 'B h w D'],
      boxes: Float[Array, 'B G 4'],
      classes: Int[Array, 'B G'] | None = None,
      *,
      input_hw: tuple[int, int],
      enable_dropout: bool = False,
  ) -> BoxOutputs:
    """Runs all stages with targets, as in training.

    Args:
      features: the fused map, which stands for stride 16.
      boxes: target boxes in pixels, zeros are padding.
      classes: of the targets, from 1, padding has 0; None: all are class 1.
      input_hw: height and width of the network input, padding included.
      enable_dropout: draw the sample of the RoI stage, with the `dropout` rng;
        False takes the best scored proposals.

    Returns:
      What the stages say.
    """
    if classes is None:
      classes = roi_ops.is_present(boxes).astype(jnp.int32)
    levels = self._pyramid(features)
    maps = self.proposal_generator(levels)
    sample = self.roi_heads.sample(
        self.proposal_generator.propose(maps, is_training=True),
        boxes,
        classes,
        input_hw,
        rng=self.make_rng('dropout') if enable_dropout else None,
    )
    return BoxOutputs(
        centres=maps,
        sample=sample,
        roi=self.roi_heads(levels, sample.boxes, self.fpn.finest_level),
    )

  def detect(
      self, features: Float[Array, 'B h w D'], *, input_hw: tuple[int, int]
  ) -> roi_head.Detections:
    """Finds objects, as at inference.

    Args:
      features: the fused map, which stands for stride 16.
      input_hw: height and width of the network input, padding included.

    Returns:
      Boxes, scores and classes, best first.
    """
    levels = self._pyramid(features)
    proposals = self.proposal_generator.propose(
        self.proposal_generator(levels), is_training=False
    )
    boxes = roi_ops.clip_boxes(proposals.boxes, input_hw)
    return self.roi_heads.detect(
        self.roi_heads(levels, boxes, self.fpn.finest_level),
        boxes,
        proposals,
        input_hw,
    )

  def _pyramid(
      self, features: Float[Array, 'B h w D']
  ) -> list[Float[Array, 'B _h _w D']]:
    """Checks that both ends mean the same strides, and builds the levels."""
    finest, strides = self.fpn.finest_level, self.proposal_generator.strides
    if tuple(strides) != tuple(2 ** (finest + i) for i in range(len(strides))):
      raise ValueError(
          f'BoxDecoder: proposal_generator.strides={tuple(strides)}, but the'
          f' pyramid starts at stride {2 ** finest} and doubles from level to'
          ' level; give those strides.'
      )
    return self.fpn(features)
