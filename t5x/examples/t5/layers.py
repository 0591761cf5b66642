"""Parts of the T5 network under the names that other projects import.

The parts live by noun: `attention`, `dense`, `masks`, `positions`.
"""

from t5x.examples.t5.attention import MultiHeadDotProductAttention
from t5x.examples.t5.attention import dot_product_attention
from t5x.examples.t5.attention import dynamic_vector_slice_in_dim
from t5x.examples.t5.dense import DenseGeneral
from t5x.examples.t5.dense import Embed
from t5x.examples.t5.dense import LayerNorm
from t5x.examples.t5.dense import MlpBlock
from t5x.examples.t5.dense import _canonicalize_tuple
from t5x.examples.t5.dense import _normalize_axes
from t5x.examples.t5.dense import default_embed_init
from t5x.examples.t5.masks import combine_biases
from t5x.examples.t5.masks import combine_masks
from t5x.examples.t5.masks import make_attention_mask
from t5x.examples.t5.masks import make_causal_mask
from t5x.examples.t5.masks import make_decoder_mask
from t5x.examples.t5.positions import RelativePositionBiases

__all__ = [
    'DenseGeneral',
    'Embed',
    'LayerNorm',
    'MlpBlock',
    'MultiHeadDotProductAttention',
    'RelativePositionBiases',
    '_canonicalize_tuple',
    '_normalize_axes',
    'combine_biases',
    'combine_masks',
    'default_embed_init',
    'dot_product_attention',
    'dynamic_vector_slice_in_dim',
    'make_attention_mask',
    'make_causal_mask',
    'make_decoder_mask',
]
