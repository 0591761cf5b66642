"""Parts of the T5 network under the names that other projects import.

The parts live by noun: `attention`, `dense`, `masks`, `positions`.
"""

from t5x.examples.t5.attention import (
    MultiHeadDotProductAttention,
    dot_product_attention,
    dynamic_vector_slice_in_dim,
)
from t5x.examples.t5.dense import (
    DenseGeneral,
    Embed,
    LayerNorm,
    MlpBlock,
    _canonicalize_tuple,
    _normalize_axes,
    default_embed_init,
)
from t5x.examples.t5.masks import (
    combine_biases,
    combine_masks,
    make_attention_mask,
    make_causal_mask,
    make_decoder_mask,
)
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
